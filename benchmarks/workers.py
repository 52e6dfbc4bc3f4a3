"""Two workers against one: how dot-transport scales over worker processes, each with a core of its own.

    python -m benchmarks.workers --output benchmarks/results/workers

One worker process on one core, then two on two cores, and so on, over the same photographs with the default
autoencoder, in Beam's local runner. Starting up doesn't count, since a cluster's workers start once: time runs from the
first image written to the last, so that a worker who has nothing left to do while another works does count.

Writes `<output>.json` with every figure, and `<output>.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, Figures, describe, machine, photographs, run_child, serve, table
from benchmarks.pages import write_page

#: What is promised: so much of the speed of two workers that don't hinder each other.
TARGET = 0.9
_FIT = 16


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--size", type=int, nargs=2, default=[256, 512], help="least and most pixels of a side")
    parser.add_argument("--repeat", type=int, default=3, help="medians are reported")
    parser.add_argument("--work", type=Path, help="folder for images and results; default a temporary one")
    parser.add_argument("--output", type=Path, help="without extension")
    args = parser.parse_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    if max(args.workers) > len(cores):
        raise SystemExit(f"--workers {max(args.workers)}: there are {len(cores)} cores, and each worker needs one")
    found: Figures = {"machine": machine(), "images": args.images, "size": args.size, "repeat": args.repeat}
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        found["runs"] = _runs(args, Path(folder), cores)
    text = render(found)
    print(text)
    if args.output:
        args.output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        write_page(args.output.with_suffix(".md"), text)


def _runs(args: argparse.Namespace, work: Path, cores: Sequence[int]) -> list[Figures]:
    """A row for each number of workers, with the images' rate in each of its repetitions; they alternate."""
    low, high = args.size
    for seed, side, count in ((0, "input", args.images), (1, "source", _FIT), (2, "target", _FIT)):
        photographs(work / side, count, low, high, seed=seed)
    sides = ["--source", work / "source", "--target", work / "target", "--map", work / "map.safetensors"]
    subprocess.run([sys.executable, "-m", "pipelines.fit", *map(str, sides)], cwd=ROOT, check=True, capture_output=True)
    rates: dict[int, list[float]] = {workers: [] for workers in args.workers}
    for repeat in range(args.repeat):
        for workers in args.workers:
            output = work / f"output-{workers}-{repeat}"
            settings = {
                "cores": cores[:workers],
                "workers": workers,
                "flags": ["--input", str(work / "input"), "--map", str(work / "map.safetensors")],
                "output": str(output),
            }
            figures = run_child("benchmarks.workers", "job", settings, {"OMP_NUM_THREADS": "1"})
            rates[workers].append(figures["images_per_second"])
            print(f"{workers} workers: {rates[workers][-1]:.2f} images/s", flush=True)
    return [{"workers": workers, "images_per_second": values} for workers, values in rates.items()]


def job(settings: Figures) -> Figures:
    """dot-transport on some of the cores, in so many worker processes."""
    os.sched_setaffinity(0, settings["cores"])
    from pipelines import transport  # noqa: PLC0415 - its threads are to inherit the cores

    spread = ["--direct_running_mode=multi_processing", f"--direct_num_workers={settings['workers']}"]
    # One image at a time, as the model works anyway on one core, so that the first one is written early.
    flags = [*settings["flags"], "--output", settings["output"], "--max_batch_pixels=0", *spread]
    started = time.time()
    if code := transport.main(flags):
        raise SystemExit(code)
    return {"images_per_second": rate(Path(settings["output"]) / "images"), "job_seconds": time.time() - started}


def rate(folder: Path) -> float:
    """Images a second, from the first one written to the last."""
    times = sorted(path.stat().st_mtime for path in folder.rglob("*") if path.is_file())
    return (len(times) - 1) / (times[-1] - times[0])


def render(found: Mapping[str, Any]) -> str:
    """The Markdown page."""
    rows = [(run["workers"], statistics.median(run["images_per_second"])) for run in found["runs"]]
    base = rows[0][1] / rows[0][0]
    low, high = found["size"]
    lines = [
        "# Workers",
        "",
        describe(found["machine"]),
        "",
        "`python -m benchmarks.workers` says what is measured.",
        "",
        f"{found['images']} photographs of {low} to {high} pixels a side, JPEG to PNG; medians of {found['repeat']}.",
        "",
        table(
            ["workers, a core each", "images/s", f"times that of {rows[0][0]}"],
            [[workers, f"{speed:.2f}", f"{speed / rows[0][1]:.2f}"] for workers, speed in rows],
        ),
        "",
    ]
    for workers, speed in rows[1:]:
        verdict = "kept" if speed >= TARGET * workers * base else "MISSED"
        gain, wanted = speed / rows[0][1], TARGET * workers / rows[0][0]
        lines.append(f"Target, {wanted:g} times the speed with {workers}: {verdict} ({gain:.2f}).")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    serve([job]) if sys.argv[1:2] == ["job"] else main()
