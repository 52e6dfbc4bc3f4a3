"""How near one image is to another, pixel by pixel: PSNR, SSIM and LPIPS, and how they add up over a set."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ot_core.autoencoder import default_device
from ot_core.errors import UserError
from ot_core.features import read_weights

Pixels = NDArray[np.generic]
#: Pixels worked on at a time, so that memory doesn't grow with the image.
_BAND_PIXELS = 2**20
#: Half of SSIM's window of 11 pixels: what a band needs of its neighbours, and one less than the smallest image.
_SSIM_MARGIN = 5
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
    """What torchmetrics' StructuralSimilarityIndexMeasure(data_range=1) gives, in memory that doesn't grow.

    Returns:
        None for images of fewer than 6 pixels a side, for which it isn't defined.

    Raises:
        UserError: if torchmetrics isn't installed.
    """
    if min(a.shape[:2]) <= _SSIM_MARGIN:
        return None
    index = _torchmetrics().structural_similarity_index_measure
    total, height = 0.0, a.shape[0]
    for rows in _bands(a):
        top, bottom = max(0, rows.start - _SSIM_MARGIN), min(height, rows.stop + _SSIM_MARGIN)
        pair = [_to_tensor(x[top:bottom]) for x in (a, b)]
        _, full = index(*pair, data_range=1.0, return_full_image=True)
        total += float(full[:, :, rows.start - top : rows.stop - top].sum(dtype=torch.float64))
    return total / a.size


class Lpips:
    """LPIPS with AlexNet, version 0.1: the weights of its five layers come with torchmetrics, AlexNet's from a file.

    Args:
        weights: path or fsspec URL of torchvision's AlexNet, `alexnet-owt-7be5be79.pth`.
        device: torch device; default CUDA where there is one.

    Raises:
        UserError: if the file isn't that, or torchmetrics isn't installed.
    """

    def __init__(self, weights: str, device: str | None = None) -> None:
        _torchmetrics()
        # The public function takes no file: it downloads, which a worker may not be able to.
        from torchmetrics.functional.image.lpips import _NoTrainLpips  # noqa: PLC0415 - an extra

        network = _NoTrainLpips(net="alex", pnet_rand=True)
        state = read_weights(weights, "lpips_weights")
        ours = {name: state.get(f"features.{name.split('.', 1)[1]}") for name in network.net.state_dict()}
        try:
            network.net.load_state_dict(ours)
        except (RuntimeError, AttributeError):
            raise UserError(f"lpips_weights {weights}: expected torchvision's AlexNet, features.0.weight ...") from None
        self._device = device or default_device()
        self._network = network.to(self._device)

    def __call__(self, a: Pixels, b: Pixels) -> float | None:
        """The distance of two images (H, W, 3) of one shape; None for images too small for the network."""
        if min(a.shape[:2]) < _LPIPS_SMALLEST:
            return None
        with torch.inference_mode():
            pair = [_to_tensor(x).to(self._device) for x in (a, b)]
            return float(self._network(*pair, normalize=True))


@functools.lru_cache(maxsize=1)
def load_lpips(weights: str) -> Lpips:
    """`Lpips`, loaded once per process."""
    return Lpips(weights)


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
        count: number of images.
        mse: mean over all pixels of the set.
        psnr: mean over images.
        ssim: the same.
        lpips: the same.
    """

    count: int = 0
    mse: Mean = Mean()
    psnr: Mean = Mean()
    ssim: Mean = Mean()
    lpips: Mean = Mean()

    @classmethod
    def of(cls, quality: Quality, pixels: int) -> QualityTotals:
        """One image of so many pixels."""
        return cls(
            1, Mean.of(quality.mse, pixels), Mean.of(quality.psnr), Mean.of(quality.ssim), Mean.of(quality.lpips)
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
        )

    @property
    def psnr_pooled(self) -> float | None:
        """PSNR of the set as if it were one image, in dB."""
        return None if self.mse.value is None else psnr_of(self.mse.value)


def check_installed() -> None:
    """Raises UserError unless torchmetrics is there."""
    _torchmetrics()


def _torchmetrics() -> Any:
    try:
        from torchmetrics.functional import image  # noqa: PLC0415 - an extra
    except ImportError:
        raise UserError("evaluating needs torchmetrics: pip install 'dot-beam[evaluate]'") from None
    return image


def _bands(pixels: Pixels) -> Iterator[slice]:
    height, width = pixels.shape[:2]
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def _unit(pixels: Pixels) -> NDArray[np.float64]:
    return pixels.astype(np.float64) / (255 if pixels.dtype == np.uint8 else 1)


def _to_tensor(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(_unit(pixels).transpose(2, 0, 1).astype(np.float32))[None]
