"""Does transport work, by an independent judge? Runs the two jobs and measures what they wrote.

The judge is the squared Gelbrich distance between single latent pixels of results and of originals, in the latent
space of FLUX.2's tiny autoencoder, whichever autoencoder transported. 16 natural and 16 other restored photographs
of BSDS500's training set fit the map, 30 of its validation set are transported.

    python -m benchmarks.judge --work judge-work --output benchmarks/results/judge-default.md
    python -m benchmarks.judge --vae benchmarks.flux2_tiny:autoencoder --output benchmarks/results/judge-flux2-tiny.md
"""

from __future__ import annotations

import argparse
import functools
import shutil
from pathlib import Path

import numpy as np

from benchmarks.restorers import RESTORERS, restored_folder, shared_data
from ot_core import GaussianStatistics, gelbrich_distance_squared
from pipelines import fit, transport
from pipelines.demo import latents_of, load, psnr

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
JUDGE = "benchmarks.flux2_tiny:autoencoder"


def sample(folder: Path, n: int, seed: int) -> list[Path]:
    """N photographs of a folder, the same in every run."""
    photos = sorted(folder.glob("*.jpg"))
    return [photos[i] for i in np.random.default_rng(seed).permutation(len(photos))[:n]]


@functools.cache
def judged(paths: tuple[Path, ...]) -> GaussianStatistics:
    """Statistics of images in the judge's eyes."""
    return latents_of(paths, JUDGE)


def rows(restorer: str, vae: str | None, work: Path, test_images: int) -> list[str]:
    """Table rows of one restorer: a fit, a transport, and a measurement for each alpha."""
    train = sample(shared_data() / "photos" / "train", 32, seed=0)
    tests = sample(shared_data() / "photos" / "val", test_images, seed=1)
    cache = work / "restored" / restorer
    restored_folder([*train[16:], *tests], restorer, cache)
    run = work / "run" / restorer
    shutil.rmtree(run, ignore_errors=True)
    natural, source, inputs = (_list_of(run / name) for name in ("natural.txt", "source.txt", "input.txt"))
    natural.write_text("\n".join(map(str, train[:16])))
    source.write_text("\n".join(str(cache / f"{photo.stem}.png") for photo in train[16:]))
    inputs.write_text("\n".join(str(cache / f"{photo.stem}.png") for photo in tests))
    chosen = ["--vae", vae] if vae else []
    map_url, output = str(run / "map.safetensors"), run / "out"
    assert fit.main(["--target", str(natural), "--source", str(source), "--map", map_url, *chosen]) == 0
    alphas = [str(alpha) for alpha in ALPHAS]
    arguments = ["--input", str(inputs), "--map", map_url, "--output", str(output), "--alpha", *alphas, *chosen]
    assert transport.main(arguments) == 0

    originals = judged(tuple(tests))
    lines, own = [], float("nan")
    for alpha in reversed(ALPHAS):
        results = {path.stem: path for path in (output / f"images/alpha={alpha:.2f}").rglob("*.png")}
        distance = gelbrich_distance_squared(judged(tuple(results[photo.stem] for photo in tests)), originals)
        own = distance if alpha == 1 else own
        mean = np.mean([psnr(load(results[photo.stem]), load(photo)) for photo in tests])
        lines.append(f"| {restorer} | {alpha:g} | {mean:.2f} | {distance:.3f} | {100 * distance / own:.0f}% |")
    return lines


def _list_of(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def main() -> None:
    """Runs all restorers and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vae", help="autoencoder that transports; default the one that ships with the package")
    parser.add_argument("--work", type=Path, default=Path("judge-work"), help="folder for restorations and results")
    parser.add_argument("--output", type=Path, help="Markdown file to write; default: print only")
    parser.add_argument("--restorers", nargs="+", choices=RESTORERS, default=list(RESTORERS))
    parser.add_argument("--test_images", type=int, default=30)
    args = parser.parse_args()
    table = [
        f"Transported in the latent space of: {args.vae or 'default'}; fitted on 16 + 16 unpaired images, "
        f"p = 3; {args.test_images} test images. alpha 1 is the restoration itself.",
        "",
        "| restorer | alpha | PSNR, dB | judge's distance | of the restoration's |",
        "|---|---|---|---|---|",
    ]
    for restorer in args.restorers:
        table += rows(restorer, args.vae, args.work, args.test_images)
    print("\n".join(table))
    if args.output:
        args.output.write_text("\n".join(["# Independent judge", "", *table, ""]))


if __name__ == "__main__":
    main()
