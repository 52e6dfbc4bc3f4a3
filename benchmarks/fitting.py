"""What fitting costs beside the encoder: dot-fit against the encoder alone, on the same images.

    python -m benchmarks.fitting --images 128 512 --output benchmarks/results/fitting.md
    python -m benchmarks.fitting --images 24 192 --vae stable-diffusion --repeat 1 --output fitting-sd.md

- encoder: `encode` of tensors that are in memory, image by image with all threads, or with a core for each image.
- job: dot-fit, its whole second run in one process: checks, listing, reading, decoding, statistics, the fit, the map.

Each in a process of its own, alternating; what the job takes beyond the faster of the two encoders is everything else.
Part of that comes once for a map, whatever the number of images: so it is measured for a few and for many. Ratios are
medians of the repeats' ratios. The autoencoder that ships is a small one, which makes everything else large;
`--vae stable-diffusion` takes the architecture of a large one, with random weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import STABLE_DIFFUSION, Figures, autoencoder, describe, machine, photographs, run_child, table
from benchmarks.pages import write_page

#: What is promised: everything but the encoder, as a share of the encoder.
TARGET = 0.05


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=int, nargs="+", default=[128, 1024], help="half of each side")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 512], help="bounds of their sides")
    parser.add_argument("--precision", default="float32", help="as dot-fit takes it")
    parser.add_argument("--vae", help=f"as dot-fit takes it, its default, or {STABLE_DIFFUSION}")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    environment = {"OMP_NUM_THREADS": str(args.threads), "CUDA_VISIBLE_DEVICES": ""}
    low, high = args.size
    with tempfile.TemporaryDirectory() as work:
        for seed, side in enumerate(("source", "target")):
            photographs(Path(work) / "warm_up" / side, 4, low, high, seed=10 + seed)
        vae = autoencoder(args.vae, Path(work), environment)
        rows = []
        for images in args.images:
            folder = Path(work) / f"{images}"
            paths: list[str] = []
            for seed, side in enumerate(("source", "target")):
                paths += photographs(folder / side, images // 2, low, high, seed=seed)
            settings: Figures = {"work": work, "warm_up": f"{work}/warm_up", "images": str(folder), "paths": paths}
            settings |= {"threads": args.threads, "precision": args.precision, "vae": vae}
            found: dict[str, list[Figures]] = {"encoder": [], "side_by_side": [], "job": []}
            for _ in range(args.repeat):
                for name, figures in found.items():
                    figures.append(run_child("benchmarks.fitting_parts", name, settings, environment))
            rows.append(_row(len(paths), found))
    page = render(rows, args.vae or "default", args.precision, args.repeat)
    print(page)
    if args.output:
        write_page(args.output, page)


def _row(images: int, found: dict[str, list[Figures]]) -> Figures:
    seconds = {name: [one["seconds"] for one in figures] for name, figures in found.items()}
    best = [min(pair) for pair in zip(seconds["encoder"], seconds["side_by_side"], strict=True)]
    shares = [job / alone - 1 for job, alone in zip(seconds["job"], best, strict=True)]
    return {
        "images": images,
        "share": statistics.median(shares),
        "shares": shares,
        **{name: statistics.median(times) for name, times in seconds.items()},
    }


def render(rows: Sequence[Figures], vae: str, precision: str, repeat: int) -> str:
    """The Markdown page."""
    cells = [
        [
            f"{row['images']:,}",
            *(f"{row[name]:.1f}" for name in ("encoder", "side_by_side", "job")),
            f"{row['share']:.1%}",
            ", ".join(f"{share:.1%}" for share in row["shares"]),
        ]
        for row in rows
    ]
    header = ["images", "encoder alone, s", "a core for each image, s", "dot-fit, s", "everything else", "each repeat"]
    lines = ["# Fitting", "", describe(machine()), "", "`python -m benchmarks.fitting` says what is measured."]
    lines += ["", f"Autoencoder {vae} in {precision}; medians of {repeat}.", "", table(header, cells), ""]
    if len(rows) > 1:
        few, many = rows[0], rows[-1]
        alone = [min(row["encoder"], row["side_by_side"]) for row in (few, many)]
        share = (many["job"] - few["job"]) / (alone[1] - alone[0]) - 1
        more = many["images"] - few["images"]
        lines += [
            f"The {more:,} images more alone cost {share:.1%} beside the encoder; the rest comes once for a map.",
            "",
        ]
    kept = ", ".join(f"{'kept' if row['share'] <= TARGET else 'MISSED'} with {row['images']:,} images" for row in rows)
    lines += [f"Target, at most {TARGET:.0%} of the encoder: {kept}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
