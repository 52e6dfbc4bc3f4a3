"""From image references to decoded images, read and decoded ahead of whoever takes them."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations

from ot_core import Cause, ImageError, decode_image, shards
from ot_core.errors import TooManyBytesError
from ot_core.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from ot_core.overlap import ByteBudget, Share, Threads
from transforms import metrics
from transforms.elements import Failure, ImageRef, LoadedImage
from transforms.threaded import ThreadedDoFn
from transforms.windows import check_windows

#: Of a process: threads, bytes of pixels that may be waiting, and of large files in memory while they are decoded.
_THREADS, _PIXELS, _ENCODED = Threads(), ByteBudget(2**28), ByteBudget(2**28)


@beam.typehints.with_input_types(ImageRef)
class ReadImages(beam.PTransform):
    """Reads and decodes images, several at once and ahead of the steps that follow in the same stage.

    What a process has waiting, in all bundles together, never exceeds 256 MiB of pixels, or one larger image, and one
    image for each bundle that waits for it. While they are decoded, no more than 16 files of 16 MiB are in memory, and
    likewise 256 MiB of larger ones, or one larger file; and one file for each bundle that waits for it.

    Args:
        max_pixels: images whose header says more are failures, before any pixel is decoded.
        max_bytes: larger files are failures, before more than that is read.
    """

    def __init__(self, max_pixels: int = DEFAULT_MAX_PIXELS, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        super().__init__()
        self._max_pixels, self._max_bytes = max_pixels, max_bytes

    @no_annotations
    def expand(self, refs: beam.PCollection[ImageRef]) -> "ReadOutcome":
        """One fused step; pixels never cross a shuffle."""
        check_windows(self, refs)
        read = refs | "ReadImages" >> beam.ParDo(_ReadImageDoFn(self._max_pixels, self._max_bytes)).with_output_types(
            LoadedImage
        ).with_outputs("failures", main="images")
        return ReadOutcome(read.images, read.failures)


class ReadOutcome(NamedTuple):
    """Result of `ReadImages`."""

    images: beam.PCollection[LoadedImage]
    failures: beam.PCollection[Failure]


class _ReadImageDoFn(ThreadedDoFn):
    threads, budgets = _THREADS, (_PIXELS, _ENCODED)

    def __init__(self, max_pixels: int, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._max_pixels, self._max_bytes = max_pixels, max_bytes

    def work(self, element: ImageRef, shares: Sequence[Share]) -> list[Any]:
        pixels, encoded = shares
        try:
            return [read_image(element, self._max_pixels, self._max_bytes, pixels.take, encoded.take)]
        except Exception as error:  # one bad image costs one row, whatever went wrong with it
            return [beam.pvalue.TaggedOutput("failures", Failure.of(element, "read", error))]
        finally:
            encoded.give_back()


def read_image(
    ref: ImageRef,
    max_pixels: int,
    max_bytes: int = DEFAULT_MAX_BYTES,
    reserve: Callable[[int], None] | None = None,
    reserve_encoded: Callable[[int], None] | None = None,
) -> LoadedImage:
    """Reads and decodes one image; raises what storage and `decode_image` raise.

    Args:
        ref: which one.
        max_pixels: as in `decode_image`.
        max_bytes: the most that is read.
        reserve: as in `decode_image`.
        reserve_encoded: called once, before the image is decoded, with the bytes of a large file, or 0.
    """
    with metrics.timed("read"):
        start = time.perf_counter()
        try:
            data = shards.read_member(ref.uri, ref.member, max_bytes, reserve_encoded)
        except TooManyBytesError as error:
            raise ImageError(Cause.TOO_LARGE, f"{error}; --max_bytes raises it") from None
        seconds = time.perf_counter() - start
    if reserve_encoded is not None:
        reserve_encoded(0)
    metrics.count(metrics.IMAGES_READ)
    metrics.count(metrics.BYTES_READ, len(data))
    with metrics.timed("decode_image") as restart:

        def waited(nbytes: int) -> None:
            nonlocal start
            if reserve is not None:
                reserve(nbytes)
            restart()
            start = time.perf_counter()

        image = decode_image(data, max_pixels, waited)
    return LoadedImage(ref, image, seconds + time.perf_counter() - start)
