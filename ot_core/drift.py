"""How far what a map is used on has moved from what it was fitted on, and whether that is more than chance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ot_core.fitted_map import FittedMap
from ot_core.noise import variance_of_mean
from ot_core.parts import SIDES
from ot_core.statistics import Array, GaussianStatistics
from ot_core.transport_map import RANK_TOLERANCE, gelbrich_distance_squared

#: The relative drift from which on images are unlike those that a map was fitted on, unless told otherwise.
LIMIT = 0.15
#: A difference that chance alone gives less often than this is one; of fewer images than these, none is.
_SIGNIFICANT, _FEWEST = 0.003, 5
_ROUNDING = 1e-12


class Verdict(StrEnum):
    """Whether a set of images is like those that a map was fitted on."""

    LIKE = "like"
    UNLIKE = "unlike"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Drift:
    """Squared Wasserstein distance of a set of latent patches from one side of a map.

    In the latents' own units, most of any distance comes from the scenes of the images: scenes vary in the directions
    in which latents are large, and restoring changes little there. So the distance is also taken in units of the side's
    standard deviation in each direction. There fine detail counts as much, and a few dozen images are enough to tell
    another restorer from other scenes.

    Attributes:
        patches: how many the set has.
        images: how many images the patches are of; 0 if unknown.
        distance_squared: from that side, as the map measures distances.
        standard_distance_squared: from that side, in units of its standard deviations.
        standard_noise_floor: how much of that is expected by chance, from as many images of the side's own
            distribution (from as many patches, if the images are unknown). None if the map has no random parts.
        relative: what is left of it above the noise floor, as a share of the distance between the map's two sides in
            the same units: 0 is no drift, and 1 is as far away as restored images are from natural ones; any is
            infinite where these are alike. Where the floor isn't known, nothing is taken off.
        by_chance: the noise floor in the same measure; None where it isn't known, or images aren't.
        p_value: how often as many images of the side's own distribution would differ as much from it, or more; None
            where that isn't known.
    """

    patches: int
    images: int
    distance_squared: float
    standard_distance_squared: float
    standard_noise_floor: float | None
    relative: float
    by_chance: float | None
    p_value: float | None

    def verdict(self, limit: float = LIMIT) -> Verdict:
        """Whether the drift is larger than the limit.

        It is, or isn't known, where it is found to be; which of the two depends on whether chance explains it. It
        isn't known either where chance alone is expected to give as much, since then no drift may be luck as well.
        """
        if self.by_chance is None or self.p_value is None or self.images < _FEWEST:
            return Verdict.UNKNOWN
        if self.relative > limit and self.p_value < _SIGNIFICANT:
            return Verdict.UNLIKE
        return Verdict.UNKNOWN if max(self.relative, self.by_chance) > limit else Verdict.LIKE


class DriftMeter:
    """Measures drift from one side of a map.

    To first order, n images of the distribution of the side's N are at an expected squared distance of v (1/n + 1/N)
    from it. The map's random halves tell v. Patches of one image are much alike, so images are what counts.

    How far is one question, and whether that is chance another. The distance answers the second badly: a few images of
    much contrast are far from any others. So it is put to the spectra of the images (`ot_core.patches.spectrum`), of
    which each component's mean is compared by Student's t-test, and the least of the p-values is taken times their
    number (Bonferroni).

    Args:
        fitted: the map.
        side: source or target.
    """

    def __init__(self, fitted: FittedMap, side: str) -> None:
        (other,) = set(SIDES) - {side}
        self._map, self._fitted = fitted.map, fitted.side(side)
        self._to_standard = _inverse_root(self._fitted.covariance())
        self._standard = self._transformed(self._fitted)
        scale = gelbrich_distance_squared(self._transformed(fitted.side(other)), self._standard)
        nothing = RANK_TOLERANCE * len(self._to_standard)  # what rounding makes of no distance, beside a variance of 1
        self._scale, self._nothing = scale if scale > nothing else 0.0, nothing
        self._variance = variance_of_mean([self._transformed(part) for part in fitted.parts_of(side).values()])

    def _transformed(self, statistics: GaussianStatistics) -> GaussianStatistics:
        matrix = self._to_standard
        scatter = matrix @ statistics.scatter @ matrix.T
        return GaussianStatistics(statistics.count, matrix @ statistics.mean, (scatter + scatter.T) / 2)

    def _relative(self, distance: float) -> float:
        if self._scale:
            return max(0.0, distance) / self._scale
        return math.inf if distance > self._nothing else 0.0

    def _noise_floor(self, found: GaussianStatistics) -> float | None:
        """What is expected of as many images, in units of the side's standard deviations; where a file of an earlier
        version doesn't tell images, of as many patches.
        """
        if math.isnan(self._variance):
            return None
        known = found.images is not None and self._fitted.images is not None
        one, other = (found.images, self._fitted.images) if known else (found, self._fitted)
        assert one is not None
        assert other is not None
        return self._variance * (1 + other.count / one.count)

    def drift_of(self, found: GaussianStatistics) -> Drift | None:
        """The drift of a set of patches; None of fewer than two."""
        if found.count < 2:
            return None
        distance = gelbrich_distance_squared(self._transformed(found), self._standard)
        floor = self._noise_floor(found)
        return Drift(
            patches=found.count,
            images=found.images.count if found.images else 0,
            distance_squared=self._map.distance_squared(found, self._fitted),
            standard_distance_squared=distance,
            standard_noise_floor=floor,
            relative=self._relative(distance - (floor or 0.0)),
            by_chance=None
            if floor is None or found.images is None or self._fitted.images is None
            else self._relative(floor),
            p_value=_p_value(found.images, self._fitted.images),
        )


def _p_value(a: GaussianStatistics | None, b: GaussianStatistics | None) -> float | None:
    """Of Student's t-test of each component, times their number; None where there are fewer than three vectors."""
    if a is None or b is None or a.count + b.count < 3 or a.dimension != b.dimension:
        return None
    freedom = a.count + b.count - 2
    variances = np.maximum((np.diag(a.scatter) + np.diag(b.scatter)) / freedom, _ROUNDING)
    t_squared = float(np.max((a.mean - b.mean) ** 2 / variances)) / (1 / a.count + 1 / b.count)
    # The normal deviate of the same probability, to three digits (Wallace, 1959): numpy has no Student's t.
    deviate = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t_squared / freedom))
    return min(1.0, math.erfc(deviate / math.sqrt(2)) * a.dimension)


def _inverse_root(covariance: Array) -> Array:
    """(k, D): takes vectors of this covariance, of rank k, to those of covariance 1."""
    values, vectors = np.linalg.eigh(covariance)
    positive = values > RANK_TOLERANCE * max(float(values[-1]), 0.0)
    inverse_root: Array = (vectors[:, positive] / np.sqrt(values[positive])).T
    return inverse_root
