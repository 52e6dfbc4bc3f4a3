"""Drift is how far images are from those of a map, and is told from what as many images would give by chance."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from ot_core import FittedMap, GaussianStatistics, LatentSpace, latent_statistics
from ot_core.drift import LIMIT, Drift, DriftMeter, Verdict
from ot_core.parts import Part
from tests.fitted_maps import fit

#: How sharp the images of the source, of the target, and of another restorer are.
SOURCE, TARGET, OTHER = 0.3, 1.0, 0.7


def _images(n: int, seed: int, sharpness: float, channels: int = 2) -> list[GaussianStatistics]:
    """Of latents that differ in contrast, sharpness and mean, as those of photographs do."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        noise = rng.standard_normal((channels, 26, 26))
        smooth = sum(noise[:, y : y + 24, x : x + 24] for y in range(3) for x in range(3)) / 3
        detail = sharpness * math.exp(0.2 * rng.standard_normal()) * noise[:, 1:25, 1:25]
        latent = math.exp(0.5 * rng.standard_normal()) * (smooth + detail) + 0.5 * rng.standard_normal((channels, 1, 1))
        one = latent_statistics(torch.from_numpy(latent), 3)
        assert one is not None
        found.append(one)
    return found


def _set(n: int, seed: int, sharpness: float) -> GaussianStatistics:
    return GaussianStatistics.total(_images(n, seed, sharpness))


def _map(images: int = 24, seed: int = 0, **known: Any) -> FittedMap:
    sides = {"source": _images(images, seed, SOURCE), "target": _images(images, seed + 1, TARGET)}
    parts = {Part(side, i): GaussianStatistics.total(of[i::4]) for side, of in sides.items() for i in range(4)}
    return FittedMap.fit(parts, LatentSpace(3, 2), **known)


@pytest.fixture(scope="module")
def meter() -> DriftMeter:
    return DriftMeter(_map(), "source")


def _without_images(statistics: GaussianStatistics) -> GaussianStatistics:
    return GaussianStatistics(statistics.count, statistics.mean, statistics.scatter)


def test_no_more_than_one_in_a_hundred_sets_of_any_size_is_unlike_what_it_is_drawn_from():
    found = [
        DriftMeter(_map(seed=2 * seed), "source").drift_of(_set(n, 1000 + 10 * seed + n, SOURCE)).verdict(0)
        for seed in range(25)
        for n in (1, 3, 5, 8, 20)
    ]
    assert found.count(Verdict.UNLIKE) <= 0.01 * len(found)


def test_another_restorer_is_found_from_thirty_images(meter):
    found = [meter.drift_of(_set(30, seed, OTHER)) for seed in range(100, 110)]
    assert [drift.verdict() for drift in found] == [Verdict.UNLIKE] * 10
    assert min(drift.relative for drift in found) > LIMIT


def test_enough_images_of_the_same_restorer_are_like_those_of_the_map(meter):
    assert meter.drift_of(_set(60, 200, SOURCE)).verdict() == Verdict.LIKE


@pytest.mark.parametrize("sharpness", [SOURCE, OTHER])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_few_images_are_too_few_to_judge_whatever_they_are(meter, n, sharpness):
    drift = meter.drift_of(_set(n, 300 + n, sharpness))
    assert drift.images == n
    assert drift.verdict() == Verdict.UNKNOWN
    assert drift.by_chance > meter.drift_of(_set(30, 300, sharpness)).by_chance > 0


def test_what_is_distributed_like_the_source_has_drifted_by_nothing_but_chance(meter):
    sets = [_set(20, seed, SOURCE) for seed in range(10, 20)]
    assert np.mean([meter.drift_of(one).relative for one in sets]) < 0.05
    fitted = _map()
    plain = DriftMeter(fit(fitted.source, fitted.target, 3), "source")
    assert np.mean([plain.drift_of(one).relative for one in sets]) > 1.5 * np.mean(
        [meter.drift_of(one).relative for one in sets]
    )  # the noise floor is what makes the difference


def test_the_noise_floor_is_what_is_expected_of_as_many_images():
    meters = [DriftMeter(_map(seed=2 * seed), "source") for seed in range(12)]
    for n in (8, 40):
        found = [meter.drift_of(_set(n, 400 + 10 * i, SOURCE)) for i, meter in enumerate(meters)]
        distances = [one.standard_distance_squared for one in found]
        assert np.mean(distances) == pytest.approx(np.mean([one.standard_noise_floor for one in found]), rel=0.4)


def test_the_target_is_as_far_from_the_source_as_that_is_from_it(meter):
    drift = meter.drift_of(_map().target)
    assert drift.relative == pytest.approx(1, abs=0.1)
    assert drift.verdict() == Verdict.UNLIKE
    assert DriftMeter(_map(), "target").drift_of(_map().target).relative == 0


def test_the_further_the_more(meter):
    found = [meter.drift_of(_set(60, 30, sharpness)) for sharpness in (0.4, 0.6, 1.5)]
    relative, p_values = [drift.relative for drift in found], [drift.p_value for drift in found]
    assert relative == sorted(relative)
    assert p_values == sorted(p_values, reverse=True)


def test_a_difference_in_what_restoring_keeps_is_content_and_no_distance():
    invariant = np.ones((1, 18))
    moved = GaussianStatistics.total(
        [GaussianStatistics(one.count, one.mean + 2, one.scatter, one.images) for one in _images(40, 40, SOURCE)]
    )
    plain, matched = (DriftMeter(m, "source").drift_of(moved) for m in (_map(), _map(invariant=invariant)))
    assert matched.distance_squared < 0.8 * plain.distance_squared


def test_fewer_than_two_patches_tell_nothing(meter):
    assert meter.drift_of(GaussianStatistics.single(np.zeros(18))) is None


def test_without_knowing_the_images_nothing_is_judged(meter):
    known, old = _set(60, 50, TARGET), _map()
    old = replace(old, statistics={part: _without_images(found) for part, found in old.statistics.items()})
    for drift in (meter.drift_of(_without_images(known)), DriftMeter(old, "source").drift_of(known)):
        assert drift.p_value is drift.by_chance is None
        assert drift.standard_noise_floor < drift.standard_distance_squared / 10  # counted in patches
        assert drift.verdict() == Verdict.UNKNOWN
        assert drift.relative == pytest.approx(1, abs=0.5)
    assert meter.drift_of(_without_images(known)).images == 0


def test_against_a_map_whose_sides_do_not_differ_any_drift_is_infinite():
    of = _images(24, 0, SOURCE)
    parts = {Part(side, i): GaussianStatistics.total(of[i::4]) for side in ("source", "target") for i in range(4)}
    total = GaussianStatistics.total(of)
    unmoved = DriftMeter(FittedMap.fit(parts, LatentSpace(3, 2)), "source")
    assert unmoved.drift_of(_set(30, 5, TARGET)).relative == math.inf
    assert unmoved.drift_of(_set(30, 5, TARGET)).verdict() == Verdict.UNLIKE
    assert unmoved.drift_of(total).relative == 0


def test_the_p_value_is_that_of_students_test_of_the_spectra():
    night, transport_map = _images(7, 60, 0.4), _map(images=16)
    source = [one.images.mean for one in _images(16, 0, SOURCE)]
    tests = scipy.stats.ttest_ind([one.images.mean for one in night], source)
    drift = DriftMeter(transport_map, "source").drift_of(GaussianStatistics.total(night))
    assert drift.p_value == pytest.approx(min(1, tests.pvalue.min() * len(tests.pvalue)), rel=0.03)


@pytest.mark.parametrize(
    ("relative", "by_chance", "p_value", "images", "verdict"),
    [
        (0.3, 0.1, 0.001, 30, Verdict.UNLIKE),
        (0.3, 0.1, 0.1, 30, Verdict.UNKNOWN),
        (0.3, 0.1, 0.001, 4, Verdict.UNKNOWN),
        (0.3, 0.6, 0.001, 30, Verdict.UNLIKE),
        (0.1, 0.1, 0.001, 30, Verdict.LIKE),
        (0.1, 0.1, 1.0, 30, Verdict.LIKE),
        (0.1, 0.3, 1.0, 30, Verdict.UNKNOWN),
        (math.inf, math.inf, 0.0, 30, Verdict.UNLIKE),
        (math.inf, math.inf, 1.0, 30, Verdict.UNKNOWN),
        (0.0, 0.0, 1.0, 30, Verdict.LIKE),
        (9.0, None, 0.0, 30, Verdict.UNKNOWN),
        (9.0, 0.1, None, 30, Verdict.UNKNOWN),
    ],
)
def test_unlike_is_what_exceeds_the_limit_and_what_chance_explains(relative, by_chance, p_value, images, verdict):
    assert Drift(100, images, 1.0, 1.0, by_chance, relative, by_chance, p_value).verdict(0.2) == verdict
