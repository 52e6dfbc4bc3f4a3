"""Is drift found, and what does looking for it cost?

A map is fitted on 50 photographs of BSDS500 and JPEG files of quality 10 of 50 others. 200 more photographs are then
transported, compressed to the quality that the map was fitted for and to others, by dot-transport with --max_drift.
The cost is that of a job with and without statistics of its latents, in turns.

How often nights of few images are told from the map's, by mistake or rightly, is counted over draws of maps and nights
from the photographs' latents, without running jobs: the null from photographs that its constants were not chosen on.

    python -m benchmarks.drift --output benchmarks/results/drift.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import apache_beam as beam
import numpy as np
import torch
from PIL import Image

from benchmarks.pages import write_page
from benchmarks.restorers import jpeg, shared_data
from ot_core import FittedMap, GaussianStatistics, LatentSpace, latent_statistics, load_autoencoder
from ot_core.autoencoder import to_tensor
from ot_core.drift import DriftMeter, Verdict
from ot_core.parts import SOURCE, TARGET, Part
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


def of_each(photos: Sequence[Path], quality: int | None, noise: float = 0.0) -> list[GaussianStatistics]:
    """Statistics of each photograph by itself, compressed and with noise."""
    autoencoder, found = load_autoencoder(), []
    for index, path in enumerate(photos):
        with Image.open(path) as photo:
            pixels = np.asarray(photo.convert("RGB"))
        if quality is not None:
            pixels = jpeg(pixels, None, quality)
        if noise:
            noisy = pixels + np.random.default_rng(index).normal(0, noise, pixels.shape)
            pixels = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        with torch.inference_mode():
            one = latent_statistics(autoencoder.encode(to_tensor([pixels], autoencoder))[0], 3)
        assert one is not None
        found.append(one)
    return found


def draws(photos: Sequence[Path], many: int, limit: float) -> Iterator[str]:
    """Rows of a table: how often nights are told as like, unlike and unknown."""
    half = len(photos) // 2
    fitted, target = of_each(photos[:half], FITTED), of_each(photos[:half], None)
    nights = {
        f"quality {FITTED}": of_each(photos[half:], FITTED),
        "quality 30": of_each(photos[half:], 30),
        f"quality {FITTED} and noise of 10 grey levels": of_each(photos[half:], FITTED, 10.0),
    }
    rng = np.random.default_rng(0)
    for n_map in (12, 50):
        told: dict[tuple[str, int], list[Verdict]] = {}
        for _ in range(many):
            chosen = rng.permutation(half)[:n_map]
            parts = {Part(SOURCE, i): GaussianStatistics.total([fitted[j] for j in chosen[i::4]]) for i in range(4)}
            statistics = {**parts, Part(TARGET): GaussianStatistics.total(target)}
            meter = DriftMeter(FittedMap.fit(statistics, LatentSpace(3, fitted[0].dimension // 9)), SOURCE)
            for n in (3, 10, 30, 100):
                night = rng.permutation(len(photos) - half)[:n]
                for name, of in nights.items():
                    drift = meter.drift_of(GaussianStatistics.total([of[j] for j in night]))
                    assert drift is not None
                    told.setdefault((name, n), []).append(drift.verdict(limit))
        for (name, n), verdicts in told.items():
            shares = " | ".join(f"{verdicts.count(one) / many:.0%}" for one in Verdict)
            yield f"| {n_map} | {name} | {n} | {shares} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("drift-work"))
    parser.add_argument("--qualities", type=int, nargs="+", default=[10, 20, 30])
    parser.add_argument("--threshold", type=float, default=0.15)
    parser.add_argument("--runs", type=int, default=5, help="with and without statistics")
    parser.add_argument("--draws", type=int, default=200, help="of maps and nights")
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
        f"\n{args.draws} draws of a map's images and of a night's, of other photographs:\n",
        "| images of the map's source | night | images | like | unlike | can't be judged |",
        "|---|---|---|---|---|---|",
        *draws(photos, args.draws, args.threshold),
        "\n    python -m benchmarks.drift --output benchmarks/results/drift.md",
    ]
    write_page(args.output, "\n".join(page))


def _range(times: Sequence[float]) -> str:
    return f"{min(times):.2f} to {max(times):.2f} s"


if __name__ == "__main__":
    main()
