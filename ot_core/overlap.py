"""Doing slow things ahead of time and behind, so that waiting for a store overlaps with work.

All bundles of a process share a few threads and a few budgets of bytes, and none can block another. Whoever takes a
bundle's results waits for the oldest of them alone: a call that nobody has begun it makes itself, and one that waits
for bytes gets them at once (`Share.insist`), be the budget spent. Not even the runner can be relied upon to bring a
bundle back to results that hold bytes: Beam feeds all bundles of a worker from one stream, in which the next element of
one may be behind those of another that waits.
"""

from __future__ import annotations

import _thread
import collections
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")
#: Calls at once, which hides a store's latency of 50 ms at 300 images a second.
THREADS = 16
#: Results that may be waiting: several batches of a model, so that none is waited for while it works on another.
AHEAD = 512


class Call(Future[B]):
    """A call that is made once, by whoever comes first."""

    def __init__(self, function: Callable[..., B], *args: Any) -> None:
        super().__init__()
        self._to_do = [(function, args)]

    def make(self) -> None:
        """Makes the call, unless somebody has begun it, or it was cancelled."""
        try:
            function, args = self._to_do.pop()
        except IndexError:
            return
        if self.set_running_or_notify_cancel():
            try:
                result = function(*args)
            except BaseException as error:
                self.set_exception(error)
            else:
                self.set_result(result)


class Threads:
    """Threads for a whole process, which begin calls in the order in which they are asked for.

    They start when they are needed, and don't keep the process from ending. A fork of it has threads of its own.

    Args:
        number: of threads.
    """

    def __init__(self, number: int = THREADS) -> None:
        self._number = number
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._lock, self._started = threading.Lock(), 0
        self._calls: queue.SimpleQueue[Call[Any]] = queue.SimpleQueue()

    def submit(self, call: Call[Any]) -> None:
        """Makes a call when a thread is free."""
        self._calls.put(call)
        with self._lock:
            if self._started < self._number:
                threading.Thread(target=_serve, args=(self._calls,), daemon=True).start()
                self._started += 1


def _serve(calls: queue.SimpleQueue[Call[Any]]) -> None:
    while True:
        calls.get().make()


#: For calls that wait for nothing but a store. Those that wait for bytes need others: who holds them may need these.
REQUESTS = Threads()


class ByteBudget:
    """Bounds how many bytes a process holds at once, for all of its bundles: first come, first served.

    What is larger than the whole budget may be held alone. Beside the budget, every bundle may hold what `Share.insist`
    was called for.

    Args:
        nbytes: the budget.
    """

    def __init__(self, nbytes: int) -> None:
        self._limit = nbytes
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._lock, self._held = threading.Lock(), 0
        self._queue: collections.deque[Share] = collections.deque()  # the first of each line

    def line(self) -> Line:
        """For one bundle."""
        return Line(self)

    def _go_on(self, line: Line) -> None:
        """Has the first of a line queue, and gives what fits."""
        lines = [line]
        while lines:
            shares = lines.pop()._shares
            while shares and shares[0]._settled:
                shares.popleft()
            if shares and shares[0].nbytes and shares[0] not in self._queue:
                self._queue.append(shares[0])
            for share in self._queue:
                fits = not self._held or self._held + share.nbytes <= self._limit
                if share._insists or (fits and share is self._queue[0]):
                    self._queue.remove(share)
                    self._held += share.nbytes
                    share._settle()
                    lines.append(share._line)
                    break


class Line:
    """Those who want bytes for one bundle, who get them in this order, whoever asks first.

    Only the first queues for the budget: so a large image has its turn, however many small ones other bundles have.
    """

    def __init__(self, budget: ByteBudget) -> None:
        self._budget, self._abandoned = budget, False
        self._shares: collections.deque[Share] = collections.deque()

    def share(self) -> Share:
        """The next in the line; those behind it wait until it has taken bytes, or is given back."""
        share = Share(self, self._budget)
        with self._budget._lock:
            self._shares.append(share)
        return share

    def abandon(self) -> None:
        """Lets everybody go who waits, now and from now on: nobody will take the results."""
        with self._budget._lock:
            self._abandoned = True
            for share in self._shares:
                if share in self._budget._queue:
                    self._budget._queue.remove(share)
                share.nbytes = 0
                share._settle()
            self._budget._go_on(self)


class Share:
    """The bytes that one call holds of a budget; `Line.share` makes it.

    Attributes:
        nbytes: wanted or held.
    """

    def __init__(self, line: Line, budget: ByteBudget) -> None:
        self._line, self._budget = line, budget
        self.nbytes = 0
        self._settled, self._insists, self._settling = False, False, threading.Event()

    def take(self, nbytes: int) -> None:
        """Waits for bytes until it is its turn and they fit. Only the first time counts; with 0 it lets others pass.

        Raises:
            RuntimeError: if its line was abandoned, and it has none.
        """
        with self._budget._lock:
            if not self._settled:
                self.nbytes = nbytes
                if not nbytes or self._line._abandoned:
                    self.nbytes = 0
                    self._settle()
                self._budget._go_on(self._line)
        self._settling.wait()
        if nbytes and self._line._abandoned and not self.nbytes:
            raise RuntimeError("nobody takes the results of this bundle any more")

    def insist(self) -> None:
        """Has it get what it wants when it is its turn, whatever others hold."""
        with self._budget._lock:
            self._insists = True
            self._budget._go_on(self._line)

    def give_back(self) -> None:
        """Lets others have the bytes, and those behind pass if it took none; a second time does nothing."""
        with self._budget._lock:
            if self._settled:
                self._budget._held -= self.nbytes
            self.nbytes = 0
            self._settle()
            self._budget._go_on(self._line)

    def _settle(self) -> None:
        self._settled = True
        self._settling.set()


class Overlap(Generic[A, B]):
    """Calls a function on the items of one bundle in threads, and gives the results in order, as futures.

    To be used from one thread.

    Args:
        function: of an item and its share of each budget, which are given back when the next result is asked for, if
            not before. Must be safe to call in several threads at once.
        threads: that call it.
        budgets: of bytes, which are given to items in order.
        ahead: results that may be waiting.
    """

    def __init__(
        self,
        function: Callable[[A, Sequence[Share]], B],
        threads: Threads = REQUESTS,
        budgets: Iterable[ByteBudget] = (),
        ahead: int = AHEAD,
    ) -> None:
        self._function, self._threads, self._ahead = function, threads, ahead
        self._lines = [budget.line() for budget in budgets]
        self._waiting: collections.deque[tuple[Call[B], Sequence[Share]]] = collections.deque()

    def put(self, item: A, nbytes: int = 0) -> Iterator[Future[B]]:
        """Starts on an item; gives the oldest if it is finished, or more than `ahead` would wait.

        Args:
            item: to call the function on.
            nbytes: of the first budget that it holds until its call ends; waited for before that.
        """
        shares = [line.share() for line in self._lines]
        if nbytes:
            shares[0].take(nbytes)
        call = Call(self._result, item, shares, nbytes)
        self._waiting.append((call, shares))
        self._threads.submit(call)
        del item, call  # may be large, and are the thread's now
        # One for one: giving all that are finished would leave the threads nothing to do meanwhile.
        if len(self._waiting) > self._ahead or self._waiting[0][0].done():
            yield from self._oldest()

    def drain(self) -> Iterator[Future[B]]:
        """Gives all that is still waiting."""
        while self._waiting:
            yield from self._oldest()

    def close(self) -> None:
        """Forgets what nobody took, and waits for calls that have begun; those of other bundles aren't touched."""
        waiting, self._waiting = self._waiting, collections.deque()
        begun = [call for call, _ in waiting if not call.cancel()]
        for line in self._lines:
            line.abandon()
        wait(begun)
        for _, shares in waiting:
            _give_back(shares)

    def abandon(self) -> None:
        """Closes, but waits for nothing."""
        # The garbage collector ends a generator that was left, in any thread, whatever lock this holds: `threading`'s
        # own among them.
        with contextlib.suppress(RuntimeError):  # the process ends
            _thread.start_new_thread(self.close, ())

    def _oldest(self) -> Iterator[Future[B]]:
        call, shares = self._waiting[0]
        for share in shares:
            share.insist()
        call.make()  # if no thread has begun it
        yield call  # comes back when whoever took it has worked on it
        self._waiting.popleft()
        _give_back(shares)

    def _result(self, item: A, shares: Sequence[Share], nbytes: int) -> B:
        try:
            return self._function(item, shares)
        finally:
            if nbytes:
                shares[0].give_back()
            for share in shares:
                share.take(0)  # lets others pass


def _give_back(shares: Iterable[Share]) -> None:
    for share in shares:
        share.give_back()


def prefetch(function: Callable[[A], B], items: Iterable[A], ahead: int = THREADS) -> Iterator[Future[B]]:
    """Calls a function on each item ahead of time and gives the results in order, as futures.

    Calls that have begun when nobody takes more results are not waited for.

    Args:
        function: must be safe to call in several threads at once.
        items: taken one by one, `ahead` of them before the first result is waited for.
        ahead: results that may be waiting.
    """
    overlap: Overlap[A, B] = Overlap(lambda item, _: function(item), ahead=ahead)
    try:
        for item in items:
            yield from overlap.put(item)
        yield from overlap.drain()
    except BaseException:
        overlap.abandon()
        raise
