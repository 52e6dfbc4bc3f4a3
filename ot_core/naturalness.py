"""Measures of what autoencoders add and lose: a weave, the spectrum, and the edges of an image.

PSNR and distances between features hardly see them, and people do. Images are (H, W, 3) uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
_Plane = NDArray[np.float64]

_LUMA: Final = np.array([0.299, 0.587, 0.114])
#: Power of rounding to 8 bits, in squared grey levels: what lies below is never seen.
_ROUNDING: Final = 1 / 12
#: Frequencies whose distance from a weave's, in steps of the transform, makes them its neighbours.
_NEAR, _FAR = 3, 6
_WINDOW: Final = 64
#: Rows and columns that count as the edge, and that are left out between it and the inside.
_EDGE, _BETWEEN = 4, 16


def log_spectral_distance(images: Sequence[Pixels], originals: Sequence[Pixels]) -> float:
    """Error of the radial log power spectrum in dB, the mean over images.

    For each image the root mean square, over rings of frequencies one step wide, of the difference of
    10 log10(power + 1/12): the mean power of luma in a ring, in squared grey levels, after a Hann window.

    Args:
        images: of any sizes.
        originals: as many, of the same sizes.
    """
    errors = [
        np.sqrt(np.mean((_rings(image) - _rings(original)) ** 2))
        for image, original in zip(images, originals, strict=True)
    ]
    return float(np.mean(errors))


def grid_power(images: Sequence[Pixels], period: int = 4) -> float:
    """Power at the frequencies of a pattern that repeats every so many pixels, against their neighbours.

    Measured in windows of 64 x 64 pixels of luma, half of which overlap, so that a faint weave in a smooth sky counts
    as much as a strong one in grass: the mean, over windows and the multiples of 1 / period in both directions but for
    0, of the power there divided by the mean power of the frequencies 3 to 6 steps away. About 1 for photographs.

    Args:
        images: of any sizes from 64 pixels on.
        period: in pixels, a divisor of 64.

    Raises:
        ValueError: if no image is that large.
    """
    step = _WINDOW // period
    rows, columns = (index.ravel()[1:] * step for index in np.indices((period, period)))
    offsets = range(-_FAR, _FAR + 1)
    near_rows, near_columns = np.array(
        [(i, j) for i in offsets for j in offsets if max(abs(i), abs(j)) >= _NEAR], dtype=int
    ).T
    found = []
    for image in (image for image in images if min(image.shape[:2]) >= _WINDOW):
        windows = np.lib.stride_tricks.sliding_window_view(luma(image), (_WINDOW, _WINDOW))
        for row in windows[:: _WINDOW // 2, :: _WINDOW // 2]:
            power = _power(row) + _ROUNDING
            nearby = power[:, (rows[:, None] + near_rows) % _WINDOW, (columns[:, None] + near_columns) % _WINDOW].mean(
                2
            )
            found.append(power[:, rows, columns] / nearby)
    if not found:
        raise ValueError(f"grid_power: expected an image of at least {_WINDOW}x{_WINDOW} pixels")
    return float(np.mean(np.concatenate(found)))


def edge_energy(images: Sequence[Pixels], originals: Sequence[Pixels]) -> tuple[float, float, float, float]:
    """Detail along the top, bottom, left and right edges against the inside, relative to that of the originals.

    Detail is the mean squared difference of neighbouring pixels of luma along the edge, in the outermost four rows or
    columns, and more than 16 pixels inside. Each is summed over images. 1 where edges are as they should be.

    Args:
        images: of any sizes from 48 pixels on.
        originals: as many, of the same sizes.
    """
    found, expected = _edges(images), _edges(originals)
    top, bottom, left, right = (float(quotient) for quotient in found / expected)
    return top, bottom, left, right


def _edges(images: Sequence[Pixels]) -> _Plane:
    """Detail at the four edges, each divided by the inside's."""
    edges, inside = np.zeros(4), np.zeros(4)
    for image in images:
        for turn, plane in enumerate((whole := luma(image), whole[::-1], whole.T, whole.T[::-1])):
            detail = np.square(np.diff(plane, axis=1))
            edges[turn] += detail[:_EDGE].mean()
            inside[turn] += detail[_BETWEEN:-_BETWEEN, _BETWEEN:-_BETWEEN].mean()
    return (edges + _ROUNDING) / (inside + _ROUNDING)


def luma(image: NDArray[np.generic]) -> _Plane:
    """Brightness (H, W) of (H, W, 3), in the same units."""
    plane: _Plane = image @ _LUMA
    return plane


def _power(planes: _Plane) -> _Plane:
    """Power at each frequency of planes (..., H, W), in their squared units: 1 for white noise of deviation 1."""
    window = np.hanning(planes.shape[-2])[:, None] * np.hanning(planes.shape[-1])
    centred = planes - planes.mean((-2, -1), keepdims=True)
    power: _Plane = np.abs(np.fft.fft2(centred * window)) ** 2 / (window**2).sum()
    return power


def _rings(image: Pixels) -> _Plane:
    """10 log10 of the mean power in each ring, without the innermost."""
    power = _power(luma(image))
    steps = min(power.shape)
    frequency = np.hypot(np.fft.fftfreq(power.shape[0])[:, None], np.fft.fftfreq(power.shape[1]))
    ring = np.minimum((frequency * steps).astype(int), steps // 2).ravel()
    mean = np.bincount(ring, power.ravel()) / np.maximum(np.bincount(ring), 1)
    decibels: _Plane = 10 * np.log10(mean[1:] + _ROUNDING)
    return decibels
