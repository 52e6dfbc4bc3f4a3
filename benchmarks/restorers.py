"""Classical and learned restorers whose over-smooth results the method is measured on.

Each takes an original photograph and a seed, degrades it and restores it: (H, W, 3) uint8 to the same.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from skimage.restoration import denoise_nl_means
from torch import nn

Pixels = NDArray[np.uint8]
SIGMA = 50 / 255


def shared_data() -> Path:
    """The folder of photographs and weights for evaluation: $DOT_SHARED/data, or ../shared/data beside the project."""
    return Path(os.environ.get("DOT_SHARED") or Path(__file__).resolve().parents[2] / "shared") / "data"


def nlm50(original: Pixels, seed: int) -> Pixels:
    """Gaussian noise of sigma 50, removed by non-local means."""
    restored = denoise_nl_means(
        _noisy(original, seed),
        patch_size=5,
        patch_distance=6,
        h=0.8 * SIGMA,
        sigma=SIGMA,
        fast_mode=True,
        channel_axis=-1,
    )
    return _to_uint8(restored)


def dncnn50(original: Pixels, seed: int) -> Pixels:
    """Gaussian noise of sigma 50, removed by DnCNN on each colour channel on its own."""
    channels = torch.from_numpy(_noisy(original, seed)).float().permute(2, 0, 1)[:, None]
    with torch.inference_mode():
        restored = channels - _dncnn()(channels)
    return _to_uint8(restored[:, 0].permute(1, 2, 0).numpy())


def jpeg10(original: Pixels, seed: int) -> Pixels:
    """JPEG of quality 10; nothing random in it."""
    buffer = io.BytesIO()
    Image.fromarray(original).save(buffer, "JPEG", quality=10)
    return np.asarray(Image.open(buffer).convert("RGB"))


RESTORERS: dict[str, Callable[[Pixels, int], Pixels]] = {"nlm50": nlm50, "dncnn50": dncnn50, "jpeg10": jpeg10}


def restored_folder(photos: list[Path], restorer: str, folder: Path) -> Path:
    """Fills a folder with the restorations of photographs, `<name>.png` each, as far as it lacks them."""
    folder.mkdir(parents=True, exist_ok=True)
    for photo in photos:
        path = folder / f"{photo.stem}.png"
        if not path.exists():
            with Image.open(photo) as image:
                original = np.asarray(image.convert("RGB"))
            Image.fromarray(RESTORERS[restorer](original, int(photo.stem))).save(path)
    return folder


def _noisy(original: Pixels, seed: int) -> NDArray[np.float64]:
    return original / 255 + np.random.default_rng(seed).normal(0, SIGMA, original.shape)


def _to_uint8(values: NDArray[Any]) -> Pixels:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


@functools.cache
def _dncnn() -> nn.Module:
    """17 layers; predicts the noise of a grey image in [0, 1]."""
    layers: list[nn.Module] = [nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.ReLU()]
    for _ in range(15):
        layers += [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.Conv2d(64, 1, 3, padding=1, bias=False))
    network = nn.Sequential(*layers)
    weights = load_file(shared_data() / "denoisers" / "dncnn-s-50.safetensors")
    # Batch norm's batch counter isn't among the weights; it plays no part in inference.
    network.load_state_dict({key.removeprefix("dncnn."): value for key, value in weights.items()}, strict=False)
    return network.eval()
