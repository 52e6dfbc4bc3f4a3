"""What more work costs: Beam's own time for each image, the size of an accumulator, the memory of a job.

    python -m benchmarks.scale --output benchmarks/results/scale

- overhead: dot-transport over tiny images with the identity for a model (`--vae pixels`, patches of one pixel), against
  the same reads, decodes, model calls, encodes, hashes and writes in a plain loop, in as many threads as are fastest.
  The difference is Beam's own: elements, coders, fusion, metrics, and with them listing, batching, manifest and the
  command's checks. Both are a second pass in their process, so imports don't count, and they alternate.
- accumulators: the statistics of 1 to 10^6 latent patches: gathering them, adding a batch to them, merging two.
- memory: the most memory that dot-transport holds for few and for many images, which Beam's local runner gives to the
  transport stage as one bundle.

Writes `<output>.json` with every figure, `<output>.md` and `<output>.svg`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import log_chart
from benchmarks.measure import ROOT, Figures, describe, machine, photographs, run_child, table
from benchmarks.pages import write_page

PARTS = ("overhead", "accumulators", "memory")
#: What is promised.
OVERHEAD_TARGET_MS, GROWTH_TARGET = 1.0, 0.1
_WARM_UP, _FIT = 50, 8
#: Different images; more names are links to them.
_DISTINCT = 64


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1_000, 10_000], help="of overhead")
    parser.add_argument("--size", type=int, default=32, help="sides of overhead's images")
    parser.add_argument("--repeat", type=int, default=3, help="of overhead; medians are reported")
    parser.add_argument("--patches", type=int, nargs="+", default=[10**power for power in range(7)])
    parser.add_argument("--dimension", type=int, default=288, help="of a patch; 32 channels of 3 x 3")
    parser.add_argument("--memory_images", type=int, nargs=2, default=[500, 20_000])
    parser.add_argument("--memory_size", type=int, default=128, help="sides of memory's images")
    parser.add_argument("--threads", type=int, default=1, help="of torch, which has next to nothing to do here")
    parser.add_argument("--work", type=Path, help="folder for images and results; default a temporary one")
    parser.add_argument("--output", type=Path, help="without extension")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes what was found."""
    args = _parser().parse_args(argv)
    found: Figures = {"machine": machine(), "dimension": args.dimension, "repeat": args.repeat, "size": args.size}
    environment = {"OMP_NUM_THREADS": str(args.threads), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        common = _prepared(Path(folder), args)
        if "overhead" in args.only:
            found["overhead"] = _overhead(args, Path(folder), common, environment)
        if "accumulators" in args.only:
            found["accumulators"] = [
                run_child(
                    "benchmarks.scale_accumulator",
                    "accumulator",
                    {"patches": count, "dimension": args.dimension},
                    environment,
                )
                for count in args.patches
            ]
        if "memory" in args.only:
            found["memory"] = _memory(args, Path(folder), common, environment)
    text = render(found, args.output.name if args.output else None)
    print(text)
    if args.output:
        args.output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        write_page(args.output.with_suffix(".md"), text)
        if charts := _charts(found):
            args.output.with_suffix(".svg").write_text(log_chart.page(charts))


def _prepared(work: Path, args: argparse.Namespace) -> Figures:
    """Settings of every child, and the map that they use."""
    for seed, side in ((2, "source"), (3, "target")):
        photographs(work / side, _FIT, args.size, args.size, seed=seed)
    flags = ["--source", work / "source", "--target", work / "target", "--map", work / "map.safetensors"]
    command = [sys.executable, "-m", "pipelines.fit", *map(str, flags), "--vae", "pixels", "--patch_size", "1"]
    done = subprocess.run([*command, "--method", "paper"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"dot-fit failed:\n{done.stderr[-4000:]}")
    return {
        "vae": "pixels",
        "device": "cpu",
        "precision": "float32",
        "threads": args.threads,
        "map": str(work / "map.safetensors"),
    }


def _overhead(
    args: argparse.Namespace, work: Path, common: Mapping[str, Any], environment: Mapping[str, str]
) -> list[Figures]:
    """A row for each number of images, in seconds and in milliseconds for each image."""
    photographs(work / "warm_up", _WARM_UP, args.size, args.size, seed=1)
    rows = []
    for count in args.images:
        folder = work / f"tiny-{count}"
        paths = photographs(folder, count, args.size, args.size, seed=0, distinct=_DISTINCT)
        jobs, loops, threads = [], [], []
        for repeat in range(args.repeat):
            output = str(work / f"job-{count}-{repeat}")
            settings = {**common, "input": str(folder), "warm_up": str(work / "warm_up"), "output": output}
            job = run_child("benchmarks.throughput_job", "job", {**settings, "job_args": []}, environment)
            output = str(work / f"loop-{count}-{repeat}")
            loop = run_child(
                "benchmarks.scale_loop", "plain_loop", {**common, "paths": paths, "output": output}, environment
            )
            jobs.append(job["seconds"])
            loops.append(loop["seconds"])
            threads.append(loop["threads"])
            print(f"{count} images: job {jobs[-1]:.2f} s, plain loop {loops[-1]:.2f} s", flush=True)
        differences = [job - loop for job, loop in zip(jobs, loops, strict=True)]
        job, loop, difference = (statistics.median(values) for values in (jobs, loops, differences))
        rows.append(
            {
                "images": count,
                "job_seconds": job,
                "plain_seconds": loop,
                "job_milliseconds_per_image": 1000 * job / count,
                "plain_milliseconds_per_image": 1000 * loop / count,
                "overhead_milliseconds_per_image": 1000 * difference / count,
                "overhead_seconds": difference,
                "plain_threads": statistics.median_low(threads),
                "repeats": [{"job": job, "plain": loop} for job, loop in zip(jobs, loops, strict=True)],
            }
        )
    return rows


def _memory(args: argparse.Namespace, work: Path, common: Mapping[str, Any], environment: Mapping[str, str]) -> Figures:
    """Peaks of two jobs, of few and of many images, and by how much the second is higher."""
    photographs(work / "warm_up-memory", 4, args.memory_size, args.memory_size, seed=1)
    peaks, seconds = [], []
    for count in args.memory_images:
        folder, output = work / f"memory-{count}", work / f"memory-output-{count}"
        photographs(folder, count, args.memory_size, args.memory_size, seed=0, distinct=_DISTINCT)
        settings = {
            **common,
            "input": str(folder),
            "warm_up": str(work / "warm_up-memory"),
            "output": str(output),
            "job_args": ["--format", "jpeg"],
        }
        figures = run_child("benchmarks.throughput_job", "job", settings, environment)
        peaks.append(figures["peak_rss_bytes"])
        seconds.append(figures["seconds"])
        shutil.rmtree(output)
        print(f"{count} images: {peaks[-1] / 1e6:.0f} MB, {seconds[-1]:.1f} s", flush=True)
    return {
        "images": args.memory_images,
        "size": args.memory_size,
        "peak_rss_bytes": peaks,
        "seconds": seconds,
        "growth": peaks[1] / peaks[0] - 1,
    }


def render(found: Mapping[str, Any], name: str | None) -> str:
    """The Markdown page."""
    lines = ["# Scale", "", describe(found["machine"]), "", "`python -m benchmarks.scale` says what is measured."]
    if name and ("overhead" in found or "accumulators" in found):
        lines += ["", f"![cost against size]({name}.svg)"]
    if "overhead" in found:
        lines += ["", "## Beam's own time for each image", "", *_overhead_lines(found)]
    if "accumulators" in found:
        lines += ["", "## Accumulators", "", *_accumulator_lines(found)]
    if "memory" in found:
        lines += ["", "## Memory of a job", "", *_memory_lines(found["memory"])]
    return "\n".join(lines) + "\n"


def _overhead_lines(found: Mapping[str, Any]) -> list[str]:
    rows = found["overhead"]
    last = rows[-1]
    cells = [
        [
            row["images"],
            f"{row['job_seconds']:.2f}",
            f"{row['job_milliseconds_per_image']:.2f}",
            f"{row['plain_milliseconds_per_image']:.2f}",
            f"{row['overhead_milliseconds_per_image']:.2f}",
        ]
        for row in rows
    ]
    size = f"{found['size']} x {found['size']}"
    verdict = "kept" if last["overhead_milliseconds_per_image"] <= OVERHEAD_TARGET_MS else "MISSED"
    lines = [
        f"Images of {size} pixels, no model to speak of; milliseconds for each image, medians of {found['repeat']}.",
        "",
        table(["images", "job, s", "job, ms", "plain loop, ms", "difference, ms"], cells),
        "",
        f"Target, at most {OVERHEAD_TARGET_MS:g} ms at {last['images']} images: {verdict}.",
    ]
    if len(rows) > 1:
        before = rows[-2]
        more = last["images"] - before["images"]
        each = 1000 * (last["overhead_seconds"] - before["overhead_seconds"]) / more
        lines[-1] += f" Each image beyond {before['images']} adds {each:.2f} ms; the rest is fixed."
    return lines


def _accumulator_lines(found: Mapping[str, Any]) -> list[str]:
    cells = [
        [
            row["patches"],
            f"{row['gather_seconds']:.4f}",
            f"{1000 * row['add_input_seconds']:.2f}",
            f"{1000 * row['merge_seconds']:.2f}",
            f"{row['accumulator_bytes'] / 1e3:.0f}",
            f"{row['patch_bytes'] / 1e3:.0f}",
            f"{row['peak_rss_bytes'] / 1e6:.0f}",
            f"{(row['peak_rss_bytes'] - row['rss_before_bytes']) / 1e6:.0f}",
        ]
        for row in found["accumulators"]
    ]
    header = ["patches", "gathering them, s", "adding a batch, ms", "merging two, ms", "accumulator, kB"]
    header += ["patches themselves, kB", "peak of the process, MB", "of which for this, MB"]
    about = (
        f"Patches of dimension {found['dimension']}. Size and merging don't depend on how many an accumulator holds."
    )
    return [about, "", table(header, cells)]


def _memory_lines(found: Mapping[str, Any]) -> list[str]:
    cells = [
        [count, f"{peak / 1e6:.0f}", f"{seconds:.1f}"]
        for count, peak, seconds in zip(found["images"], found["peak_rss_bytes"], found["seconds"], strict=True)
    ]
    verdict = "kept" if found["growth"] < GROWTH_TARGET else "MISSED"
    return [
        f"Images of {found['size']} x {found['size']} pixels, one bundle.",
        "",
        table(["images", "peak, MB", "s"], cells),
        "",
        f"It grows by {found['growth']:.1%}; target, less than {GROWTH_TARGET:.0%}: {verdict}.",
    ]


def _charts(found: Mapping[str, Any]) -> list[str]:
    """The curves of what was measured."""
    charts = []
    if "overhead" in found:
        names = {"job": "job", "plain": "plain loop", "overhead": "difference"}
        curves = {
            title: [(row["images"], row[f"{name}_milliseconds_per_image"]) for row in found["overhead"]]
            for name, title in names.items()
        }
        charts.append(log_chart.draw("Milliseconds for each image", "images", curves))
    if "accumulators" in found:
        names = {"accumulator_bytes": "accumulator", "patch_bytes": "the patches themselves"}
        curves = {
            title: [(row["patches"], row[name] / 1e6) for row in found["accumulators"]] for name, title in names.items()
        }
        charts.append(log_chart.draw("Megabytes", "patches", curves))
        names = {"gather_seconds": "gathering", "add_input_seconds": "adding a batch", "merge_seconds": "merging two"}
        curves = {
            title: [(row["patches"], row[name]) for row in found["accumulators"]] for name, title in names.items()
        }
        charts.append(log_chart.draw("Seconds", "patches", curves))
    return charts


if __name__ == "__main__":
    main()
