"""Working on images of one shape together, or on a CPU side by side, and on less at once where memory runs out."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from ot_core.device import is_out_of_memory, raise_if_lost
from ot_core.errors import Cause, ImageError
from ot_core.tiles import SMALLEST_TILE_PIXELS

#: Pixels that the cores of a CPU work on together, which bounds memory.
_PIXELS_SIDE_BY_SIDE = 2**21

#: Parameters of glibc's `mallopt`, by its malloc.h, and up to how many bytes are kept.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 2**31 - 1

Item = TypeVar("Item")
Result = TypeVar("Result")
_Size = Callable[[Item], tuple[int, int]]
_Function = Callable[[Sequence[Item], int], Sequence[Result | ImageError]]
#: Is told how many pixels the device works on at once, and how many bytes of its memory were used at most.
Observe = Callable[[int, int | None], None]


class Engine:
    """Where a loaded model works, and how much at once: one for each model that a process has loaded.

    An accelerator takes images of one padded shape together. The cores of a CPU take them one by one, small ones side
    by side. There batches gain nothing, and a core for each image is faster than all cores for each: nobody waits for
    the slowest core after every operation, or while another thread encodes a PNG. And no image's result depends on what
    it shares a batch with.

    What is too much for the device is learnt: after an error that says so, no more than what worked is tried again. But
    one image that fails so, where more has worked, says nothing of the others.

    Attributes:
        device: torch device.
        most_pixels: that the model works on at once.
        workers: on a CPU a thread for each core, in which torch uses one.
    """

    def __init__(self, device: torch.device | str, most_pixels: int) -> None:
        self.device, self.most_pixels = torch.device(device), most_pixels
        self.workers = workers_of(self.device.type)
        self._worked = 0

    def over_images(
        self,
        images: Sequence[Item],
        size: _Size[Item],
        function: _Function[Item, Result],
        observe: Observe = lambda pixels, memory: None,
    ) -> Iterator[tuple[Item, Result | Exception]]:
        """Applies a function to images of one padded shape at a time, on less where the device runs out of memory.

        Args:
            images: of any kind.
            size: the padded (height, width) of one.
            function: is given images of one padded size, and the most pixels that it may work on at once. They are no
                more than that, or one image, which it has to split itself where it is larger. Gives a result or an
                error for each.
            observe: is told what was worked on; called in the calling thread.
        """
        if self.workers is None:
            yield from self._over_equal_shapes(images, size, function, observe)
            return

        def pixels(image: Item) -> int:
            return math.prod(size(image))

        def one(image: Item) -> Iterable[tuple[Item, Result | Exception]]:
            return self._halving([image], size, function, self.most_pixels)

        most = min(self.most_pixels, _PIXELS_SIDE_BY_SIDE // torch.get_num_threads())
        ordered = sorted(images, key=pixels, reverse=True)  # the largest first, so that none is late
        large = list(itertools.takewhile(lambda image: pixels(image) > most, ordered))
        small = ordered[len(large) :]
        for image in small:
            observe(pixels(image), None)
        yield from itertools.chain.from_iterable(self.workers.map(one, small))
        for image in large:
            with _all_cores:  # the memory for one large image is there once, whoever has one
                yield from self._over_equal_shapes([image], size, function, observe)

    def _over_equal_shapes(
        self, images: Sequence[Item], size: _Size[Item], function: _Function[Item, Result], observe: Observe
    ) -> Iterator[tuple[Item, Result | Exception]]:
        for (height, width), equal in itertools.groupby(sorted(images, key=size), key=size):
            alike = list(equal)
            while alike:
                most = self.most_pixels
                together = max(most // (height * width), 1)  # one that is larger by itself is split by the function
                several, alike = alike[:together], alike[together:]
                results = self._halving(several, size, function, most)
                memory = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
                observe(min(len(several) * height * width, most), memory)
                yield from results

    def _halving(
        self, images: list[Item], size: _Size[Item], function: _Function[Item, Result], most_pixels: int
    ) -> Iterable[tuple[Item, Result | Exception]]:
        """Applies a function to images of one padded shape, on half of them or in smaller tiles where that is too much.

        One image that fails is given with its error, and never takes the others along.

        Raises:
            DeviceLostError: if the device can do nothing for any image any more.
        """
        try:
            results = list(zip(images, function(images, most_pixels), strict=True))
            self._worked = max(self._worked, min(len(images) * math.prod(size(images[0])), most_pixels))
            self.most_pixels = max(self.most_pixels, self._worked)
            return results
        except Exception as error:  # with several images the culprit is unknown: try the halves
            raise_if_lost(error)
            no_memory = is_out_of_memory(error)
            if len(images) == 1 and not no_memory:
                return [(images[0], error)]
        # Outside of the handler, which would keep what the failed attempt had allocated alive.
        height, width = size(images[0])
        if no_memory:
            tried = min(len(images) * height * width, most_pixels)
            fits = max(tried // (2 if len(images) > 1 else 4), SMALLEST_TILE_PIXELS)
            self.most_pixels = min(self.most_pixels, max(fits, self._worked))
            _return_memory(self.device)
        if len(images) > 1:
            middle = len(images) // 2
            halves = (images[:middle], images[middle:])
            return itertools.chain.from_iterable(self._halving(half, size, function, most_pixels) for half in halves)
        if tried <= SMALLEST_TILE_PIXELS:
            too_large = ImageError(Cause.OUT_OF_MEMORY, f"{width}x{height} pixels don't fit on the device")
            return [(images[0], too_large)]
        return self._halving(images, size, function, fits)


#: Held while all cores of a CPU work on one large image.
_all_cores = threading.Lock()


def _return_memory(device: torch.device) -> None:
    """Gives back what torch keeps for later, which the device's libraries need for themselves."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


class _ThisThread(Executor):
    """Does it here and now, which spares a single core what handing over to another thread costs."""

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], **_: Any) -> Iterator[Any]:
        """One after the other."""
        return map(fn, *iterables)


def workers_of(device: str) -> Executor | None:
    """On a CPU a thread for each core, in which torch uses one; the same in the whole process."""
    if device != "cpu":
        return None
    with _making:  # which changes torch's number of threads for a moment
        return _workers_of_cpu(torch.get_num_threads(), os.getpid())  # a fork has none of its parent's threads


_making = threading.Lock()
# A fork while another thread makes them would leave the lock held, and torch with one thread.
os.register_at_fork(before=_making.acquire, after_in_parent=_making.release, after_in_child=_making.release)


@functools.cache
def _workers_of_cpu(cores: int, process: int) -> Executor:
    return threads_of_one_core(cores) if cores > 1 else _ThisThread()


def threads_of_one_core(cores: int) -> ThreadPoolExecutor:
    """So many threads, in each of which torch uses one core.

    What torch is told in one thread is its default in all that begin to use it later. So they all begin here, and the
    default is put back: else Beam's next thread, and the next job of the process, would have one core, too.
    """
    _keep_freed_memory()
    begun = threading.Barrier(cores)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # from now on a new default doesn't concern this thread

    threads = ThreadPoolExecutor(cores, initializer=begin)
    list(threads.map(lambda _: begun.wait(), range(cores)))
    torch.set_num_threads(cores)
    return threads


@functools.cache
def _keep_freed_memory() -> None:
    """Tells glibc to keep what a network's layer frees for the next layer, in threads that begin from now on.

    Otherwise it returns every tensor of over 32 MB to the system, whose clearing of fresh pages took 40% of the time of
    a DnCNN on images of 481x321 pixels. Other C libraries have no such setting, and nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)  # other arenas consist of pieces of 64 MB
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
