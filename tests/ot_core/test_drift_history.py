"""Runs of too few images are judged together, and no drift is hidden by what came long before."""

from __future__ import annotations

import numpy as np
import pytest

from ot_core import GaussianStatistics, LatentSpace
from ot_core.drift import Verdict
from ot_core.drift_history import DriftHistory
from ot_core.fitted_map import LatentSets
from ot_core.parts import Part

SOURCE_0 = Part("source", 0)
LIKE = LatentSets({}, LatentSpace(1, 2, "some/vae", "ab"))
U, L, X = Verdict.UNKNOWN, Verdict.LIKE, Verdict.UNLIKE


def _night(index: int, n: int = 3) -> dict[Part, GaussianStatistics]:
    """A run, of which each night's has another count."""
    rng = np.random.default_rng(index)
    return {Part(side, 0): GaussianStatistics.of(rng.standard_normal((n, 2))) for side in ("source", "results")}


def _counts(groups) -> int:
    assert (
        {found.count for found in groups.values()} in ({next(iter(groups.values())).count}, set()) if groups else True
    )
    return groups[SOURCE_0].count if groups else 0


def _runs(*runs: tuple[int, Verdict]) -> list[tuple[int, int]]:
    """Images that are judged by themselves, and together with earlier ones, in runs of so many images."""
    before, found = None, []
    for index, (n, verdict) in enumerate(runs):
        history = DriftHistory.going_on(before, _night(index, n), f"run {index}")
        found.append((_counts(history.recent), _counts(history.with_earlier())))
        before = history.in_file(LIKE, f"run {index}", verdict)
    return found


@pytest.mark.parametrize(
    ("runs", "judged"),
    [
        ([(100, L), (200, L)], [(100, 100), (200, 300)]),
        ([(100, L), (3, U), (4, U)], [(100, 100), (3, 103), (7, 107)]),
        ([(3, U), (4, U), (50, L), (5, U)], [(3, 3), (7, 7), (57, 57), (5, 62)]),
        ([(1000, L), (20, U), (20, L), (2, U)], [(1000, 1000), (20, 1020), (40, 1040), (2, 42)]),
        ([(100, L), (50, X), (3, U)], [(100, 100), (50, 150), (3, 103)]),
        ([(50, X), (3, U)], [(50, 50), (3, 3)]),
    ],
)
def test_runs_of_too_few_images_add_up_until_they_are_enough(runs, judged):
    assert _runs(*runs) == judged


def test_a_run_that_writes_its_statistics_twice_counts_once():
    before = DriftHistory.going_on(None, _night(0), "run 0").in_file(LIKE, "run 0", U)
    once = DriftHistory.going_on(before, _night(1), "run 1")
    again = DriftHistory.going_on(once.in_file(LIKE, "run 1", U), _night(1), "run 1")
    assert _counts(again.recent) == _counts(once.recent) == 6
    assert _counts(again.pending) == 3


def test_parts_that_only_one_of_the_runs_has_are_kept():
    before = DriftHistory.going_on(None, {SOURCE_0: _night(0)[SOURCE_0]}, "a").in_file(LIKE, "a", U)
    recent = DriftHistory.going_on(before, {Part("source", 3): _night(1)[SOURCE_0]}, "b").recent
    assert {part: found.count for part, found in recent.items()} == {SOURCE_0: 3, Part("source", 3): 3}


def test_of_a_file_that_tells_no_verdict_nothing_is_added():
    before = LatentSets(_night(0), LIKE.space)
    history = DriftHistory.going_on(before, _night(1), "run 1")
    assert _counts(history.with_earlier()) == 3


def test_only_what_is_recent_is_fitted_from():
    history = DriftHistory.going_on(None, _night(0), "a").in_file(LIKE, "a", L)
    history = DriftHistory.going_on(history, _night(1, 5), "b").in_file(LIKE, "b", U)
    assert [found.count for found in history.of_side("source").values()] == [5]
