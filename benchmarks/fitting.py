"""What fitting costs beside the encoder: dot-fit against the encoder alone, on the same images.

    python -m benchmarks.fitting --output benchmarks/results/fitting.md

- encoder: `encode` of tensors that are in memory, image by image with all threads, as dot-fit encodes.
- job: dot-fit, its whole second run in one process: checks, listing, reading, decoding, statistics, the fit, the map.

Both in one precision, each in a process of its own, alternating; what the job takes beyond the encoder is everything
else. Ratios are medians of the repeats' ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Figures, describe, machine, photographs, run_child, table

#: What is promised: everything but the encoder, as a share of the encoder.
TARGET = 0.05


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=int, default=64, help="of the source, and as many of the target")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 512], help="bounds of their sides")
    parser.add_argument("--precision", nargs="+", default=["float32"], help="as dot-fit takes it")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    environment = {"OMP_NUM_THREADS": str(args.threads), "CUDA_VISIBLE_DEVICES": ""}
    (low, high), rows = args.size, []
    with tempfile.TemporaryDirectory() as work:
        paths: list[str] = []
        for seed, side in enumerate(("source", "target")):
            paths += photographs(Path(work) / "images" / side, args.images, low, high, seed=seed)
            photographs(Path(work) / "warm_up" / side, 4, low, high, seed=10 + seed)
        folders = {name: f"{work}/{name}" for name in ("images", "warm_up")}
        for precision in args.precision:
            settings = {**folders, "work": work, "paths": paths, "threads": args.threads, "precision": precision}
            found: dict[str, list[Figures]] = {"encoder": [], "job": []}
            for _ in range(args.repeat):
                for name, figures in found.items():
                    figures.append(run_child("benchmarks.fitting_parts", name, settings, environment))
            rows.append(_row(precision, len(paths), found))
    page = render(rows, args.repeat)
    print(page)
    if args.output:
        args.output.write_text(page)


def _row(precision: str, count: int, found: dict[str, list[Figures]]) -> Figures:
    pairs = list(zip(found["job"], found["encoder"], strict=True))
    return {
        "precision": precision,
        "images": count,
        "share": statistics.median(job["seconds"] / alone["seconds"] - 1 for job, alone in pairs),
        "shares": [job["seconds"] / alone["seconds"] - 1 for job, alone in pairs],
        **{name: statistics.median(one["seconds"] for one in figures) for name, figures in found.items()},
    }


def render(rows: Sequence[Figures], repeat: int) -> str:
    """The Markdown page."""
    cells = [
        [
            row["precision"],
            row["images"],
            f"{row['encoder']:.1f}",
            f"{row['job']:.1f}",
            f"{row['share']:.1%}",
            ", ".join(f"{share:.1%}" for share in row["shares"]),
        ]
        for row in rows
    ]
    verdict = "kept" if rows[0]["share"] <= TARGET else "MISSED"
    header = ["precision", "images", "encoder alone, s", "dot-fit, s", "everything else", "each repeat"]
    lines = ["# Fitting", "", describe(machine()), "", "`python -m benchmarks.fitting` says what is measured."]
    lines += ["", f"Medians of {repeat}.", "", table(header, cells), ""]
    lines += [f"Target, at most {TARGET:.0%} of the encoder in {rows[0]['precision']}: {verdict}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
