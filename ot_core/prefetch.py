"""Doing slow things ahead of time, so that waiting for a store overlaps with work."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def prefetch(function: Callable[[A], B], items: Iterable[A], ahead: int = 16) -> Iterator[tuple[A, Future[B]]]:
    """Calls a function on each item in threads of its own and gives the results in order, as futures.

    Args:
        function: must be safe to call in several threads at once.
        items: taken one by one, `ahead` of them before the first result is given.
        ahead: number of threads, and of results that may be waiting.
    """
    waiting: collections.deque[tuple[A, Future[B]]] = collections.deque()
    with ThreadPoolExecutor(ahead) as pool:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
