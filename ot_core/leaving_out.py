"""How far a figure of a set of images depends on which images are in it: the jackknife that leaves out a part.

A figure is measured of all images, and again without each of a few random parts of them. Parts are sums that a job can
keep, whatever the number of images; a bootstrap over images would have to keep the images, or many sets of sums.
Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from ot_core.statistics import GaussianStatistics

#: A distance between the Gaussians of two sets of images.
Measure = Callable[[GaussianStatistics, GaussianStatistics], float]
#: Random parts of the images of an evaluation.
PARTS: Final = 8
#: Student's t that holds 95%, by the number of parts.
_STUDENT: Final = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}


class Distance(NamedTuple):
    """A distance between two sets of images.

    Attributes:
        value: between all images.
        without: the same without those of each random part, by the part's number; empty where they aren't in parts.
    """

    value: float
    without: Mapping[int, float]


def measured_distance(
    reference: Mapping[int, GaussianStatistics], candidate: Mapping[int, GaussianStatistics], measure: Measure
) -> Distance | None:
    """Distance between two sets of images by the statistics of their parts; None of fewer than 2 vectors on a side.

    Args:
        reference: by part.
        candidate: likewise; a part that both have holds the same keys.
        measure: of two Gaussians.
    """
    value = _between(list(reference.values()), list(candidate.values()), measure)
    if value is None:
        return None
    numbers = sorted(set(reference) | set(candidate))
    without = {
        number: _between(
            [part for of, part in reference.items() if of != number],
            [part for of, part in candidate.items() if of != number],
            measure,
        )
        for number in numbers
        if len(numbers) > 1
    }
    return Distance(value, {number: found for number, found in without.items() if found is not None})


def standard_error(without: Sequence[float]) -> float:
    """Of a figure, from its values without each part: sqrt((g - 1) / g sum (x - mean x)^2); NaN of fewer than two."""
    parts = len(without)
    if parts < 2:
        return math.nan
    mean = sum(without) / parts
    return math.sqrt((parts - 1) / parts * sum((value - mean) ** 2 for value in without))


def half_width(without: Sequence[float]) -> float:
    """Half of the interval around a figure that holds the true one 95 times in 100; NaN of fewer than two parts."""
    error = standard_error(without)
    return error if math.isnan(error) else _STUDENT[min(len(without), max(_STUDENT))] * error


def _between(
    some: Sequence[GaussianStatistics], others: Sequence[GaussianStatistics], measure: Measure
) -> float | None:
    if not some or not others:
        return None
    a, b = GaussianStatistics.total(some), GaussianStatistics.total(others)
    return None if min(a.count, b.count) < 2 else measure(a, b)
