"""Real photographs and a real denoiser: what the README promises.

On crops, and with non-local means: a denoiser that learned takes a hundred times as long on a slow core.
"""

from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from benchmarks.judge import latents_of, load, psnr, sample
from benchmarks.restorers import RESTORERS
from ot_core import gelbrich_distance_squared
from pipelines import fit, transport

CROP, TRANSPORTED = 128, 16


def _crops(photos, folder, restore=None):
    """Central crops of photographs, restored or not, under their names; gives the folder as a flag takes it."""
    folder.mkdir()
    for path in photos:
        with Image.open(path) as photo:
            left, top = (photo.width - CROP) // 2, (photo.height - CROP) // 2
            pixels = np.asarray(photo.convert("RGB").crop((left, top, left + CROP, top + CROP)))
        pixels = pixels if restore is None else restore(pixels, int(path.stem))
        Image.fromarray(pixels).save(folder / f"{path.stem}.png")
    return str(folder)


@pytest.fixture(scope="module")
def run(shared, tmp_path_factory):
    """16 natural and 16 other restored photographs fit a map, which transports restorations of yet others."""
    photos, root = shared / "data" / "photos", tmp_path_factory.mktemp("photographs")
    train, tests = sample(photos / "train", 32, seed=0), sample(photos / "val", TRANSPORTED, seed=1)
    target, source = _crops(train[:16], root / "target"), _crops(train[16:], root / "source", RESTORERS["nlm50"])
    given, map_url = _crops(tests, root / "input", RESTORERS["nlm50"]), f"file://{root}/maps/run.safetensors"
    _crops(tests, root / "original")
    assert fit.main(["--target", target, "--source", source, "--map", map_url]) == 0
    output = str(root / "output")
    assert transport.main(["--input", given, "--map", map_url, "--output", output, "--alpha", "0", "0.5"]) == 0
    return root


def test_every_restoration_is_transported(run):
    names = {path.name for path in (run / "input").iterdir()}
    assert len(names) == TRANSPORTED
    for alpha in ("0.00", "0.50"):
        assert {path.name for path in (run / f"output/images/alpha={alpha}").iterdir()} == names


class _Quality(NamedTuple):
    """Mean PSNR in dB, and squared Gelbrich distance of single latent pixels, of a folder from the originals."""

    psnr: float
    distance: float


def _measured(folder, original):
    paths = sorted(folder.glob("*.png"))
    originals = [original / path.name for path in paths]
    mean = np.mean([psnr(load(path), load(other)) for path, other in zip(paths, originals, strict=True)])
    return _Quality(float(mean), gelbrich_distance_squared(latents_of(paths), latents_of(originals)))


def test_alpha_trades_naturalness_against_error(run):
    original = run / "original"
    full = _measured(run / "output/images/alpha=0.00", original)
    half = _measured(run / "output/images/alpha=0.50", original)
    restored = _measured(run / "input", original)
    assert full.distance < half.distance < restored.distance, (full, half, restored)
    assert full.distance < 0.5 * restored.distance, (full, restored)
    assert full.psnr < half.psnr
