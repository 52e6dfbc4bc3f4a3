"""Beam metrics under one namespace, mirrored in a tally for progress bars.

A local run executes in the launching process, which can watch the tally; or in processes that it starts, which then
leave theirs in a folder (`shared_tally`). On a cluster only Beam's counters are seen.
"""

import collections
import contextlib
import functools
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from apache_beam.metrics import Metrics

#: Namespace of every metric of these transforms.
METRICS_NAMESPACE = "dot"

IMAGES_LISTED = "images_listed"
IMAGES_OLDER = "images_older"
FILES_IGNORED = "files_ignored"
IMAGES_NEW = "images_new"
IMAGES_CHANGED = "images_changed"
IMAGES_SKIPPED = "images_skipped"
IMAGES_RECOVERED = "images_recovered"
IMAGES_UNPAIRED = "images_unpaired"
KEYS_SHARED = "keys_shared"
IMAGES_READ = "images_read"
BYTES_READ = "bytes_read"
IMAGES_RESTORED = "images_restored"
IMAGES_ENCODED = "images_encoded"
IMAGES_COMPARED = "images_compared"
IMAGES_WITHOUT_REFERENCE = "images_without_reference"
REFERENCES_WITHOUT_CANDIDATE = "references_without_candidate"
IMAGES_TRANSPORTED = "images_transported"
IMAGES_WRITTEN = "images_written"
BYTES_WRITTEN = "bytes_written"
FAILURES = "failures"
SHARDS_WRITTEN = "shards_written"
BATCH_SIZE = "batch_size"
BATCH_PIXELS = "batch_pixels"
DEVICE_MEMORY = "device_memory_bytes"
#: A counter of batches for each device, whose name follows.
DEVICE = "batches_on_"
MAPS_WRITTEN = "maps_written"
MAPS_MOSTLY_NOISE = "maps_mostly_noise"

#: Of the tally alone.
THROUGH_MODEL = "images_through_model"
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Captured = list[tuple[Callable[[str, int], None], str, int]]


class _Thread(threading.local):
    captured: Captured | None = None


_thread = _Thread()
_tally: collections.Counter[str] = collections.Counter()
_stages: collections.Counter[str] = collections.Counter()
_lock = threading.Lock()
#: Environment variable that tells processes which folder to leave their tallies in, and seconds between two times.
_FOLDER, _SECONDS = "DOT_TALLY", 0.5
_left = 0.0
# Making one takes longer than using it.
_counter = functools.cache(functools.partial(Metrics.counter, METRICS_NAMESPACE))
_distribution = functools.cache(functools.partial(Metrics.distribution, METRICS_NAMESPACE))


def count(name: str, n: int = 1) -> None:
    """Adds to a counter; call it where an element is processed, or within `captured`."""
    if _thread.captured is not None:
        _thread.captured.append((count, name, n))
        return
    _counter(name).inc(n)
    with _lock:
        _tally[name] += n
    _leave()


def through_model(images: Iterable[tuple[_Item, _Result | Exception]]) -> Iterator[tuple[_Item, _Result | Exception]]:
    """The same, each counted in the tally once the model is done with it: Beam's counters tell of whole batches."""
    for image, result in images:
        if not isinstance(result, Exception):
            with _lock:
                _tally[THROUGH_MODEL] += 1
            _leave()
        yield image, result


def observe(name: str, value: int) -> None:
    """Adds a value to a distribution; call it as `count`."""
    if _thread.captured is not None:
        _thread.captured.append((observe, name, value))
        return
    _distribution(name).update(value)


def observe_batch(pixels: int, memory: int | None) -> None:
    """Adds what a device works on at once, as `ot_core.engine` tells it; call it as `count`."""
    observe(BATCH_PIXELS, pixels)
    if memory is not None:
        observe(DEVICE_MEMORY, memory)


@contextlib.contextmanager
def timed(stage: str) -> Iterator[Callable[[], None]]:
    """Records the duration of a block in the distribution `<stage>_milliseconds`, failed or not.

    Gives a function that starts the clock anew, for a block that has to wait before it begins.
    """
    start = time.perf_counter()

    def restart() -> None:
        nonlocal start
        start = time.perf_counter()

    with _lock:
        _stages[stage] += 1
    _leave()
    try:
        yield restart
    finally:
        with _lock:
            _stages[stage] -= 1
        observe(f"{stage}_milliseconds", round(1000 * (time.perf_counter() - start)))


@contextlib.contextmanager
def captured() -> Iterator[Captured]:
    """Keeps what this thread reports in a list, for `replay`: Beam only hears the thread that processes elements."""
    calls: Captured = []
    _thread.captured = calls
    try:
        yield calls
    finally:
        _thread.captured = None


def replay(calls: Captured) -> None:
    """Reports what another thread has captured."""
    for function, name, value in calls:
        function(name, value)


@contextlib.contextmanager
def shared_tally() -> Iterator[None]:
    """Within this block, processes that are started leave their tallies where this one finds them."""
    before = os.environ.get(_FOLDER)
    with tempfile.TemporaryDirectory(prefix="dot-tally-") as folder:
        os.environ[_FOLDER] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[_FOLDER]
            else:
                os.environ[_FOLDER] = before


def _leave() -> None:
    global _left
    folder, now = os.environ.get(_FOLDER), time.monotonic()
    if folder is None or now < _left + _SECONDS:
        return
    _left = now
    with _lock:
        told = json.dumps([_tally, _stages])
    with contextlib.suppress(OSError):  # the job that asked for it has ended
        part = Path(folder, f"{os.getpid()}.{threading.get_ident()}")
        part.write_text(told)
        part.replace(Path(folder, f"{os.getpid()}.json"))


def _others() -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    folder = os.environ.get(_FOLDER)
    for path in Path(folder).glob("*.json") if folder else ():
        if path.stem != str(os.getpid()):
            with contextlib.suppress(OSError, ValueError):
                yield json.loads(path.read_text())


def tally() -> collections.Counter[str]:
    """A copy of what this process, and those of a `shared_tally`, have counted so far."""
    with _lock:
        total = _tally.copy()
    for counted, _ in _others():
        total.update(counted)
    return total


def stages() -> collections.Counter[str]:
    """How many blocks of each `timed` stage are at work, likewise."""
    with _lock:
        total = _stages.copy()
    for _, at_work in _others():
        total.update(at_work)
    return total
