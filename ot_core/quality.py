"""How near one image is to another, pixel by pixel: PSNR, SSIM and LPIPS, and how they add up over a set."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ot_core.errors import UserError
from ot_core.features import read_weights
from ot_core.hardware import chosen_device, computing_on

Pixels = NDArray[np.generic]
#: Pixels worked on at a time, so that memory doesn't grow with the image.
_BAND_PIXELS = 2**17
#: The same for SSIM, whose windows are summed in a core's cache.
_SSIM_BAND_PIXELS = 2**14
#: Half of SSIM's window of 11 pixels: what a band needs of its neighbours, and one less than the smallest image.
_SSIM_MARGIN = 5
#: Keep SSIM's quotient from growing where images are dark or flat.
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
#: The smallest image that AlexNet leaves something of.
_LPIPS_SMALLEST = 32


class Quality(NamedTuple):
    """How near an image is to its reference.

    Attributes:
        mse: mean squared difference of pixels in [0, 1].
        ssim: structural similarity (Wang et al., 2004), or None for images of fewer than 6 pixels a side.
        lpips: learned perceptual distance (Zhang et al., 2018), or None where not measured.
    """

    mse: float
    ssim: float | None
    lpips: float | None

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB, 10 log10(1 / mse); infinite for equal images."""
        return psnr_of(self.mse)


def psnr_of(mse: float) -> float:
    """10 log10(1 / mse) in dB."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


def mean_squared_error(a: Pixels, b: Pixels) -> float:
    """Mean of (a - b)^2 in float64; (H, W, 3) of one shape, uint8 or float32 in [0, 1], taken as in [0, 1]."""
    total = sum(float(np.sum((_unit(a[rows]) - _unit(b[rows])) ** 2)) for rows in _bands(a))
    return total / a.size


def ssim(a: Pixels, b: Pixels) -> float | None:
    """Structural similarity (Wang et al., 2004): a window of 11 pixels, Gaussian of 1.5, mean over pixels and channels.

    What torchmetrics' StructuralSimilarityIndexMeasure(data_range=1) gives, ten times as fast and in memory that
    doesn't grow with the image. At the edges the images are mirrored.

    Args:
        a: (H, W, 3), uint8 or float32 in [0, 1].
        b: the same.

    Returns:
        None for images of fewer than 6 pixels a side, which can't be mirrored.
    """
    height, width = a.shape[:2]
    if min(height, width) <= _SSIM_MARGIN:
        return None
    columns = _mirrored(0, width, width)
    total = 0.0
    for band in _bands(a, _SSIM_BAND_PIXELS):
        rows = _mirrored(band.start, band.stop, height)
        x, y = (_unit(pixels[rows][:, columns]).transpose(2, 0, 1).astype(np.float32) for pixels in (a, b))
        mean_x, mean_y, squares, xy = _window_means(np.stack([x, y, x * x + y * y, x * y]))
        product, means = mean_x * mean_y, mean_x**2 + mean_y**2
        above = (2 * product + _SSIM_C1) * (2 * (xy - product) + _SSIM_C2)
        below = (means + _SSIM_C1) * (np.maximum(squares - means, 0) + _SSIM_C2)
        total += float((above / below).sum(dtype=np.float64))
    return total / a.size


def _mirrored(start: int, stop: int, length: int) -> NDArray[np.intp]:
    """Indices start to stop with a margin on both sides, mirrored where that lies outside."""
    indices = np.abs(np.arange(start - _SSIM_MARGIN, stop + _SSIM_MARGIN))
    return np.minimum(indices, 2 * (length - 1) - indices)


def _window_means(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gaussian means over the windows inside (..., H, W), one axis after the other.

    In numpy, on one core: Beam's threads work side by side, and torch would have all cores wait for each of these sums.
    """
    offsets = np.arange(-_SSIM_MARGIN, _SSIM_MARGIN + 1)
    weights = np.exp(-((offsets / 1.5) ** 2) / 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (-2, -1):
        length = values.shape[axis] - 2 * _SSIM_MARGIN
        parts = [_span(values, axis, offset, length) for offset in range(len(weights))]
        total = parts[_SSIM_MARGIN] * weights[_SSIM_MARGIN]
        for step in range(1, _SSIM_MARGIN + 1):  # the window is symmetric
            pair = parts[_SSIM_MARGIN - step] + parts[_SSIM_MARGIN + step]
            pair *= weights[_SSIM_MARGIN + step]
            total += pair
        values = total
    return values


def _span(values: NDArray[np.float32], axis: int, start: int, length: int) -> NDArray[np.float32]:
    return values[..., start : start + length, :] if axis == -2 else values[..., start : start + length]


class Lpips:
    """LPIPS with AlexNet, version 0.1: the weights of its five layers come with torchmetrics, AlexNet's from a file.

    Args:
        weights: path or fsspec URL of torchvision's AlexNet, `alexnet-owt-7be5be79.pth`.
        device: torch device; default CUDA where there is one.

    Raises:
        UserError: if the file isn't that, or torchmetrics isn't installed.
    """

    def __init__(self, weights: str, device: str | None = None) -> None:
        try:
            # The public function takes no file: it downloads, which a worker may not be able to.
            from torchmetrics.functional.image.lpips import _NoTrainLpips  # noqa: PLC0415 - an extra
        except ImportError:
            raise UserError("LPIPS needs torchmetrics and torchvision: pip install 'dot-beam[evaluate]'") from None
        network = _NoTrainLpips(net="alex", pnet_rand=True)
        state = read_weights(weights, "lpips_weights")
        ours = {name: state.get(f"features.{name.split('.', 1)[1]}") for name in network.net.state_dict()}
        try:
            network.net.load_state_dict(ours)
        except (RuntimeError, AttributeError):
            raise UserError(f"lpips_weights {weights}: expected torchvision's AlexNet, features.0.weight ...") from None
        self._device = chosen_device(device)
        self._network = network.to(self._device)

    def __call__(self, a: Pixels, b: Pixels) -> float | None:
        """The distance of two images (H, W, 3) of one shape; None for images too small for the network."""
        if min(a.shape[:2]) < _LPIPS_SMALLEST:
            return None
        with torch.inference_mode(), computing_on(self._device):
            pair = [_to_tensor(x).to(self._device) for x in (a, b)]
            return float(self._network(*pair, normalize=True))


@functools.lru_cache(maxsize=1)
def load_lpips(weights: str, device: str | None = None) -> Lpips:
    """`Lpips`, loaded once per process."""
    return Lpips(weights, device)


def measure(reference: Pixels, candidate: Pixels, lpips: Lpips | None = None) -> Quality:
    """All figures of a pair of images (H, W, 3) of one shape, uint8 or float32 in [0, 1]."""
    return Quality(
        mean_squared_error(candidate, reference),
        ssim(candidate, reference),
        None if lpips is None else lpips(candidate, reference),
    )


@dataclass(frozen=True)
class Mean:
    """A mean that adds.

    Attributes:
        total: sum of the values.
        weight: how many, or their weights' sum.
    """

    total: float = 0.0
    weight: float = 0.0

    @classmethod
    def of(cls, value: float | None, weight: float = 1.0) -> Mean:
        """One value, or none."""
        return cls() if value is None else cls(value * weight, weight)

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    @property
    def value(self) -> float | None:
        """The mean, or None of nothing."""
        return self.total / self.weight if self.weight else None


@dataclass(frozen=True)
class QualityTotals:
    """Figures of a set of images; two of them add to those of the union.

    Attributes:
        count: number of images that have a reference.
        mse: mean over all pixels of the set.
        psnr: mean over images.
        ssim: the same.
        lpips: the same.
        change: root mean squared difference from the restored image, in grey levels of 255; the mean over images.
        images: number of images, with or without a reference.
    """

    count: int = 0
    mse: Mean = Mean()
    psnr: Mean = Mean()
    ssim: Mean = Mean()
    lpips: Mean = Mean()
    change: Mean = Mean()
    images: int = 0

    @classmethod
    def of(cls, quality: Quality | None, pixels: int, change: float | None = None) -> QualityTotals:
        """One image of so many pixels; None without a reference."""
        if quality is None:
            return cls(change=Mean.of(change), images=1)
        return cls(
            1,
            Mean.of(quality.mse, pixels),
            Mean.of(quality.psnr),
            Mean.of(quality.ssim),
            Mean.of(quality.lpips),
            Mean.of(change),
            1,
        )

    @classmethod
    def sum(cls, parts: Iterable[QualityTotals]) -> QualityTotals:
        """The union of any number of sets."""
        total = cls()
        for part in parts:
            total = total + part
        return total

    def __add__(self, other: QualityTotals) -> QualityTotals:
        return QualityTotals(
            self.count + other.count,
            self.mse + other.mse,
            self.psnr + other.psnr,
            self.ssim + other.ssim,
            self.lpips + other.lpips,
            self.change + other.change,
            self.images + other.images,
        )

    @property
    def psnr_pooled(self) -> float | None:
        """PSNR of the set as if it were one image, in dB."""
        return None if self.mse.value is None else psnr_of(self.mse.value)


def _bands(pixels: Pixels, most: int = _BAND_PIXELS) -> Iterator[slice]:
    height, width = pixels.shape[:2]
    rows = max(1, most // width)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def _unit(pixels: Pixels) -> NDArray[np.float64]:
    return pixels.astype(np.float64) / (255 if pixels.dtype == np.uint8 else 1)


def _to_tensor(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(_unit(pixels).transpose(2, 0, 1).astype(np.float32))[None]
