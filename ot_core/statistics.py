"""Sufficient statistics of a Gaussian that add, so that any number of workers can gather them.

Statistics are held and merged in centred form (count, mean, scatter about the mean). The textbook form
(count, sum, sum of outer products) carries the same information but loses about six digits when the mean is
10^4 times the spread; the centred form loses none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GaussianStatistics:
    """Count, mean and scatter of a set of vectors; two of them add to the statistics of the union.

    Attributes:
        count: number of vectors, n >= 1.
        mean: (D,) float64, m = (1/n) sum_i x_i.
        scatter: (D, D) float64, sum_i (x_i - m)(x_i - m)^T, symmetric.
        images: statistics over the images that the vectors are of, of one vector for each
            (`ot_core.patches.spectrum`): vectors of one image are much alike, so what is chance depends on how images
            differ, and how many there are. None where that isn't known of all images.
    """

    count: int
    mean: Array
    scatter: Array
    images: GaussianStatistics | None = None

    @classmethod
    def of(cls, samples: ArrayLike) -> GaussianStatistics:
        """Statistics of samples of shape (n, D), computed in float64.

        Raises:
            ValueError: if samples isn't two-dimensional, has no rows, or holds a value that isn't finite.
        """
        x = np.asarray(samples, dtype=np.float64)
        if x.ndim != 2 or x.shape[0] == 0:
            raise ValueError(f"samples: expected shape (n, D) with n >= 1, got {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError("samples: expected finite values, got NaN or infinity")
        mean = x.mean(axis=0)
        centred = x - mean
        # The mean is rounded; folding what is left of it back keeps the last digits of data far from zero.
        residue = centred.mean(axis=0)
        centred -= residue
        scatter = centred.T @ centred
        return cls(x.shape[0], mean + residue, (scatter + scatter.T) / 2)

    @classmethod
    def single(cls, vector: ArrayLike) -> GaussianStatistics:
        """Statistics of one vector (D,): its scatter is zero, and takes no memory until it is added to another's.

        Raises:
            ValueError: if a value isn't finite.
        """
        x = np.asarray(vector, dtype=np.float64)
        if not np.isfinite(x).all():
            raise ValueError("vector: expected finite values, got NaN or infinity")
        return cls(1, x, np.broadcast_to(0.0, (x.size, x.size)))

    @classmethod
    def total(cls, parts: Sequence[GaussianStatistics]) -> GaussianStatistics:
        """The sum of at least one part: what adding them in turn gives, with one product of matrices for all means.

        Raises:
            ValueError: if the parts have different dimensions.
        """
        first, *others = parts
        if not others:
            return first
        if any(part.dimension != first.dimension for part in others):
            raise ValueError(f"statistics of dimensions {sorted({part.dimension for part in parts})} don't add")
        counts = np.array([part.count for part in parts], dtype=np.float64)
        means = np.stack([part.mean for part in parts])
        mean = counts @ means / counts.sum()
        centred = (means - mean) * np.sqrt(counts)[:, None]
        scatter = centred.T @ centred
        for part in parts:
            if part.count > 1:  # the scatter of a single vector is zero
                scatter += part.scatter
        return cls(int(counts.sum()), mean, scatter, _images_of(parts))

    def __add__(self, other: GaussianStatistics) -> GaussianStatistics:
        """Statistics of the union, by the pairwise update of Chan, Golub and LeVeque (1983).

        Raises:
            ValueError: if the two have different dimensions.
        """
        if not isinstance(other, GaussianStatistics):
            return NotImplemented
        if self.dimension != other.dimension:
            raise ValueError(f"statistics of dimension {self.dimension} and {other.dimension} don't add")
        count = self.count + other.count
        delta = other.mean - self.mean
        weight = other.count / count
        return GaussianStatistics(
            count,
            self.mean + weight * delta,
            self.scatter + other.scatter + (self.count * weight) * np.outer(delta, delta),
            _images_of((self, other)),
        )

    def __reduce__(self) -> tuple[Callable[..., GaussianStatistics], tuple[Any, ...]]:
        """Pickles half of the scatter, which is symmetric: statistics cross shuffles."""
        triangle = self.scatter[_lower(self.dimension)] if self.count > 1 else None
        return _unpickled, (self.count, self.mean, triangle, self.images)

    @property
    def dimension(self) -> int:
        """D, the length of the vectors."""
        return int(self.mean.shape[0])

    def covariance(self) -> Array:
        """Unbiased covariance scatter / (n - 1), (D, D).

        Raises:
            ValueError: if there are fewer than two vectors.
        """
        if self.count < 2:
            raise ValueError(f"covariance: expected at least 2 vectors, got {self.count}")
        return self.scatter / (self.count - 1)


def _images_of(parts: Sequence[GaussianStatistics]) -> GaussianStatistics | None:
    known = [part.images for part in parts if part.images is not None]
    return GaussianStatistics.total(known) if len(known) == len(parts) else None


def _lower(dimension: int) -> NDArray[np.bool_]:
    """Where a square matrix has its diagonal and what is below."""
    return np.tri(dimension, dtype=bool)


def _unpickled(
    count: int, mean: Array, triangle: Array | None, images: GaussianStatistics | None
) -> GaussianStatistics:
    if triangle is None:  # of one vector
        return GaussianStatistics(count, mean, np.broadcast_to(0.0, (mean.size, mean.size)), images)
    scatter, lower = np.empty((mean.size, mean.size)), _lower(mean.size)
    scatter[lower] = triangle
    scatter.T[lower] = triangle
    return GaussianStatistics(count, mean, scatter, images)
