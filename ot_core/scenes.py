"""Natural scene statistics: whether images look like photographs, without their originals (NIQE).

Mittal, Soundararajan and Bovik, Making a "completely blind" image quality analyzer, 2013. Of the luma of squares of
96 x 96 pixels, at full and at half size, 36 numbers tell how pixels are distributed after the local mean and contrast
are taken out. A Gaussian is fitted to those of some images and another to those of natural ones; NIQE is the distance
between both. The natural images are the caller's own: the published parameters are of photographs of another kind.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from ot_core.errors import Cause, ImageError
from ot_core.features import FeatureExtractor
from ot_core.naturalness import luma
from ot_core.statistics import GaussianStatistics

Pixels = NDArray[np.generic]
_Plane = NDArray[np.float64]

#: Side of a square at full size.
SQUARE: Final = 96
#: Numbers that describe a square.
DIMENSION: Final = 36
#: Deviation and reach of the window that is local, in pixels.
_DEVIATION, _REACH = 7 / 6, 3
#: Shapes of the generalised Gaussian that are tried.
_SHAPES: Final = np.arange(0.2, 10, 0.001)
#: Neighbours whose products with a pixel are looked at: right, below, and both diagonals.
_NEIGHBOURS: Final = ((0, 1), (1, 0), (1, 1), (1, -1))


class SceneFeatures(FeatureExtractor):
    """36 numbers for each square of 96 x 96 pixels, side by side from the upper left corner."""

    @staticmethod
    def distance(images: GaussianStatistics, natural: GaussianStatistics) -> float:
        """`niqe`."""
        return niqe(images, natural)

    def load(self) -> None:
        """Nothing is needed."""

    def statistics(
        self, images: Sequence[Pixels], model: None, most_pixels: int | None = None
    ) -> list[GaussianStatistics | ImageError]:
        """See the base class; images smaller than a square have none."""
        return [self._of_one(pixels) for pixels in images]

    def _of_one(self, pixels: Pixels) -> GaussianStatistics | ImageError:
        height, width = pixels.shape[:2]
        if min(height, width) < SQUARE:
            return ImageError(Cause.TOO_SMALL, f"{width}x{height} pixels; expected at least {SQUARE}x{SQUARE}")
        return GaussianStatistics.of(scene_features(pixels))


def niqe(images: GaussianStatistics, natural: GaussianStatistics) -> float:
    """Distance between the scene features of images and of natural ones; 0 where both are alike.

    sqrt(d' ((A + B) / 2)^+ d), with the difference d of the means and the covariances A and B.

    Args:
        images: of `SceneFeatures`, of one image or of many.
        natural: likewise.
    """
    difference = images.mean - natural.mean
    inverse = np.linalg.pinv((images.covariance() + natural.covariance()) / 2, hermitian=True)
    return max(float(difference @ inverse @ difference), 0.0) ** 0.5


def scene_features(pixels: Pixels) -> _Plane:
    """The 36 numbers of each square: (squares, 36).

    Args:
        pixels: (H, W, 3) of at least 96 x 96, uint8 or float32 in [0, 1].
    """
    rows, columns = (side // SQUARE * SQUARE for side in pixels.shape[:2])
    plane = luma(pixels[:rows, :columns]) * (1 if pixels.dtype == np.uint8 else 255)
    half = Image.fromarray(plane.astype(np.float32)).resize((columns // 2, rows // 2), Image.Resampling.BICUBIC)
    return np.hstack([_of_squares(plane, SQUARE), _of_squares(np.asarray(half, np.float64), SQUARE // 2)])


def _of_squares(plane: _Plane, side: int) -> _Plane:
    """18 numbers of each square of a plane in grey levels."""
    rows, columns = (length // side for length in plane.shape)
    normal = _without_contrast(plane).reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
    shape, left, right, _ = _asymmetric(normal)
    products = [_asymmetric(normal * np.roll(normal, neighbour, (1, 2))) for neighbour in _NEIGHBOURS]
    return np.stack(
        [shape, (left + right) / 2, *(number for found in products for number in (found[0], found[3], *found[1:3]))], 1
    )


def _without_contrast(plane: _Plane) -> _Plane:
    """Each pixel minus the local mean, divided by the local deviation and one grey level."""
    offsets = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64)
    window = torch.exp(-0.5 * (offsets / _DEVIATION) ** 2)
    window /= window.sum()

    def local(x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x[None, None], (_REACH,) * 4, mode="replicate")
        return F.conv2d(F.conv2d(padded, window.reshape(1, 1, -1, 1)), window.reshape(1, 1, 1, -1))[0, 0]

    x = torch.from_numpy(plane)
    mean = local(x)
    deviation = (local(x * x) - mean * mean).abs().sqrt()
    normal: _Plane = ((x - mean) / (deviation + 1)).numpy()
    return normal


def _asymmetric(squares: _Plane) -> tuple[_Plane, _Plane, _Plane, _Plane]:
    """Shape, left and right scale, and mean of the asymmetric generalised Gaussian of each square, by its moments."""
    values = squares.reshape(len(squares), -1)
    power, magnitude = np.square(values), np.abs(values)
    below, above = values < 0, values > 0
    left = np.sqrt((power * below).sum(1) / np.maximum(below.sum(1), 1))
    right = np.sqrt((power * above).sum(1) / np.maximum(above.sum(1), 1))
    skew = left / np.maximum(right, 1e-12)
    ratio = magnitude.mean(1) ** 2 / np.maximum(power.mean(1), 1e-12)
    wanted = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    ratios, gamma1, gamma2, gamma3 = _gammas()
    # The ratio of moments rises with the shape.
    at = np.searchsorted(ratios, wanted).clip(0, len(_SHAPES) - 1)
    scale = np.sqrt(gamma1[at] / gamma3[at])
    left, right = left * scale, right * scale
    return _SHAPES[at], left, right, (right - left) * gamma2[at] / gamma1[at]


@functools.cache
def _gammas() -> tuple[_Plane, _Plane, _Plane, _Plane]:
    """Ratio of moments, and the gamma function at one, two and three over each shape."""
    one, two, three = (torch.from_numpy(n / _SHAPES).lgamma().exp().numpy() for n in (1, 2, 3))
    return two**2 / (one * three), one, two, three
