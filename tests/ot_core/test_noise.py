"""The noise floor foretells the distance between samples of one distribution."""

import functools
import operator

import numpy as np
import pytest

from ot_core import GaussianStatistics, gelbrich_distance_squared, noise_floor
from ot_core.transport_map import matched


def images(count: int, rng: np.random.Generator) -> list[GaussianStatistics]:
    """Statistics of images that differ in their mean and contrast, as photographs do."""
    found = []
    for _ in range(count):
        centre, contrast = rng.normal(0, 1, 4), np.exp(rng.normal(0, 0.5))
        found.append(GaussianStatistics.of(centre + contrast * rng.standard_normal((100, 4))))
    return found


def parts(of: list[GaussianStatistics], sizes: tuple[int, ...]) -> list[GaussianStatistics]:
    ends = np.cumsum(sizes)
    return [functools.reduce(operator.add, of[end - size : end]) for end, size in zip(ends, sizes, strict=True) if size]


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8), (16, 16), (3, 11, 6, 12), (10, 10, 12)])
def test_is_the_mean_distance_of_equal_distributions(sizes):
    rng = np.random.default_rng(0)
    floors, distances = [], []
    for _ in range(300):
        source, target = images(sum(sizes), rng), images(2 * sum(sizes), rng)
        floors.append(noise_floor(parts(source, sizes), parts(target, tuple(2 * size for size in sizes))))
        whole = (functools.reduce(operator.add, side) for side in (source, target))
        distances.append(gelbrich_distance_squared(*whole))
    assert np.mean(floors) == pytest.approx(np.mean(distances), rel=0.15)


def test_is_the_mean_distance_of_equal_distributions_matched_in_their_invariants():
    rng, invariant = np.random.default_rng(1), np.eye(4)[:1]
    floors, distances, unmatched = [], [], []
    for _ in range(300):
        source, target = images(32, rng), images(32, rng)
        floors.append(noise_floor(parts(source, (16, 16)), parts(target, (16, 16)), invariant))
        unmatched.append(noise_floor(parts(source, (16, 16)), parts(target, (16, 16))))
        first, second = (functools.reduce(operator.add, side) for side in (source, target))
        distances.append(gelbrich_distance_squared(first, matched(first, second, invariant)))
    assert np.mean(floors) == pytest.approx(np.mean(distances), rel=0.15)
    assert np.mean(floors) < 0.85 * np.mean(unmatched)


def test_is_unknown_of_a_side_in_one_part():
    one = images(1, np.random.default_rng(0))
    assert np.isnan(noise_floor(one, one * 4))
