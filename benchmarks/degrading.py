"""Fitting with --degrade: what it is worth over unpaired images, and whether what dot-fit says beforehand is right.

Photographs of BSDS500, their central 256 x 256 pixels: 16 of its training set are the natural ones, 16 others of it are
degraded and restored for the unpaired fit, and 16 of its validation set are degraded, restored and transported by both
maps. The judge is that of benchmarks/judge.py: the squared Gelbrich distance to the originals in the latent space of
FLUX.2's tiny autoencoder. dot-fit's sentence is of pairs that it kept back, and of measures of its own. It is right

- where it says "helps", if at the alpha that it gives, on the validation images, the judge finds the results nearer to
  the originals than the restorations, PSNR is no lower (by 0.1 dB), and neither is the spectrum's error more than 1 dB
  above the restorations' nor a weave above 1.5 times its neighbours;
- where it says "trades", if all that holds but PSNR;
- where it says "does not help", if it holds at no alpha.

    python -m benchmarks.degrading --output benchmarks/results/degrading.md

Real-ESRGAN and waifu2x are tried where their wheels are installed (benchmarks/restorers.py).
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.judge import judged, load, looks_of, psnr, sample
from benchmarks.pages import write_page
from benchmarks.restorers import shared_data
from ot_core import DecodedImage, Degradation, UserError, gelbrich_distance_squared, load_restorer, read_map
from ot_core.check import MapCheck
from ot_core.naturalness import grid_power, log_spectral_distance
from pipelines import fit, transport

CROP, TESTS = 256, 16
_DENOISERS = shared_data() / "denoisers"
#: Degradation and restorer of each row; of JPEG the decoder is the restorer.
ROWS = {
    "non-local means, noise of sigma 25": ("noise:25", "benchmarks.restorers:non_local_means_25"),
    "non-local means, noise of sigma 50": ("noise:50", "benchmarks.restorers:non_local_means_50"),
    "DnCNN, noise of sigma 25": ("noise:25", str(_DENOISERS / "dncnn-s-25.safetensors")),
    "DnCNN, noise of sigma 50": ("noise:50", str(_DENOISERS / "dncnn-s-50.safetensors")),
    "JPEG of quality 10": ("jpeg:10", None),
    "bicubic enlargement x4": ("bicubic:4", "bicubic:4"),
    "Real-ESRGAN x4plus": ("bicubic:4", "benchmarks.restorers:real_esrgan"),
    "waifu2x x2, photographs": ("bicubic:2,jpeg:40", "benchmarks.restorers:waifu2x"),
}
ALPHAS = (0.0, 0.25, 0.5, 0.75)
#: A sentence's "helps" allows this loss of PSNR on other photographs, in dB.
_ALIKE_DB = 0.1


@dataclass(frozen=True)
class Figures:
    """Mean PSNR in dB, the judge's distance, the spectrum's error, a weave, and how `benchmarks.judge` tells these."""

    psnr: float
    distance: float
    spectrum: float
    grid: float
    looks: str

    @classmethod
    def of(cls, results: Path, originals: Path) -> Figures:
        """Of the images of a folder, whose originals have the same names in another."""
        paths = sorted(results.iterdir())
        others = [originals / path.name for path in paths]
        images, wanted = ([load(path) for path in side] for side in (paths, others))
        found = float(np.mean([psnr(a, b) for a, b in zip(images, wanted, strict=True)]))
        distance = gelbrich_distance_squared(judged(tuple(paths)), judged(tuple(others)))
        spectrum, grid = log_spectral_distance(images, wanted), grid_power(images)
        return cls(found, distance, spectrum, grid, looks_of(images, wanted))

    def natural_beside(self, restored: Figures) -> bool:
        """Whether they look more natural than the restorations."""
        unspoilt = self.spectrum <= restored.spectrum + 1 and self.grid <= max(1.5, restored.grid)
        return unspoilt and self.distance < restored.distance

    def exact_beside(self, restored: Figures) -> bool:
        """Whether they are as near to the originals as the restorations."""
        return self.psnr >= restored.psnr - _ALIKE_DB

    def beside(self, restored: Figures) -> str:
        """A cell of the table."""
        share = 100 * self.distance / restored.distance
        return f"{self.psnr:.2f} / {self.distance:.3f} ({share:.0f}%) / {self.looks}"


def rows(name: str, work: Path, vae: str | None) -> tuple[str, str]:
    """A row of each table: what the fits are worth, and what was said beforehand."""
    degrade, restorer = ROWS[name]
    train = sample(shared_data() / "photos/train", 32, seed=0)
    tests = sample(shared_data() / "photos/val", 30 + TESTS, seed=1)[30:]  # methods were chosen on the first 30
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
    arguments = ["--input", str(kept), "--map", paired, "--output", str(second), *chosen]
    assert transport.main([*arguments, "--alpha", *map(str, ALPHAS)]) == 0
    before = Figures.of(kept, original)
    unpaired_figures = Figures.of(first / "images/alpha=0.00", original)
    results = {alpha: Figures.of(second / f"images/alpha={alpha:.2f}", original) for alpha in ALPHAS}
    cells = [figures.beside(before) for figures in (before, unpaired_figures, results[0.0])]
    check = read_map(paired).check
    assert check is not None
    advised = check.alpha if check.alpha is not None else check.bold_alpha
    at_advised = "" if advised is None else results[advised].beside(before)
    said = [check.sentence, at_advised, "yes" if _right(check, before, results) else "no"]
    return f"| {name} | `{degrade}` | {' | '.join(cells)} |", f"| {name} | {' | '.join(said)} |"


def _right(check: MapCheck, before: Figures, results: dict[float, Figures]) -> bool:
    """Whether a sentence holds on other photographs: see the module's docstring."""
    if check.alpha is not None:
        return results[check.alpha].natural_beside(before) and results[check.alpha].exact_beside(before)
    if check.bold_alpha is not None:
        return results[check.bold_alpha].natural_beside(before)
    return not any(found.natural_beside(before) and found.exact_beside(before) for found in results.values())


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


def main() -> None:
    """Runs all rows and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vae", help="autoencoder that transports; default the one that ships with the package")
    parser.add_argument("--work", type=Path, default=Path("build/degrading"), help="folder for images and maps")
    parser.add_argument("--output", type=Path, help="Markdown file to write; default: print only")
    args = parser.parse_args()
    names = []
    for name, (_, restorer) in ROWS.items():
        try:
            if restorer:
                load_restorer(restorer)  # what is missing shows now
            names.append(name)
        except UserError as error:
            print(f"left out: {error}")
    found = [rows(name, args.work / str(index), args.vae) for index, name in enumerate(names)]
    vae = args.vae or "the default autoencoder"
    table = [
        f"Transported in the latent space of {vae}, by maps fitted on 16 photographs; {TESTS} test "
        "photographs. In each cell: PSNR in dB / the judge's distance to the originals (its share of the "
        "restorations' own) / error of the radial log power spectrum in dB / power at a period of four pixels "
        "against its neighbours / detail at the edge that differs most from the inside's, relative to the "
        "originals'.",
        "",
        "## Transported fully (alpha 0)",
        "",
        "| restored by | `--degrade` | the restoration | fitted unpaired | fitted with `--degrade` |",
        "|---|---|---|---|---|",
        *(worth for worth, _ in found),
        "",
        "## What dot-fit says beforehand, and what other photographs show",
        "",
        "| restored by | dot-fit's sentence | the test photographs at that alpha | right |",
        "|---|---|---|---|",
        *(said for _, said in found),
    ]
    print("\n".join(table))
    if args.output:
        write_page(args.output, "\n".join(["# Fitting with --degrade", "", *table]))


if __name__ == "__main__":
    main()
