"""Transporting images: read, batch, infer and write in one fused stage, so that pixels never cross a shuffle."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.typehints.decorators import no_annotations

from ot_core import GaussianStatistics, encode_image, storage
from ot_core.images import DEFAULT_COMPRESS_LEVEL, DEFAULT_MAX_PIXELS
from ot_core.layout import OutputLayout
from ot_core.overlap import ByteBudget, Overlap
from transforms import metrics
from transforms.batching import BatchByPixels
from transforms.elements import (
    Failure,
    GatheredStatistics,
    ImageRecord,
    ImageRef,
    TransportedImage,
    TransportPrediction,
    in_global_window,
)
from transforms.groups import HasMapDoFn
from transforms.model_handlers import TransportModelHandler
from transforms.reading import ReadImages
from transforms.statistics import GaussianStatisticsCombineFn

#: Pixels that may be waiting to be encoded and written.
_BYTES_BEHIND = 2**28


class TransportOutcome(NamedTuple):
    """Result of `TransportImages`: a row for each image written, and for each that could not be."""

    records: beam.PCollection[ImageRecord]
    failures: beam.PCollection[Failure]


class TransportOutcomeWithStatistics(NamedTuple):
    """The same, and (group, GaussianStatistics) of the latents: see `transforms.drift`."""

    records: beam.PCollection[ImageRecord]
    failures: beam.PCollection[Failure]
    statistics: beam.PCollection[tuple[str, GaussianStatistics]]


@beam.typehints.with_input_types(ImageRef)
class TransportImages(beam.PTransform):
    """Transports images with a fitted map and writes them: ImageRef -> ImageRecord, Failure.

    Files are named `images/<key>.<extension>` below the output, or `images/alpha=0.50/<key>.<extension>` with several
    alphas. For shards, give a layout of that kind as the output, and apply `PackShards` to the records.

    Args:
        map: URL of the transport map; or of several by subgroup, of which "" is for images of any other. Without that
            one, these are failures.
        output: URL of the output's root; or its layout, which then tells alphas and format, too.
        alphas: weights of the restored image in the result: 0 is full transport, 1 the restored image.
        format: png, jpeg or webp.
        quality: of jpeg and webp, 1 to 100.
        compress_level: of png, 0 to 9.
        vae: the autoencoder; default the one that the map names.
        max_pixels: larger images are failures.
        max_batch_pixels: see `BatchByPixels`; larger images are done in overlapping tiles of so many pixels.
        statistics: whether to give statistics of the latents too, as a third result. Groups are "source/0" and so on,
            of patches of the latents that were encoded, and "results/0" and so on, of the same ones fully transported;
            of those transported with the map of a subgroup, "source/0/<subgroup>" and so on.
        **options: of `TransportModelHandler`: interpolation, kernel_size, sigma, zero_shot, precision, compiled.

    Raises:
        UserError: if the format or interpolation isn't known, there is no alpha, or two alphas are the same to two
            decimals.
    """

    def __init__(
        self,
        map: str | Mapping[str, str],
        output: str | OutputLayout,
        alphas: Sequence[float] = (0.0,),
        format: str = "png",
        quality: int = 95,
        compress_level: int = DEFAULT_COMPRESS_LEVEL,
        vae: str | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        max_batch_pixels: int | None = None,
        statistics: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        layout = output if isinstance(output, OutputLayout) else OutputLayout.of(output, alphas, format)
        self._handler = TransportModelHandler(
            map,
            layout.alphas,
            vae,
            max_tile_pixels=max_batch_pixels or None,
            statistics=statistics,
            batched=True,
            **options,
        )
        self._statistics = statistics
        self._write = _WriteImageDoFn(layout, quality, compress_level)
        self._layout = layout
        self._max_pixels, self._max_batch_pixels = max_pixels, max_batch_pixels

    def display_data(self) -> dict[str, Any]:
        """Shown by runners' user interfaces."""
        maps, alphas = ", ".join(self._handler.maps.values()), ", ".join(map(str, self._layout.alphas))
        return {"map": maps, "output": self._layout.root, "alphas": alphas}

    @no_annotations
    def expand(self, refs: beam.PCollection[ImageRef]) -> TransportOutcome | TransportOutcomeWithStatistics:
        """Everything below fuses into one stage: reads run ahead of the model, and writes behind it.

        Only the merging of statistics ends outside of it, after each bundle's have been merged within.
        """
        unmapped: list[beam.PCollection[Failure]] = []
        if "" not in self._handler.maps:
            has_map = beam.ParDo(HasMapDoFn(self._handler.maps)).with_output_types(ImageRef)
            refs, *unmapped = refs | "HasMap" >> has_map.with_outputs("failures", main="images")
        images, unread = refs | "ReadImages" >> ReadImages(self._max_pixels)
        written = (
            images
            | "BatchByPixels" >> BatchByPixels(self._max_batch_pixels)
            | "RunInference" >> RunInference(self._handler).with_output_types(TransportPrediction)
            | "WriteImages" >> beam.ParDo(self._write).with_outputs("failures", "statistics", main="records")
        )
        failures = (*unmapped, unread, written.failures) | "FlattenFailures" >> beam.Flatten()
        if not self._statistics:
            return TransportOutcome(written.records, failures)
        statistics = written.statistics | "MergeStatistics" >> beam.CombinePerKey(GaussianStatisticsCombineFn())
        return TransportOutcomeWithStatistics(written.records, failures, statistics)


class _Written(NamedTuple):
    """What a thread made of a result, and its metrics."""

    outcome: list[ImageRecord] | Failure
    reported: metrics.Captured


class _WriteImageDoFn(beam.DoFn):
    """Encodes and writes images behind the model, several at once."""

    def __init__(self, layout: OutputLayout, quality: int, compress_level: int = DEFAULT_COMPRESS_LEVEL) -> None:
        self._layout, self._quality, self._level = layout, quality, compress_level

    def start_bundle(self) -> None:
        self._budget = ByteBudget(_BYTES_BEHIND)
        self._overlap = Overlap(self._written)

    def process(self, element: TransportPrediction) -> Iterator[Any]:
        result = element.inference
        if isinstance(result, Failure):
            yield beam.pvalue.TaggedOutput("failures", result)
            return
        if isinstance(result, GatheredStatistics):
            yield from (beam.pvalue.TaggedOutput("statistics", statistics) for statistics in result.groups)
            return
        self._budget.take(result.nbytes)  # waits until enough is written
        for written in self._overlap.put(result):
            yield from _outputs(written.result())

    def finish_bundle(self) -> Iterator[Any]:
        for written in self._overlap.drain():
            yield from map(in_global_window, _outputs(written.result()))
        self._overlap.close()

    def _written(self, result: TransportedImage) -> _Written:
        try:
            with metrics.captured() as reported:
                records = [self._write(result, index, alpha) for index, alpha in enumerate(self._layout.alphas)]
                metrics.count(metrics.IMAGES_WRITTEN)
        except Exception as error:  # one bad image costs one row, whatever the store raised
            return _Written(Failure.of(result.loaded.ref, "write", error), reported)
        finally:
            self._budget.give_back(result.nbytes)
        return _Written(records, reported)

    def _write(self, result: TransportedImage, index: int, alpha: float) -> ImageRecord:
        start = time.perf_counter()
        ref, image = result.loaded.ref, result.loaded.image
        with metrics.timed("encode_image"):
            data = encode_image(result.pixels[index], image, self._layout.format, self._quality, self._level)
        storage.check_key(ref.key)
        url = self._layout.written_image(alpha, ref.key)
        with metrics.timed("write"):
            storage.write_bytes(url, data)
        metrics.count(metrics.BYTES_WRITTEN, len(data))
        height, width = result.pixels[index].shape[:2]
        seconds = result.seconds / len(self._layout.alphas) + time.perf_counter() - start
        digest = hashlib.sha256(data).hexdigest()
        size = width, height, len(data)
        return ImageRecord(ref.key, ref.source_uri, url, alpha, *size, digest, seconds, ref.version, ref.subgroup)


def _outputs(written: _Written) -> Iterator[Any]:
    metrics.replay(written.reported)
    if isinstance(written.outcome, Failure):
        yield beam.pvalue.TaggedOutput("failures", written.outcome)
    else:
        yield from written.outcome
