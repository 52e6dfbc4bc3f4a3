"""Fitting with --degrade against fitting on unpaired images: 16 natural photographs, six restorers, the default method.

Photographs of BSDS500, their central 256 x 256 pixels: 16 of its training set are the natural ones, 16 others of it are
degraded and restored for the unpaired fit, and 10 of its validation set are degraded, restored and transported by both
maps. The judge is that of benchmarks/judge.py: the squared Gelbrich distance to the originals in the latent space of
FLUX.2's tiny autoencoder.

    python -m benchmarks.degrading --output benchmarks/results/degrading.md
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.judge import judged, sample
from benchmarks.restorers import shared_data
from ot_core import DecodedImage, Degradation, gelbrich_distance_squared, load_restorer
from ot_core.quality import mean_squared_error, psnr_of
from pipelines import fit, transport

CROP = 256
_DENOISERS = shared_data() / "denoisers"
#: Degradation and restorer of each row; of JPEG the decoder is the restorer.
ROWS = {
    "non-local means, noise of sigma 25": ("noise:25", "benchmarks.restorers:non_local_means_25"),
    "non-local means, noise of sigma 50": ("noise:50", "benchmarks.restorers:non_local_means_50"),
    "DnCNN, noise of sigma 25": ("noise:25", str(_DENOISERS / "dncnn-s-25.safetensors")),
    "DnCNN, noise of sigma 50": ("noise:50", str(_DENOISERS / "dncnn-s-50.safetensors")),
    "JPEG of quality 10": ("jpeg:10", None),
    "bicubic enlargement x4": ("bicubic:4", "bicubic:4"),
}


def row(name: str, work: Path, vae: str | None) -> str:
    """A row of the table."""
    degrade, restorer = ROWS[name]
    train, tests = sample(shared_data() / "photos/train", 32, seed=0), sample(shared_data() / "photos/val", 10, seed=1)
    shutil.rmtree(work, ignore_errors=True)
    natural, original = _crops(train[:16], work / "natural"), _crops(tests, work / "original")
    others = _crops(train[16:], work / "others")
    restored = ["--restorer", restorer] if restorer else []
    chosen = ["--vae", vae] if vae else []
    paired, unpaired = str(work / "paired.safetensors"), str(work / "unpaired.safetensors")
    assert fit.main(["--target", str(natural), "--degrade", degrade, *restored, "--map", paired, *chosen]) == 0
    sides = ["--target", str(natural), "--source", str(degraded(others, degrade, work / "others-degraded"))]
    assert fit.main([*sides, *restored, "--map", unpaired, *chosen]) == 0
    given = degraded(original, degrade, work / "degraded")
    first, second = work / "unpaired", work / "paired"
    arguments = ["--input", str(given), *restored, "--map", unpaired, "--output", str(first), *chosen]
    assert transport.main([*arguments, "--alpha", "0", "1"]) == 0
    kept = first / "images/alpha=1.00"  # restoring them again would give the same
    assert transport.main(["--input", str(kept), "--map", paired, "--output", str(second), *chosen]) == 0
    cells = [_figures(folder, original) for folder in (kept, first / "images/alpha=0.00", second / "images")]
    before = cells[0][1]
    texts = [f"{psnr:.2f} / {distance:.3f} ({100 * distance / before:.0f}%)" for psnr, distance in cells]
    return f"| {name} | `{degrade}` | {' | '.join(texts)} |"


def _crops(photos: list[Path], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for path in photos:
        with Image.open(path) as photo:
            left, top = (photo.width - CROP) // 2, (photo.height - CROP) // 2
            photo.convert("RGB").crop((left, top, left + CROP, top + CROP)).save(folder / f"{path.stem}.png")
    return folder


def degraded(originals: Path, spec: str, folder: Path) -> Path:
    """Degrades the images of a folder, each by its name as key, into another; gives that."""
    folder.mkdir()
    degradation = Degradation(spec)
    for path in originals.iterdir():
        with Image.open(path) as image:
            degraded = degradation(DecodedImage(np.asarray(image)), path.stem)
        Image.fromarray(degraded.pixels).save(folder / path.name)
    return folder


def _figures(results: Path, originals: Path) -> tuple[float, float]:
    """Mean PSNR in dB, and the judge's distance."""
    paths = sorted(results.iterdir())
    pairs = [(np.asarray(Image.open(path)), np.asarray(Image.open(originals / path.name))) for path in paths]
    psnr = float(np.mean([psnr_of(mean_squared_error(a, b)) for a, b in pairs]))
    others = tuple(originals / path.name for path in paths)
    return psnr, gelbrich_distance_squared(judged(tuple(paths)), judged(others))


def main() -> None:
    """Runs all rows and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vae", help="autoencoder that transports; default the one that ships with the package")
    parser.add_argument("--work", type=Path, default=Path("build/degrading"), help="folder for images and maps")
    parser.add_argument("--output", type=Path, help="Markdown file to write; default: print only")
    args = parser.parse_args()
    for _, restorer in ROWS.values():
        if restorer:
            load_restorer(restorer)  # what is missing shows now
    table = [
        f"Transported fully (alpha 0) in the latent space of {args.vae or 'the default autoencoder'}, by maps fitted "
        "on 16 photographs. In each cell: PSNR in dB / the judge's distance to the originals (its share of the "
        "restorations' own); 10 test photographs.",
        "",
        "| restored by | `--degrade` | the restoration | fitted unpaired | fitted with `--degrade` |",
        "|---|---|---|---|---|",
        *(row(name, args.work / str(index), args.vae) for index, name in enumerate(ROWS)),
    ]
    print("\n".join(table))
    if args.output:
        args.output.write_text("\n".join(["# Fitting with --degrade", "", *table, ""]))


if __name__ == "__main__":
    main()
