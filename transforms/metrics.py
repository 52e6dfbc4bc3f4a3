"""Beam metrics under one namespace, mirrored in a tally of this process for progress bars.

A local run executes in the launching process, which can then watch the tally; on a cluster only Beam's counters
are seen.
"""

import collections
import contextlib
import threading
import time
from collections.abc import Iterator

from apache_beam.metrics import Metrics

#: Namespace of every metric of these transforms.
METRICS_NAMESPACE = "dot"

IMAGES_LISTED = "images_listed"
IMAGES_OLDER = "images_older"
IMAGES_SKIPPED = "images_skipped"
IMAGES_RECOVERED = "images_recovered"
IMAGES_UNPAIRED = "images_unpaired"
KEYS_SHARED = "keys_shared"
IMAGES_READ = "images_read"
BYTES_READ = "bytes_read"
IMAGES_ENCODED = "images_encoded"
IMAGES_COMPARED = "images_compared"
REFERENCES_WITHOUT_CANDIDATE = "references_without_candidate"
IMAGES_TRANSPORTED = "images_transported"
IMAGES_WRITTEN = "images_written"
BYTES_WRITTEN = "bytes_written"
FAILURES = "failures"
SHARDS_WRITTEN = "shards_written"
BATCH_SIZE = "batch_size"
MAPS_WRITTEN = "maps_written"

_tally: collections.Counter[str] = collections.Counter()
_lock = threading.Lock()


def count(name: str, n: int = 1) -> None:
    """Adds to a counter; call it where an element is processed."""
    Metrics.counter(METRICS_NAMESPACE, name).inc(n)
    with _lock:
        _tally[name] += n


def observe(name: str, value: int) -> None:
    """Adds a value to a distribution."""
    Metrics.distribution(METRICS_NAMESPACE, name).update(value)


@contextlib.contextmanager
def timed(stage: str) -> Iterator[None]:
    """Records the duration of a block in the distribution `<stage>_milliseconds`, failed or not."""
    start = time.perf_counter()
    try:
        yield
    finally:
        observe(f"{stage}_milliseconds", round(1000 * (time.perf_counter() - start)))


def tally() -> collections.Counter[str]:
    """A copy of what this process has counted so far."""
    with _lock:
        return _tally.copy()
