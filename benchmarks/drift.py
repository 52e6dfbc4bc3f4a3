"""Is drift found, and what does looking for it cost?

A map is fitted on 50 photographs of BSDS500 and JPEG files of quality 10 of 50 others. 200 more photographs are then
transported, compressed to the quality that the map was fitted for and to others, by dot-transport with --max_drift.
The cost is that of a job with and without statistics of its latents, in turns.

    python -m benchmarks.drift --output benchmarks/results/drift.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import apache_beam as beam
import numpy as np
from PIL import Image

from benchmarks.restorers import shared_data
from pipelines import fit, transport
from transforms import ListImages, TransportImages, WriteDrift, WriteManifest

FITTED = 10


def compressed(photos: Sequence[Path], folder: Path, quality: int) -> Path:
    """JPEG files of photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in photos:
        with Image.open(path) as photo:
            photo.save(folder / path.name, "JPEG", quality=quality)
    return folder


def found(inputs: Path, map_url: str, threshold: float, output: Path) -> str:
    """A row of the table: what a job tells of its inputs, and its exit code."""
    given = ["--input", str(inputs), "--map", map_url, "--output", str(output)]
    code = transport.main([*given, "--max_drift", str(threshold)])
    drift = json.loads((output / "drift.json").read_text())["inputs"]
    written = len(list((output / "images").iterdir()))
    return (
        f"| {inputs.name} | {written} | {drift['distance_squared']:.2f} | {drift['standard_distance_squared']:.1f} "
        f"| {drift['standard_noise_floor']:.1f} | {drift['relative']:.3f} | {code} |"
    )


def seconds(inputs: Path, map_url: str, output: Path, gathered: bool) -> float:
    """Of a job that does or doesn't gather statistics."""
    start = time.perf_counter()
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        images, _ = pipeline | ListImages(str(inputs))
        outcome = images | TransportImages(map=map_url, output=str(output), statistics=gathered)
        _ = outcome.records | WriteManifest(str(output))
        if gathered:
            _ = outcome.statistics | WriteDrift(map_url, str(output))
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("drift-work"))
    parser.add_argument("--qualities", type=int, nargs="+", default=[10, 20, 30])
    parser.add_argument("--threshold", type=float, default=0.15)
    parser.add_argument("--runs", type=int, default=5, help="with and without statistics")
    args = parser.parse_args(argv)
    photos = sorted((shared_data() / "photos").glob("*/*.jpg"))
    photos = [photos[i] for i in np.random.default_rng(0).permutation(len(photos))]
    natural, source = (compressed(photos[:50], args.work / "natural", 100), photos[50:100])
    restored, map_url = compressed(source, args.work / "restored", FITTED), f"{args.work}/map.safetensors"
    if fit.main(["--target", str(natural), "--source", str(restored), "--map", map_url]):
        raise SystemExit("the fit failed")
    rows = []
    for quality in args.qualities:
        inputs = compressed(photos[100:], args.work / f"quality {quality}", quality)
        rows.append(found(inputs, map_url, args.threshold, args.work / "out" / str(quality)))
    timed: dict[bool, list[float]] = {False: [], True: []}
    some = compressed(photos[100:], args.work / "timed", FITTED)
    seconds(some, map_url, args.work / "timed-out", True)  # the first is always the slowest
    for _ in range(args.runs):
        for gathered, times in timed.items():
            times.append(seconds(some, map_url, args.work / "timed-out", gathered))
    without, with_them = (statistics.median(times) for times in timed.values())
    page = [
        "# Drift\n",
        f"A map fitted for JPEG of quality {FITTED}; each row is a job over 200 other photographs with "
        f"`--max_drift {args.threshold}`.\n",
        "| inputs | images written | squared distance from the map's source | in standard deviations | by chance "
        "| relative drift | exit code |",
        "|---|---|---|---|---|---|---|",
        *rows,
        f"\nGathering costs {with_them / without - 1:+.1%}: {with_them:.2f} s instead of {without:.2f} s for 200 "
        f"photographs, medians of {args.runs} jobs each, in turns "
        f"(without: {_range(timed[False])}; with: {_range(timed[True])}).",
        "\n    python -m benchmarks.drift --output benchmarks/results/drift.md",
    ]
    args.output.write_text("\n".join(page) + "\n")


def _range(times: Sequence[float]) -> str:
    return f"{min(times):.2f} to {max(times):.2f} s"


if __name__ == "__main__":
    main()
