"""How far what a map is used on has moved from what it was fitted on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ot_core.noise import noise_floor
from ot_core.statistics import Array, GaussianStatistics
from ot_core.transport_map import RANK_TOLERANCE, TransportMap, gelbrich_distance_squared


@dataclass(frozen=True)
class Drift:
    """Distance of a set of latent patches from one side of a map.

    In the latents' own units, what images happen to show makes up most of any distance: it varies in the directions in
    which latents are large, where restoring changes little. In units of the side's standard deviation in each
    direction, fine detail counts as much, and a few dozen images tell another restorer from other content.

    Attributes:
        patches: how many the set has.
        distance_squared: from that side, as the map measures distances.
        standard_distance_squared: from that side, in units of its standard deviations.
        standard_noise_floor: how much of that chance alone would give, or None where the map's random parts aren't
            known.
        relative: what is left of it above the noise floor, as a share of the distance between the map's two sides in
            the same units: 0 is no drift, and 1 is as far away as restored images are from natural ones; any is
            infinite where these are alike. Where the floor isn't known, nothing is taken off.
    """

    patches: int
    distance_squared: float
    standard_distance_squared: float
    standard_noise_floor: float | None
    relative: float


def drift_of(parts: Sequence[GaussianStatistics], transport_map: TransportMap, side: str) -> Drift | None:
    """Measures drift.

    Args:
        parts: the set's random parts.
        transport_map: the map.
        side: source or target.

    Returns:
        The drift, or None of fewer than two patches.
    """
    if sum(part.count for part in parts) < 2:
        return None
    sides = {"source": transport_map.source, "target": transport_map.target}
    found, fitted, other = GaussianStatistics.total(parts), sides.pop(side), sides.popitem()[1]
    to_standard = _inverse_root(fitted.covariance())
    standard = _transformed(fitted, to_standard)
    distance = gelbrich_distance_squared(_transformed(found, to_standard), standard)
    scale = gelbrich_distance_squared(_transformed(other, to_standard), standard)
    known = [_transformed(part, to_standard) for part in transport_map.parts_of(side)]
    floor = noise_floor(known, [_transformed(part, to_standard) for part in parts])
    excess = max(0.0, distance - floor) if math.isfinite(floor) else distance
    nothing = RANK_TOLERANCE * len(to_standard)  # what rounding makes of no distance, beside a variance of 1 each
    return Drift(
        patches=found.count,
        distance_squared=transport_map.distance_squared_between(found, fitted),
        standard_distance_squared=distance,
        standard_noise_floor=floor if math.isfinite(floor) else None,
        relative=excess / scale if scale > nothing else (math.inf if excess > nothing else 0.0),
    )


def _inverse_root(covariance: Array) -> Array:
    """(k, D): takes vectors of this covariance, of rank k, to those of covariance 1."""
    values, vectors = np.linalg.eigh(covariance)
    positive = values > RANK_TOLERANCE * max(float(values[-1]), 0.0)
    inverse_root: Array = (vectors[:, positive] / np.sqrt(values[positive])).T
    return inverse_root


def _transformed(statistics: GaussianStatistics, matrix: Array) -> GaussianStatistics:
    scatter = matrix @ statistics.scatter @ matrix.T
    return GaussianStatistics(statistics.count, matrix @ statistics.mean, (scatter + scatter.T) / 2)
