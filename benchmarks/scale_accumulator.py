"""The part of benchmarks.scale that looks at the accumulators of statistics."""

from __future__ import annotations

import pickle
import time

import numpy as np

from benchmarks.measure import Figures, peak_rss_bytes, serve
from ot_core import GaussianStatistics
from transforms.latent_statistics import GaussianStatisticsCombineFn

#: Vectors at once, about what `latent_statistics` holds.
_BAND = 10_000


def accumulator(settings: Figures) -> Figures:
    """An accumulator of so many vectors: gathering it, adding one more to it, merging two, its size."""
    count, dimension = settings["patches"], settings["dimension"]
    before = peak_rss_bytes()
    rng = np.random.default_rng(0)
    combine = GaussianStatisticsCombineFn()
    gathered: GaussianStatistics | None = None
    seconds = 0.0
    for begin in range(0, count, _BAND):
        vectors = rng.standard_normal((min(_BAND, count - begin), dimension))
        start = time.perf_counter()
        gathered = combine.add_input(gathered, GaussianStatistics.of(vectors))
        seconds += time.perf_counter() - start
    assert gathered is not None
    another = GaussianStatistics.of(rng.standard_normal((2, dimension)))
    repeats = 20
    start = time.perf_counter()
    for _ in range(repeats):
        combine.add_input(gathered, another)
    add_input = (time.perf_counter() - start) / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        combine.merge_accumulators([gathered, gathered])
    merge = (time.perf_counter() - start) / repeats
    return {
        "patches": count,
        "gather_seconds": seconds,
        "add_input_seconds": add_input,
        "merge_seconds": merge,
        "accumulator_bytes": len(pickle.dumps(gathered, protocol=5)),
        "patch_bytes": 8 * count * dimension,
        "rss_before_bytes": before,
        "peak_rss_bytes": peak_rss_bytes(),
    }


if __name__ == "__main__":
    serve([accumulator])
