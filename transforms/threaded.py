"""DoFns that call a function on several elements at once, ahead of the steps that follow in the same stage."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import apache_beam as beam

from ot_core.overlap import REQUESTS, ByteBudget, Overlap, Share, Threads
from transforms import metrics
from transforms.windows import in_global_window

_Result = tuple[Sequence[Any], metrics.Captured]


class ThreadedDoFn(beam.DoFn):
    """Calls `work` in threads that all bundles of a process share, and gives what it returns, in order.

    No more than 512 elements of a bundle are waiting, nor more bytes than there are in the budgets.

    Attributes:
        threads: that call it.
        budgets: of bytes, shared in the same way.
    """

    threads: Threads = REQUESTS
    budgets: tuple[ByteBudget, ...] = ()
    _overlap: Overlap[Any, _Result] | None = None

    def work(self, element: Any, shares: Sequence[Share]) -> Sequence[Any]:
        """What to give for an element; an error fails the bundle. Its metrics count once they are given.

        Args:
            element: to work on.
            shares: of each budget, to be given back here, or else when the steps that follow have worked on the result.
        """
        raise NotImplementedError

    def nbytes(self, element: Any) -> int:
        """What an element holds of the first budget until it is worked on; it waits for that before it is queued."""
        return 0

    def start_bundle(self) -> None:
        """Begins, and forgets what another bundle left."""
        self.teardown()
        self._overlap = Overlap(self._captured, self.threads, self.budgets)

    def process(self, element: Any) -> Iterator[Any]:
        """Starts on an element; gives what is ready."""
        assert self._overlap is not None
        yield from self._outputs(self._overlap.put(element, self.nbytes(element)))

    def finish_bundle(self) -> Iterator[Any]:
        """Gives what is left."""
        assert self._overlap is not None
        yield from map(in_global_window, self._outputs(self._overlap.drain()))

    def teardown(self) -> None:
        """Where a bundle ended half-way, calls may be waiting still."""
        if self._overlap is not None:
            self._overlap.close()

    def _captured(self, element: Any, shares: Sequence[Share]) -> _Result:
        with metrics.captured() as reported:
            return self.work(element, shares), reported

    def _outputs(self, results: Iterable[Future[_Result]]) -> Iterator[Any]:
        try:
            for result in results:
                outputs, reported = result.result()
                metrics.replay(reported)
                yield from outputs
                del result, outputs
        except BaseException:  # one of a step that follows, say: nobody will come for the rest of the bundle
            assert self._overlap is not None
            self._overlap.abandon()
            raise
