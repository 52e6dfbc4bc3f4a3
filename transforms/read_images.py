"""From image references to decoded images, read and decoded ahead of whoever takes them."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations

from ot_core import Cause, ImageError, decode_image, shards
from ot_core.errors import TooManyBytesError
from ot_core.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from ot_core.overlap import ByteBudget, Overlap
from transforms import metrics
from transforms.elements import Failure, ImageRef, LoadedImage
from transforms.windows import check_windows, in_global_window

#: Bytes of pixels that may be waiting, and of large files that may be in memory while they are decoded.
_BYTES_AHEAD = _ENCODED_AHEAD = 2**28


@beam.typehints.with_input_types(ImageRef)
class ReadImages(beam.PTransform):
    """Reads and decodes images, several at once and ahead of the steps that follow in the same stage.

    What is waiting never exceeds 16 images and 256 MiB of pixels, or one larger image. While they are decoded, no more
    than 16 files of 16 MiB are in memory, and 256 MiB of larger ones, or one larger file.

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


class _Read(NamedTuple):
    """What a thread made of a reference, the bytes that it took for that, and its metrics."""

    outcome: LoadedImage | Failure
    nbytes: int
    reported: metrics.Captured


class _ReadImageDoFn(beam.DoFn):
    def __init__(self, max_pixels: int, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._max_pixels, self._max_bytes = max_pixels, max_bytes

    def start_bundle(self) -> None:
        self._budget, self._encoded, self._turns = (
            ByteBudget(_BYTES_AHEAD),
            ByteBudget(_ENCODED_AHEAD),
            itertools.count(),
        )
        self._overlap = Overlap(self._read)

    def process(self, element: ImageRef) -> Iterator[Any]:
        with self._or_abandon():
            for read in self._overlap.put((element, next(self._turns))):
                yield from self._take(read.result())

    def finish_bundle(self) -> Iterator[Any]:
        with self._or_abandon():
            for read in self._overlap.drain():
                yield from map(in_global_window, self._take(read.result()))
        self._overlap.close()

    def teardown(self) -> None:
        # Where a bundle ended half-way, threads may be waiting still, and would keep the process from ending.
        if hasattr(self, "_budget"):
            self._abandon()
            self._overlap.close()

    @contextlib.contextmanager
    def _or_abandon(self) -> Iterator[None]:
        """Lets the threads go if a step that follows fails: nobody will come for the rest of the bundle."""
        try:
            yield
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        self._budget.abandon()
        self._encoded.abandon()

    def _take(self, read: _Read) -> Iterator[Any]:
        metrics.replay(read.reported)
        if isinstance(read.outcome, Failure):
            yield beam.pvalue.TaggedOutput("failures", read.outcome)
        else:
            yield read.outcome  # comes back when the steps that follow have worked on it
        self._budget.give_back(read.nbytes)

    def _read(self, item: tuple[ImageRef, int]) -> _Read:
        ref, turn = item
        encoded, pixels = _Share(self._encoded, turn), _Share(self._budget, turn)
        with metrics.captured() as reported:
            try:
                outcome: LoadedImage | Failure = read_image(
                    ref, self._max_pixels, self._max_bytes, pixels.take, encoded.take
                )
            except Exception as error:  # one bad image costs one row, whatever went wrong with it
                outcome = Failure.of(ref, "read", error)
        # Whose turn is next waits, also where this one took nothing.
        encoded.take(0)
        encoded.give_back()
        pixels.take(0)
        return _Read(outcome, pixels.nbytes, reported)


class _Share:
    """The bytes that one image takes of a budget, once and when it is its turn."""

    def __init__(self, budget: ByteBudget, turn: int) -> None:
        self._budget, self._turn, self._taken = budget, turn, False
        self.nbytes = 0

    def take(self, nbytes: int) -> None:
        if not self._taken:
            self._budget.take(nbytes, self._turn)
            self.nbytes, self._taken = nbytes, True

    def give_back(self) -> None:
        self._budget.give_back(self.nbytes)


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
