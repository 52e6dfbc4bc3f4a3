"""Does transport work, by an independent judge? Runs the two jobs and measures what they wrote.

The judge is the squared Gelbrich distance between single latent pixels of results and of originals, in the latent
space of FLUX.2's tiny autoencoder, whichever autoencoder transported. 30 photographs of BSDS500's validation set are
transported, by maps fitted on photographs of its training set in two ways:

- unpaired: 16 natural photographs and the restorations of 16 others;
- paired: the same 16 natural photographs and the restorations of those very 16. Then the two sets show the same
  things, and all that differs between them is what the restorer did.

    python -m benchmarks.judge --output benchmarks/results/judge-default.md
    python -m benchmarks.judge --method paper --vae benchmarks.flux2_tiny:autoencoder \
        --output benchmarks/results/judge-flux2-tiny.md

benchmarks/study.py compares methods, and more, on smaller images.
"""

from __future__ import annotations

import argparse
import functools
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.pages import write_page
from benchmarks.restorers import RESTORERS, restored_folder, shared_data
from ot_core import GaussianStatistics, gelbrich_distance_squared, latent_statistics, load_autoencoder
from ot_core.choices import METHODS
from ot_core.naturalness import edge_energy, grid_power, log_spectral_distance
from ot_core.quality import mean_squared_error, psnr_of
from ot_core.scenes import SceneFeatures, niqe
from pipelines import fit, transport

ALPHAS = (0.75, 0.5, 0.25, 0.0)
#: What dot-fit does for unpaired images, and with --paired.
DEFAULT_METHODS = {"unpaired": "matched", "paired": "pixels"}
JUDGE = "benchmarks.flux2_tiny:autoencoder"
Pixels = NDArray[np.uint8]


def sample(folder: Path, n: int, seed: int) -> list[Path]:
    """N photographs of a folder, the same in every run."""
    photos = sorted(folder.glob("*.jpg"))
    return [photos[i] for i in np.random.default_rng(seed).permutation(len(photos))[:n]]


def latents_of(paths: Iterable[Path], vae: str | None = None) -> GaussianStatistics:
    """Statistics of single latent pixels of images, in the default autoencoder or another."""
    autoencoder = load_autoencoder(vae)
    total: GaussianStatistics | None = None
    for path in paths:
        pixels = torch.from_numpy(load(path).transpose(2, 0, 1) / np.float32(255))[None]
        statistics = latent_statistics(autoencoder.encode(autoencoder.pad(pixels))[0], patch_size=1)
        assert statistics is not None
        total = statistics if total is None else total + statistics
    assert total is not None
    return total


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB."""
    return psnr_of(mean_squared_error(a, b))


def load(path: Path) -> Pixels:
    """An image as (H, W, 3) uint8."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@functools.cache
def judged(paths: tuple[Path, ...]) -> GaussianStatistics:
    """Statistics of images in the judge's eyes."""
    return latents_of(paths, JUDGE)


def row(restorer: str, fitting: str, method: str | None, vae: str | None, work: Path, test_images: int) -> str:
    """A row of the table: a fit, a transport, and a measurement for each alpha."""
    train = sample(shared_data() / "photos" / "train", 32, seed=0)
    tests = sample(shared_data() / "photos" / "val", test_images, seed=1)
    natural, fitted = train[:16], train[:16] if fitting == "paired" else train[16:]
    cache = restored_folder([*fitted, *tests], restorer, work / "restored" / restorer)
    run = work / "run" / restorer / fitting
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)

    def listed(name: str, paths: list[Path]) -> str:
        rows = "".join(f"{path},{path.stem}\n" for path in paths)  # keys by which --paired knows pairs
        (run / name).write_text(f"uri,key\n{rows}")
        return str(run / name)

    def restored(photos: list[Path]) -> list[Path]:
        return [cache / f"{photo.stem}.png" for photo in photos]

    chosen = ["--vae", vae] if vae else []
    method = method or DEFAULT_METHODS[fitting]
    map_url, output = str(run / "map.safetensors"), run / "out"
    sides = ["--target", listed("natural.csv", natural), "--source", listed("source.csv", restored(fitted))]
    sides += ["--paired"] if fitting == "paired" else []
    assert fit.main([*sides, "--map", map_url, "--method", method, *chosen]) == 0
    arguments = ["--input", listed("input.csv", restored(tests)), "--map", map_url, "--output", str(output), *chosen]
    assert transport.main([*arguments, "--alpha", *map(str, ALPHAS)]) == 0

    folders = [(output / f"images/alpha={alpha:.2f}").rglob("*.png") for alpha in ALPHAS]
    results = [restored(tests), *([paths[photo.stem] for photo in tests] for paths in map(_by_name, folders))]
    distances = [gelbrich_distance_squared(judged(tuple(paths)), judged(tuple(tests))) for paths in results]
    means = [np.mean([psnr(load(a), load(b)) for a, b in zip(paths, tests, strict=True)]) for paths in results]
    originals = [load(path) for path in tests]
    looks = [looks_of([load(path) for path in paths], originals) for paths in results]
    cells = [
        f"{mean:.2f} / {distance:.3f} ({100 * distance / distances[0]:.0f}%) / {look}"
        for mean, distance, look in zip(means, distances, looks, strict=True)
    ]
    return f"| {restorer} | {fitting} | {' | '.join(cells)} |"


def looks_of(images: list[Pixels], originals: list[Pixels]) -> str:
    """Error of the spectrum in dB, NIQE, power of a weave, and the edge whose detail is furthest from the inside's."""
    edge = max(edge_energy(images, originals), key=lambda ratio: abs(np.log(ratio)))
    spectrum, weave = log_spectral_distance(images, originals), grid_power(images)
    return f"{spectrum:.1f} / {mean_niqe(images):.1f} / {weave:.2f} / {edge:.2f}"


def mean_niqe(images: Sequence[Pixels]) -> float:
    """NIQE, the mean over images, against 200 photographs of the training set."""
    found = SceneFeatures().statistics(images, None)
    return float(np.mean([niqe(one, _natural_scenes()) for one in found if isinstance(one, GaussianStatistics)]))


@functools.cache
def _natural_scenes() -> GaussianStatistics:
    photos = map(load, sample(shared_data() / "photos" / "train", 200, seed=3))
    found = [SceneFeatures().statistics([photo], None)[0] for photo in photos]
    return GaussianStatistics.total([one for one in found if isinstance(one, GaussianStatistics)])


def _by_name(paths: Iterable[Path]) -> dict[str, Path]:
    return {path.stem: path for path in paths}


def main() -> None:
    """Runs all restorers and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vae", help="autoencoder that transports; default the one that ships with the package")
    parser.add_argument("--method", choices=METHODS, help="of dot-fit; default matched, and pixels where paired")
    parser.add_argument("--work", type=Path, default=Path("judge-work"), help="folder for restorations and results")
    parser.add_argument("--output", type=Path, help="Markdown file to write; default: print only")
    parser.add_argument("--restorers", nargs="+", choices=RESTORERS, default=["nlm50", "dncnn50", "jpeg10", "bicubic4"])
    parser.add_argument("--fits", nargs="+", choices=DEFAULT_METHODS, default=list(DEFAULT_METHODS))
    parser.add_argument("--test_images", type=int, default=30)
    args = parser.parse_args()
    args.work = args.work.resolve()  # lists name files below it
    table = [
        f"Transported in the latent space of: {args.vae or 'the default autoencoder'}. Fitted on 16 + 16 images, "
        f"p = 3, method {args.method or 'matched, and pixels where paired'}; {args.test_images} test images.",
        "",
        "In each cell: PSNR in dB / the judge's distance to the originals (its share of the restorations' own) / error "
        "of the radial log power spectrum in dB / NIQE against 200 photographs of the training set / power at a period "
        "of four pixels against its neighbours (about 1 in the originals) / detail at the edge that differs most from "
        "the inside's, relative to the originals'.",
        "",
        "| restorer | fitted | the restoration | " + " | ".join(f"alpha {alpha:g}" for alpha in ALPHAS) + " |",
        "|---|---|---|" + "---|" * len(ALPHAS),
    ]
    for restorer in args.restorers:
        for fitting in args.fits:
            table.append(row(restorer, fitting, args.method, args.vae, args.work, args.test_images))
    print("\n".join(table))
    if args.output:
        write_page(args.output, "\n".join(["# Independent judge", "", *table]))


if __name__ == "__main__":
    main()
