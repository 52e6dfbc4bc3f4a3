"""The most memory that dot-transport holds: for few and for many images in a bundle, on one harness thread and on four.

    python -m benchmarks.memory --output benchmarks/results/memory.md

Many images are the same few, under further names: what is asked is whether anything piles up. On several threads Beam
works on as many bundles at once in one process; everything that waits is bounded for the process, so they should hold
little more than one does.
"""

from __future__ import annotations

import argparse
import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import describe, fit_map, machine, photographs, run_child, table
from benchmarks.pages import publish

_DISTINCT = 64


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=int, nargs=2, default=[500, 20_000], help="few and many, for one thread")
    parser.add_argument("--size", type=int, default=128, help="sides of these")
    parser.add_argument("--large_images", type=int, default=192, help="for several threads")
    parser.add_argument("--large_size", type=int, nargs=2, default=[384, 640], help="bounds of the sides of these")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    args = parser.parse_args(argv)
    publish(functools.partial(_page, args), args.output)


def _page(args: argparse.Namespace, work: Path) -> str:
    photographs(work / "warm_up", 4, 96, 128, seed=1)
    for name, vae in (("pixels", ["--vae", "pixels", "--patch_size", "1"]), ("default", list[str]())):
        fit_map(work, vae, 96, 128, name)
    few, many = (_peak(work, count, [args.size] * 2, 1, "pixels") for count in args.images)
    one, several = (_peak(work, args.large_images, args.large_size, n, "default") for n in (1, args.threads))
    low, high = args.large_size
    return "\n\n".join(
        [
            "# Memory of a job",
            f"{describe(machine())} `python -m benchmarks.memory` says what is measured.",
            f"One bundle of images of {args.size} x {args.size} pixels, no model to speak of:",
            table(["images", "peak, MB"], zip(args.images, [f"{x / 1e6:.0f}" for x in (few, many)], strict=True)),
            f"It grows by {many / few - 1:.1%}.",
            f"{args.large_images} photographs of {low} to {high} pixels a side, the default autoencoder:",
            table(
                ["harness threads", "peak, MB"],
                [[1, f"{one / 1e6:.0f}"], [args.threads, f"{several / 1e6:.0f}"]],
            ),
            f"{args.threads} threads hold {several / one:.2f} times as much as one.",
        ]
    )


def _peak(work: Path, count: int, size: Sequence[int], threads: int, model: str) -> int:
    folder, output = work / "input", work / "output"
    photographs(folder, count, size[0], size[1], seed=0, distinct=_DISTINCT)
    parallel = ["--direct_running_mode", "multi_threading", "--direct_num_workers", str(threads)]
    settings = {
        "vae": "pixels" if model == "pixels" else None,
        "precision": "float32",
        "threads": 2,
        "map": str(work / f"{model}.safetensors"),
        "input": str(folder),
        "warm_up": str(work / "warm_up"),
        "output": str(output),
        "job_args": [*parallel, *(["--format", "jpeg"] if model == "pixels" else [])],
    }
    figures = run_child("benchmarks.throughput_job", "job", settings, {"CUDA_VISIBLE_DEVICES": ""})
    for used in (folder, output):
        shutil.rmtree(used)
    print(f"{count} images, {threads} threads: {figures['peak_rss_bytes'] / 1e6:.0f} MB", flush=True)
    return int(figures["peak_rss_bytes"])


if __name__ == "__main__":
    main()
