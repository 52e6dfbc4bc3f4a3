"""Working on images of one shape together, or on a CPU side by side, and on less at once where memory runs out."""

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from ot_core import Cause, ImageError
from ot_core.tiles import SMALLEST_TILE_PIXELS
from transforms import metrics
from transforms.elements import LoadedImage

#: Pixels that the cores of a CPU work on together, which bounds memory.
_PIXELS_SIDE_BY_SIDE = 2**21

Result = TypeVar("Result")
_PaddedSize = Callable[[int, int], tuple[int, int]]
_Function = Callable[[Sequence[LoadedImage], int], Sequence[Result | ImageError]]


def over_images(
    images: Sequence[LoadedImage],
    padded_size: _PaddedSize,
    function: _Function[Result],
    max_pixels: int,
    workers: Executor | None = None,
) -> Iterator[tuple[LoadedImage, Result | Exception]]:
    """Applies a function to images of one padded shape at a time, on less where the device runs out of memory.

    The function is given at most so many pixels, or one image, which it has to split itself where it is larger; and
    the most pixels that it may work on at once.

    Workers, which a CPU has, take the images one by one, small ones side by side. There batches gain nothing, and a
    core for each image is faster than all cores for each: nobody waits for the slowest core after every operation, or
    while another thread encodes a PNG. And no image's result depends on what it shares a batch with.
    """
    if workers is None:
        yield from _over_equal_shapes(images, padded_size, function, max_pixels)
        return

    def pixels(loaded: LoadedImage) -> int:
        return math.prod(_padded(loaded, padded_size))

    def one(loaded: LoadedImage) -> Iterable[tuple[LoadedImage, Result | Exception]]:
        return halving([loaded], function, max_pixels)

    most = min(max_pixels, _PIXELS_SIDE_BY_SIDE // torch.get_num_threads())
    ordered = sorted(images, key=pixels, reverse=True)  # the largest first, so that none is late
    large = list(itertools.takewhile(lambda loaded: pixels(loaded) > most, ordered))
    small = ordered[len(large) :]
    for loaded in small:
        metrics.observe(metrics.BATCH_PIXELS, pixels(loaded))
    yield from itertools.chain.from_iterable(workers.map(one, small))
    for loaded in large:
        yield from _over_equal_shapes([loaded], padded_size, function, max_pixels)


def _padded(loaded: LoadedImage, padded_size: _PaddedSize) -> tuple[int, int]:
    height, width = loaded.image.pixels.shape[:2]
    return padded_size(height, width)


def _over_equal_shapes(
    images: Sequence[LoadedImage], padded_size: _PaddedSize, function: _Function[Result], max_pixels: int
) -> Iterator[tuple[LoadedImage, Result | Exception]]:
    def shape(loaded: LoadedImage) -> tuple[int, int]:
        return _padded(loaded, padded_size)

    for (height, width), equal in itertools.groupby(sorted(images, key=shape), key=shape):
        alike = list(equal)
        most = max(max_pixels // (height * width), 1)  # one that is larger by itself is split by the function
        for several in (alike[start : start + most] for start in range(0, len(alike), most)):
            metrics.observe(metrics.BATCH_PIXELS, min(len(several) * height * width, max_pixels))
            results = halving(several, function, max_pixels)
            if torch.cuda.is_available():
                metrics.observe(metrics.DEVICE_MEMORY, torch.cuda.max_memory_allocated())
            yield from results


def halving(
    images: list[LoadedImage], function: _Function[Result], max_pixels: int
) -> Iterable[tuple[LoadedImage, Result | Exception]]:
    """Applies a function to images of one padded shape, on half of them or in smaller tiles where that is too much.

    One image that fails is given with its error, and never takes the others along.
    """
    try:
        return list(zip(images, function(images, max_pixels), strict=True))
    except Exception as error:  # with several images the culprit is unknown: try the halves
        if len(images) > 1:
            middle = len(images) // 2
            halves = (images[:middle], images[middle:])
            return itertools.chain.from_iterable(halving(half, function, max_pixels) for half in halves)
        if not _is_out_of_memory(error):
            return [(images[0], error)]
        height, width = images[0].image.pixels.shape[:2]
        failure = ImageError(Cause.OUT_OF_MEMORY, f"{width}x{height} pixels don't fit on the device")
    # Outside of the handler, which would keep what the failed attempt had allocated alive.
    largest = min(max_pixels, height * width)
    if largest <= SMALLEST_TILE_PIXELS:
        return [(images[0], failure)]
    return halving(images, function, max(largest // 4, SMALLEST_TILE_PIXELS))


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


class _ThisThread(Executor):
    """Does it here and now, which spares a single core what handing over to another thread costs."""

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any], **_: Any) -> Iterator[Any]:
        """One after the other."""
        return map(fn, *iterables)


def workers_of(device: str) -> Executor | None:
    """On a CPU a thread for each core, in which torch uses one; the same in the whole process."""
    return _workers_of_cpu(torch.get_num_threads()) if device == "cpu" else None


@functools.cache
def _workers_of_cpu(cores: int) -> Executor:
    return threads_of_one_core(cores) if cores > 1 else _ThisThread()


def threads_of_one_core(cores: int) -> ThreadPoolExecutor:
    """So many threads, in each of which torch uses one core.

    What torch is told in one thread is its default in all that begin to use it later. So they all begin here, and the
    default is put back: else Beam's next thread, and the next job of the process, would have one core, too.
    """
    begun = threading.Barrier(cores)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # from now on a new default doesn't concern this thread

    threads = ThreadPoolExecutor(cores, initializer=begin)
    list(threads.map(lambda _: begun.wait(), range(cores)))
    torch.set_num_threads(cores)
    return threads
