"""How fast the transport job is, against the bare model, the method's own way of working, and Ray Data.

    python -m benchmarks.throughput --latency_ms 0 50 --output benchmarks/results/throughput.md

On the same images, in turn, each in a process of its own with the same number of threads:

- ceiling: the autoencoder's encode and decode alone, of tensors that are in memory, in the fastest batch;
- side by side: the same on a CPU image by image, a core for each, as the job does; a higher ceiling;
- job: dot-transport, from JPEG files to PNG files;
- paper loop: one image after the other, float32, patches unfolded, mapped in float64 and folded, saved as Pillow does;
- ray: the job's work, PNG compression included, as a Ray Data pipeline; without Ray (`pip install ray[data]`) the row
  says so.

Ceiling, job and ray compute in one precision. Start-up (imports, loading the model, a few images to warm up) is told
apart. What is timed is the whole second run of the command in its process for the job: checks, listing, Beam's own
work, images and manifest; the loop over images for ceiling and paper loop; and from the first batch that reaches the
loaded model to the last write for Ray, which favours Ray: what it read ahead until then is free. With `--repeat` the
parts alternate; speeds are medians, and ratios medians of the repeats' ratios. `--latency_ms` lets each call of
storage wait (benchmarks/slow_storage.py); 0 is the local disk.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import (
    Figures,
    describe,
    fit_map,
    machine,
    photographs,
    run_child,
    table,
)
from benchmarks.pages import write_page
from benchmarks.slow_storage import LATENCY

#: Name on the command line, name in the JSON, name in the table.
PARTS = {"ceiling": "ceiling", "side_by_side": "side_by_side", "job": "job", "paper": "paper_loop", "ray": "ray"}
_TITLES = {
    "ceiling": "encode and decode alone (ceiling)",
    "side_by_side": "encode and decode alone, a core for each image",
    "job": "dot-transport",
    "paper_loop": "the paper's way, image by image, float32",
    "ray": "Ray Data, the same work",
}
_LOOPS, _JOB, _RAY = (f"benchmarks.throughput_{name}" for name in ("loops", "job", "ray"))
_CHILDREN = {
    "ceiling": (_LOOPS, "ceiling"),
    "side_by_side": (_LOOPS, "side_by_side"),
    "job": (_JOB, "job"),
    "paper_loop": (_LOOPS, "paper_loop"),
    "ray": (_RAY, "ray_data"),
}
_MODEL_ALONE = ("ceiling", "side_by_side")
_WARM_UP = 4


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, nargs=2, default=[256, 512], help="bounds of the sides")
    parser.add_argument("--latency_ms", type=float, nargs="+", default=[0.0], help="of each call of storage")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--precision", help="of ceiling, job and ray: as dot-transport takes it, and its default")
    parser.add_argument("--vae", help="as dot-transport takes it, and its default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, help="folder for images and results; default a temporary one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the images, measures, writes the tables."""
    args = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        found = measure(args, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    text = render(found)
    print(text)
    if args.output:
        write_page(args.output, text)


def measure(args: argparse.Namespace, work: Path) -> Figures:
    """Every figure."""
    environment = {"OMP_NUM_THREADS": str(args.threads)}
    if args.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    vae, (low, high) = args.vae, args.size
    paths = photographs(work / "input", args.images, low, high, seed=0)
    warm_up = photographs(work / "warm_up", _WARM_UP, low, high, seed=1)
    fit_map(work, ["--vae", vae] if vae else [], low, high)
    common = {
        "vae": vae,
        "device": args.device,
        "precision": args.precision,
        "threads": args.threads,
        "map": str(work / "map.safetensors"),
        "job_args": [],
    }
    runs: list[Figures] = []
    for repeat in range(args.repeat):
        for latency in args.latency_ms:
            for part in (PARTS[name] for name in args.only):
                if (part == "ray" and not _has_ray()) or (part == "side_by_side" and args.device != "cpu"):
                    continue
                root = "slow://" if latency and part not in _MODEL_ALONE else ""
                output = work / "output" / part
                settings = {
                    **common,
                    "paths": [root + path for path in paths],
                    "warm_up_paths": [root + path for path in warm_up],
                    "input": f"{root}{work}/input",
                    "warm_up": f"{root}{work}/warm_up",
                    "output": f"{root}{output}-{repeat}-{latency:g}",
                }
                figures = run_child(*_CHILDREN[part], settings, {**environment, LATENCY: str(latency)})
                figures |= {"part": part, "repeat": repeat, "latency_ms": latency}
                figures["images_per_second"] = args.images / figures["seconds"]
                if part not in _MODEL_ALONE:
                    _check(Path(f"{output}-{repeat}-{latency:g}") / "input" / "images", paths)
                runs.append(figures)
                print(
                    f"{latency:g} ms, repeat {repeat}, {part}: {figures['images_per_second']:.2f} images/s", flush=True
                )
    megapixels = sum(np.prod(Image.open(path).size) for path in paths) / 1e6
    by_latency = [_summary(runs, latency, float(megapixels) / args.images) for latency in args.latency_ms]
    found: Figures = {
        **by_latency[0],
        "images": args.images,
        "size": args.size,
        "megapixels": float(megapixels),
        "repeat": args.repeat,
        "vae": args.vae or "default",
        "device": args.device,
        "precision": next((run["precision"] for run in runs if "precision" in run), args.precision or "auto"),
        "threads": args.threads,
        "machine": machine(),
        "ray_installed": _has_ray(),
        "agreement_psnr": _agreement(work, args),
        "by_latency": by_latency,
        "runs": runs,
    }
    return found


def _has_ray() -> bool:
    return importlib.util.find_spec("ray") is not None


def _check(folder: Path, paths: Sequence[str]) -> None:
    missing = [path for path in paths if not (folder / f"{Path(path).stem}.png").is_file()]
    if missing:
        raise SystemExit(f"{folder}: {len(missing)} of {len(paths)} images weren't written, {missing[0]} among them")


def _agreement(work: Path, args: argparse.Namespace) -> dict[str, float]:
    """PSNR of a few results against the job's: that all did the same work."""
    if "job" not in args.only:
        return {}
    end = f"0-{args.latency_ms[0]:g}"
    found = {}
    for part in ("paper_loop", "ray"):
        folder = work / "output" / f"{part}-{end}" / "input" / "images"
        if folder.is_dir():
            names = sorted(path.name for path in folder.iterdir())[:8]
            ours = [np.asarray(Image.open(work / "output" / f"job-{end}/input/images" / n), np.float64) for n in names]
            others = [np.asarray(Image.open(folder / name), np.float64) for name in names]
            error = np.mean([np.mean((a - b) ** 2) for a, b in zip(ours, others, strict=True)])
            found[part] = float(10 * np.log10(255**2 / max(error, 1e-6)))
    return found


def _summary(runs: Sequence[Figures], latency: float, megapixels_per_image: float) -> Figures:
    """Medians over the repeats at one latency; None for what wasn't measured."""

    def values(part: str, name: str) -> list[float]:
        return [run[name] for run in runs if run["part"] == part and run["latency_ms"] == latency and name in run]

    summary: Figures = {"latency_ms": latency}
    speeds = {part: values(part, "images_per_second") for part in PARTS.values()}
    for part, found in speeds.items():
        median = statistics.median(found) if found else None
        summary[f"{part}_images_per_second"] = median
        summary[f"{part}_images_per_second_range"] = [min(found), max(found)] if found else None
        summary[f"{part}_megapixels_per_second"] = median and median * megapixels_per_image
        startup = values(part, "startup_seconds")
        summary[f"{part}_startup_seconds"] = statistics.median(startup) if startup else None
        if part != "job":
            both = bool(found and speeds["job"])
            ratios = [job / other for job, other in zip(speeds["job"], found, strict=True)] if both else []
            summary[f"job_over_{part}"] = statistics.median(ratios) if ratios else None
    peaks = values("job", "peak_rss_bytes")
    summary["peak_rss_bytes"] = int(statistics.median(peaks)) if peaks else None
    jobs = [run for run in runs if run["part"] == "job" and run["latency_ms"] == latency]
    stages = dict.fromkeys(stage for run in jobs for stage in run["stage_seconds"])
    summary["job_stage_seconds"] = {
        stage: statistics.median(run["stage_seconds"].get(stage, 0.0) for run in jobs) for stage in stages
    }
    summary["job_seconds"] = statistics.median(run["seconds"] for run in jobs) if jobs else None
    batches = values("ceiling", "batch")
    summary["ceiling_batch"] = statistics.median_low(batches) if batches else None
    return summary


def render(found: Mapping[str, Any]) -> str:
    """The whole Markdown page."""
    low, high = found["size"]
    size = f"sides of {low} to {high}"
    lines = [
        "# Throughput",
        "",
        f"{found['images']} photographs, {size} pixels ({found['megapixels']:.1f} megapixels), JPEG in, PNG out; "
        f"autoencoder {found['vae']}, {found['device']}, {found['threads']} threads, precision {found['precision']}. "
        f"Medians of {found['repeat']}, range in brackets; `python -m benchmarks.throughput` says what is timed.",
        "",
        describe(found["machine"]),
    ]
    for summary in found["by_latency"]:
        lines += ["", f"## {_title(summary['latency_ms'])}", "", _speeds(summary, found["ray_installed"])]
        if summary["job_seconds"]:
            lines += ["", _stages(summary)]
    if found["agreement_psnr"]:
        pairs = ", ".join(f"{_TITLES[part]} {psnr:.1f} dB" for part, psnr in found["agreement_psnr"].items())
        lines += ["", f"That the results are the same, but for precision: PSNR of eight against the job's: {pairs}."]
    return "\n".join(lines) + "\n"


def _title(latency: float) -> str:
    return f"Storage that takes {latency:g} ms a call" if latency else "Local disk"


def _speeds(summary: Mapping[str, Any], ray_installed: bool) -> str:
    rows = []
    for part, title in _TITLES.items():
        speed = summary[f"{part}_images_per_second"]
        if speed is None:
            if part == "ray" and not ray_installed:
                rows.append([title, "not installed", "", "", ""])
            continue
        low, high = summary[f"{part}_images_per_second_range"]
        ratio = summary.get(f"job_over_{part}")
        rows.append(
            [
                title,
                f"{speed:.2f} ({low:.2f} to {high:.2f})",
                f"{summary[f'{part}_megapixels_per_second']:.2f}",
                "" if ratio is None else f"{ratio:.2f}",
                f"{summary[f'{part}_startup_seconds']:.1f}",
            ]
        )
    return table(["", "images/s", "megapixels/s", "the job is so many times as fast", "start-up, s"], rows)


def _stages(summary: Mapping[str, Any]) -> str:
    stages = sorted(summary["job_stage_seconds"].items(), key=lambda item: -item[1])
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in stages)
    return (
        f"The job took {summary['job_seconds']:.1f} s and at most {summary['peak_rss_bytes'] / 1e6:.0f} MB. Seconds in "
        f"its stages, summed over threads that work at the same time: {seconds}."
    )


if __name__ == "__main__":
    main()
