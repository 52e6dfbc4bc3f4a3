"""How much of a distance between two sets of images is the luck of which images they happen to hold."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ot_core.statistics import Array, GaussianStatistics
from ot_core.transport_map import gelbrich_distance_squared, matched


def noise_floor(
    source: Sequence[GaussianStatistics], target: Sequence[GaussianStatistics], invariant: Array | None = None
) -> float:
    """The squared Wasserstein distance expected between two sets as large as these, drawn from one distribution.

    To first order the squared distance between samples of n and m images is v (1/n + 1/m), with v a property of
    the distribution. v is measured on each side from its random halves, and counted in patches rather than images.

    Args:
        source: statistics of a random split of the source's images into two parts or more.
        target: the same of the target's.
        invariant: what distances are matched in, as in `TransportMap`.

    Returns:
        v_source / n_source + v_target / n_target, in squared units of the latents; NaN where a side has not two parts.
    """
    return variance_of_mean(source, invariant) + variance_of_mean(target, invariant)


def variance_of_mean(parts: Sequence[GaussianStatistics], invariant: Array | None = None) -> float:
    """One side's v / n, as `noise_floor` has it, averaged over the ways to halve its parts; NaN of fewer than two."""
    if len(parts) < 2:
        return float("nan")
    estimates = []
    for chosen in combinations(range(len(parts)), len(parts) // 2):
        if len(parts) % 2 == 0 and 0 not in chosen:
            continue  # the same two halves the other way round
        first = functools.reduce(operator.add, (parts[i] for i in chosen))
        second = functools.reduce(operator.add, (part for i, part in enumerate(parts) if i not in chosen))
        if min(first.count, second.count) < 2:
            continue
        share = first.count / (first.count + second.count)
        if invariant is not None:
            second = matched(first, second, invariant)
        estimates.append(share * (1 - share) * gelbrich_distance_squared(first, second))
    return float(np.mean(estimates)) if estimates else float("nan")
