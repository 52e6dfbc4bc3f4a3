"""How far a job is, while it runs: a bar at a terminal, lines in a log, or a line of JSON for programs.

The transforms count the images (`transforms.metrics`), in this process or in those that it started; other engines are
asked for their metrics.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from pipelines.summary import DONE, Counters
from transforms import metrics

#: Seconds between two looks, at a terminal and in a log.
_AT_TERMINAL, _IN_LOG = 0.2, 5.0
#: What a job is at while a stage of this name is at work, the first that is.
_PHASES = {
    "load_model": "loading model",
    "load_restorer": "loading model",
    "fit": "solving",
    "distance": "measuring distances",
    "pack": "packing shards",
}


class Seen(NamedTuple):
    """A job's counters, and how many of its stages are at work, by name."""

    counters: Counters
    stages: Mapping[str, int]


class Step(NamedTuple):
    """How far a job is.

    Attributes:
        phase: what it is at.
        done: images that came to something.
        left: images that were listed and are not done; None where it isn't known yet.
        rate: images a second, since the first was done.
        seconds: since it was started.
    """

    phase: str
    done: int
    left: int | None
    rate: float
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """By the rate so far."""
        return self.left / self.rate if self.left is not None and self.rate else None


class _Teller(Protocol):
    interval: float

    def tell(self, step: Step) -> None: ...

    def close(self) -> None: ...


class Bar:
    """A live bar, for a terminal."""

    interval = _AT_TERMINAL

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: tqdm[Any] = tqdm(desc=title, unit=" images", mininterval=self.interval, file=sys.stderr)

    def tell(self, step: Step) -> None:
        """Redraws it."""
        self._bar.set_description(f"{self._title}: {step.phase}", refresh=False)
        self._bar.total = None if step.left is None else step.done + step.left
        self._bar.n = step.done
        self._bar.refresh()

    def close(self) -> None:
        """Leaves it where it is."""
        self._bar.close()


class Lines:
    """A line every few seconds, if something has changed."""

    interval = _IN_LOG

    def __init__(self, title: str) -> None:
        self._title, self._last = title, ""

    def tell(self, step: Step) -> None:
        """Prints it."""
        images = f"{step.done} images" if step.left is None else f"{step.done} of {step.done + step.left} images"
        said = [step.phase, images, *([f"{step.rate:.2f} images/s"] if step.rate else [])]
        if step.left and step.seconds_left is not None:
            minutes, seconds = divmod(round(step.seconds_left), 60)
            said.append(f"{minutes}:{seconds:02} left")
        line = f"{self._title}: {', '.join(said)}"
        if line != self._last:
            print(line, file=sys.stderr, flush=True)
        self._last = line

    def close(self) -> None:
        """Nothing is open."""


class JsonLines:
    """A JSON object a line: job, phase, done, left, images_per_second, seconds, seconds_left; null where not known."""

    interval = 1.0

    def __init__(self, title: str) -> None:
        self._title = title

    def tell(self, step: Step) -> None:
        """Prints it."""
        told = {
            "job": self._title,
            "phase": step.phase,
            "done": step.done,
            "left": step.left,
            "images_per_second": round(step.rate, 3),
            "seconds": round(step.seconds, 1),
            "seconds_left": None if step.seconds_left is None else round(step.seconds_left, 1),
        }
        print(json.dumps(told), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is open."""


def teller(form: str, title: str) -> _Teller | None:
    """What tells progress, for `--progress` auto, json or none."""
    if form == "none" or sys.stderr is None:
        return None
    if form == "json":
        return JsonLines(title)
    return Bar(title) if sys.stderr.isatty() else Lines(title)


def here(before: Counters | None = None) -> Callable[[], Seen]:
    """Gives a look at what this process and those that it started count from now on."""
    start = metrics.tally() if before is None else before

    def look() -> Seen:
        now = metrics.tally()
        return Seen({name: now[name] - start.get(name, 0) for name in now}, metrics.stages())

    return look


@contextmanager
def shown(form: str, title: str, work: str, look: Callable[[], Seen], limited: bool, times: int = 1) -> Iterator[None]:
    """Tells how far the job within this block is.

    Args:
        form: of `--progress`.
        title: the job's name.
        work: what it is at when nothing in particular.
        look: gives what is counted; an engine that doesn't answer is asked again.
        times: how often each image is counted.
        limited: whether not all images that are listed are taken, so that it isn't known how many are left.
    """
    chosen = None
    with suppress(OSError, ValueError):
        chosen = teller(form, title)
    if chosen is None:
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(chosen, work, look, limited, times, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(2 * _IN_LOG)  # an engine may be slow to answer


def _watch(
    chosen: _Teller, work: str, look: Callable[[], Seen], limited: bool, times: int, ended: threading.Event
) -> None:
    start, first = time.perf_counter(), None
    with suppress(OSError, ValueError, AttributeError):  # stderr may be closed, or its reader gone
        last = False
        while not last:
            last = ended.wait(chosen.interval)
            try:
                seen = look()
            except Exception:  # of an engine: each has its own
                continue
            now = time.perf_counter()
            step = _step(seen, work, limited, now - start, None if first is None else now - first, times)
            first = now if first is None and step.done else first
            chosen.tell(step)
        chosen.close()


def _step(seen: Seen, work: str, limited: bool, seconds: float, working: float | None, times: int = 1) -> Step:
    counters = seen.counters
    ended = sum(counters.get(name, 0) for name in DONE)
    begun_to_end = (metrics.THROUGH_MODEL, metrics.IMAGES_SKIPPED, metrics.FAILURES)
    done = max(ended, sum(counters.get(name, 0) for name in begun_to_end)) // times
    listed = counters.get(metrics.IMAGES_LISTED, 0) - counters.get(metrics.IMAGES_OLDER, 0)
    left = None if limited or not listed else max(listed - done, 0)
    at_work = [phase for stage, phase in _PHASES.items() if seen.stages.get(stage)]
    begun = done or counters.get(metrics.IMAGES_READ)
    phase = at_work[0] if at_work else "listing" if not begun else "writing" if left == 0 else work
    return Step(phase, done, left, done / working if working else 0.0, seconds)
