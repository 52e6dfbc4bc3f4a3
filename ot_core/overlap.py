"""Doing slow things ahead of time and behind, so that waiting for a store overlaps with work."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")
#: Calls at once, which hides a store's latency of 50 ms at 300 images a second.
THREADS = 16


class Overlap(Generic[A, B]):
    """Calls a function on items in threads of its own, and gives the results in order, as futures.

    To be used from one thread.

    Args:
        function: must be safe to call in several threads at once.
        ahead: number of threads, and of results that may be waiting.
    """

    def __init__(self, function: Callable[[A], B], ahead: int = THREADS) -> None:
        self._function, self._ahead = function, ahead
        self._pool = ThreadPoolExecutor(ahead)
        self._waiting: collections.deque[Future[B]] = collections.deque()

    def put(self, item: A) -> Iterator[Future[B]]:
        """Starts on an item; gives what is finished meanwhile, and the oldest where more than `ahead` would wait."""
        self._waiting.append(self._pool.submit(self._function, item))
        while self._waiting and (len(self._waiting) > self._ahead or self._waiting[0].done()):
            yield self._waiting.popleft()

    def drain(self) -> Iterator[Future[B]]:
        """Gives all that is still waiting."""
        while self._waiting:
            yield self._waiting.popleft()

    def close(self) -> None:
        """Forgets what nobody took, and waits for calls that have begun."""
        self._pool.shutdown(cancel_futures=True)
        self._waiting.clear()

    def abandon(self) -> None:
        """Forgets what nobody took and waits for nothing; the threads end by themselves."""
        for future in self._waiting:
            future.cancel()
        self._waiting.clear()


def prefetch(function: Callable[[A], B], items: Iterable[A], ahead: int = THREADS) -> Iterator[Future[B]]:
    """Calls a function on each item ahead of time and gives the results in order, as futures.

    Calls that have begun when nobody takes more results are not waited for.

    Args:
        function: must be safe to call in several threads at once.
        items: taken one by one, `ahead` of them before the first result is waited for.
        ahead: number of threads, and of results that may be waiting.
    """
    overlap = Overlap(function, ahead)
    try:
        for item in items:
            yield from overlap.put(item)
        yield from overlap.drain()
    except BaseException:
        # The garbage collector ends a generator that was left, in any thread, whatever lock this holds. So no waiting.
        overlap.abandon()
        raise
    overlap.close()


class ByteBudget:
    """Bounds how many bytes are held at once; what is larger than the whole budget may be held alone.

    Args:
        nbytes: the budget.
    """

    def __init__(self, nbytes: int) -> None:
        self._limit, self._held, self._turn, self._abandoned = nbytes, 0, 0, False
        self._changed = threading.Condition()

    def take(self, nbytes: int, turn: int | None = None) -> None:
        """Waits until so many bytes fit.

        Args:
            nbytes: to be given back when they aren't held any more.
            turn: 0, 1, 2...: bytes are then handed out in this order, whoever asks first. Who takes results in order
                and gives back afterwards can't be locked out so by results that come later. Every turn must be taken,
                if only with 0 bytes.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or (turn in (None, self._turn) and self._fits(nbytes)))
            self._held += nbytes
            self._turn += turn is not None
            self._changed.notify_all()

    def _fits(self, nbytes: int) -> bool:
        return not nbytes or not self._held or self._held + nbytes <= self._limit

    def give_back(self, nbytes: int) -> None:
        """Lets others have bytes that were taken."""
        with self._changed:
            self._held -= nbytes
            self._changed.notify_all()

    def abandon(self) -> None:
        """Lets everybody go who waits, now and from now on: nobody will take the results."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()
