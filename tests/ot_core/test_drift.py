from __future__ import annotations

import math

import numpy as np
import pytest

from ot_core import GaussianStatistics, TransportMap
from ot_core.drift import drift_of

DIMENSION = 8
MIXING = np.random.default_rng(7).standard_normal((DIMENSION, DIMENSION))


def _parts(seed: int, mean: float, scale: float = 1.0, images: int = 20) -> list[GaussianStatistics]:
    """Of images whose patches are much alike, so that chance is in the images rather than the patches."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(4):
        content = rng.standard_normal((images, 1, DIMENSION))
        patches = (content + 0.3 * rng.standard_normal((images, 50, DIMENSION))) @ MIXING * scale + mean
        parts.append(GaussianStatistics.of(patches.reshape(-1, DIMENSION)))
    return parts


def _map(**known: object) -> TransportMap:
    sides = {"source": _parts(0, 0.0, 0.5), "target": _parts(1, 3.0)}
    parts = {f"{side}/{i}": part for side, several in sides.items() for i, part in enumerate(several)}
    totals = {side: GaussianStatistics.total(several) for side, several in sides.items()}
    return TransportMap.fit(**totals, **{"parts": parts, **known})


def test_what_is_distributed_like_the_source_has_drifted_by_nothing_but_chance():
    relative = [drift_of(_parts(seed, 0.0, 0.5), _map(), "source").relative for seed in range(10, 20)]
    assert max(relative) < 0.05
    plain = [drift_of(_parts(seed, 0.0, 0.5), _map(parts={}), "source").relative for seed in range(10, 20)]
    assert np.mean(plain) > 1.5 * np.mean(relative)  # the noise floor is what makes the difference


def test_what_is_distributed_like_the_target_has_drifted_all_the_way():
    drift = drift_of(_parts(20, 3.0), _map(), "source")
    assert drift.relative == pytest.approx(1, abs=0.1)
    assert drift.standard_noise_floor < 0.2 * drift.standard_distance_squared
    assert drift_of(_parts(20, 3.0), _map(), "target").relative < 0.1


def test_the_further_the_more():
    found = [drift_of(_parts(30, shift, 0.5), _map(), "source").relative for shift in (0.5, 1.0, 2.0)]
    assert found == sorted(found)
    assert found[0] > 0.01


def test_a_difference_in_what_restoring_keeps_is_content_and_no_drift():
    invariant = np.ones((1, DIMENSION))
    plain, matched = (drift_of(_parts(40, 1.0, 0.5), m, "source") for m in (_map(), _map(invariant=invariant)))
    assert matched.distance_squared < 0.8 * plain.distance_squared


def test_fewer_than_two_patches_tell_nothing():
    assert drift_of([], _map(), "source") is None
    assert drift_of([GaussianStatistics.single(np.zeros(DIMENSION))], _map(), "source") is None


def test_against_a_map_whose_sides_do_not_differ_any_drift_is_infinite():
    parts = _parts(0, 0.0)
    unmoved = TransportMap.fit(GaussianStatistics.total(parts), GaussianStatistics.total(parts[::-1]))
    drift = drift_of(_parts(5, 4.0), unmoved, "source")
    assert drift.standard_noise_floor is None
    assert drift.relative == math.inf
    assert drift_of(parts[1:] + parts[:1], unmoved, "source").relative == 0
