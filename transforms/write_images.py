"""Encoding and writing images, behind the steps that made them and in the same stage."""

import hashlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.typehints.decorators import no_annotations
from numpy.typing import NDArray

from ot_core import encode_image, storage
from ot_core.encoding import DEFAULT_COMPRESS_LEVEL
from ot_core.layout import OutputLayout
from ot_core.overlap import ByteBudget, Share
from transforms import metrics
from transforms.elements import Failure, ImageRecord, LoadedImage, TransportedImage
from transforms.threaded import ThreadedDoFn
from transforms.windows import check_windows

#: Bytes of pixels that a process may have waiting to be encoded and written.
_PIXELS = ByteBudget(2**28)


class WriteOutcome(NamedTuple):
    """Result of `WriteImages`: a row for each image written, and for each that could not be."""

    records: beam.PCollection[ImageRecord]
    failures: beam.PCollection[Failure]


@beam.typehints.with_input_types(TransportedImage | LoadedImage)
class WriteImages(beam.PTransform):
    """Writes images: TransportedImage or LoadedImage -> ImageRecord, Failure.

    Files are named `images/<key>.<extension>` below the output, or `images/alpha=0.50/<key>.<extension>` with several
    alphas. What a process has waiting to be written, in all bundles together, never
    exceeds 256 MiB of pixels, or one larger image.

    Args:
        output: URL of the output's root; or its layout, which then tells alphas and format, too.
        alphas: of the results, as in `TransportLoaded`; leave it out for a LoadedImage, which is its own only result.
        format: png, jpeg, webp, tiff, avif or jxl.
        quality: of jpeg, webp and avif, 1 to 100.
        compress_level: of png and tiff, 0 to 9.

    Raises:
        UserError: if the format isn't known, there is no alpha, or two alphas are the same to two decimals.
    """

    def __init__(
        self,
        output: str | OutputLayout,
        alphas: Sequence[float] = (0.0,),
        format: str = "png",
        quality: int = 95,
        compress_level: int = DEFAULT_COMPRESS_LEVEL,
    ) -> None:
        super().__init__()
        layout = output if isinstance(output, OutputLayout) else OutputLayout.of(output, alphas, format)
        self._layout, self._write = layout, _WriteImageDoFn(layout, quality, compress_level)

    def display_data(self) -> dict[str, Any]:
        """Shown by runners' user interfaces."""
        return {"output": self._layout.root, "format": self._layout.format}

    @no_annotations
    def expand(self, images: beam.PCollection[TransportedImage | LoadedImage]) -> WriteOutcome:
        """One fused step."""
        check_windows(self, images)
        write = beam.ParDo(self._write).with_output_types(ImageRecord)
        written = images | "WriteImages" >> write.with_outputs("failures", main="records")
        return WriteOutcome(written.records, written.failures)


class _WriteImageDoFn(ThreadedDoFn):
    """Encodes and writes images behind the model, several at once."""

    budgets = (_PIXELS,)

    def __init__(self, layout: OutputLayout, quality: int, compress_level: int = DEFAULT_COMPRESS_LEVEL) -> None:
        self._layout, self._quality, self._level = layout, quality, compress_level

    def nbytes(self, element: TransportedImage | LoadedImage) -> int:
        return element.image.nbytes if isinstance(element, LoadedImage) else element.nbytes

    def work(self, element: TransportedImage | LoadedImage, shares: Sequence[Share]) -> list[Any]:
        if isinstance(element, LoadedImage):
            loaded = element._replace(ref=element.ref._replace(alphas=()))  # they are about transported images
            element = TransportedImage(loaded, (element.image.pixels,), element.seconds)
        ref = element.loaded.ref
        try:
            alphas = ref.alphas or self._layout.alphas
            records = [
                self._write(element, pixels, alpha) for pixels, alpha in zip(element.pixels, alphas, strict=True)
            ]
        except Exception as error:  # one bad image costs one row, whatever the store raised
            return [beam.pvalue.TaggedOutput("failures", Failure.of(ref, "write", error))]
        metrics.count(metrics.IMAGES_WRITTEN)
        return records

    def _write(self, result: TransportedImage, pixels: NDArray[np.generic], alpha: float) -> ImageRecord:
        start = time.perf_counter()
        ref, image = result.loaded.ref, result.loaded.image
        with metrics.timed("encode_image"):
            data = encode_image(pixels, image, self._layout.format, self._quality, self._level)
        storage.check_key(ref.key)
        url = self._layout.written_image(alpha, ref.key)
        with metrics.timed("write"):
            storage.write_bytes(url, data)
        metrics.count(metrics.BYTES_WRITTEN, len(data))
        height, width = pixels.shape[:2]
        seconds = result.seconds / len(result.pixels) + time.perf_counter() - start
        digest = hashlib.sha256(data).hexdigest()
        size = width, height, len(data)
        return ImageRecord(ref.key, ref.source_uri, url, alpha, *size, digest, seconds, ref.version, ref.group)
