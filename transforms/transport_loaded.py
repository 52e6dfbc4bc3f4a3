"""Transporting images that are in memory already; fuses with the steps that read and write them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.typehints.decorators import no_annotations

from ot_core import FittedMap, GaussianStatistics
from ot_core.parts import Part
from transforms.batching import BatchByPixels
from transforms.elements import (
    Failure,
    GatheredStatistics,
    ImageBatch,
    LoadedImage,
    TransportedImage,
    TransportPrediction,
)
from transforms.latent_statistics import MergeStatistics
from transforms.transport_handler import TransportModelHandler, TransportOptions
from transforms.windows import check_windows


class LoadedOutcome(NamedTuple):
    """Result of `TransportLoaded`: transported images, and those that could not be."""

    images: beam.PCollection[TransportedImage]
    failures: beam.PCollection[Failure]


class LoadedOutcomeWithStatistics(NamedTuple):
    """The same, and (Part, GaussianStatistics) of the latents: see `transforms.write_drift`."""

    images: beam.PCollection[TransportedImage]
    failures: beam.PCollection[Failure]
    statistics: beam.PCollection[tuple[Part, GaussianStatistics]]


@beam.typehints.with_input_types(LoadedImage)
class TransportLoaded(beam.PTransform):
    """Transports images in memory with a fitted map: LoadedImage -> TransportedImage, Failure.

    Args:
        map: URL of the transport map; or of several by group, of which "" is for images of any other; or
            `beam.pvalue.AsSingleton` of the result of `FitTransportMap`, so that one pipeline fits and transports.
        alphas: weights of the restored image in the results: 0 is full transport, 1 the restored image.
        vae: the autoencoder; default the one that the map names.
        max_batch_pixels: see `BatchByPixels`; larger images are done in overlapping tiles of so many pixels.
        statistics: whether to give statistics of the latents too, as a third result; see `TransportImages`.
        precision: as in `TransportModelHandler`.
        device: likewise.
        options: likewise.
    """

    def __init__(
        self,
        map: str | Mapping[str, str] | beam.pvalue.AsSingleton,
        alphas: Sequence[float] = (0.0,),
        vae: str | None = None,
        max_batch_pixels: int | None = None,
        statistics: bool = False,
        precision: str | None = None,
        device: str | None = None,
        options: TransportOptions | None = None,
    ) -> None:
        super().__init__()
        self._side_input = map if isinstance(map, beam.pvalue.AsSideInput) else None
        self._handler = TransportModelHandler(
            {} if isinstance(map, beam.pvalue.AsSideInput) else map,
            alphas,
            vae,
            device,
            precision,
            max_batch_pixels or None,
            statistics,
            options,
            batched=True,
        )
        self._alphas, self._statistics, self._max_batch_pixels = tuple(alphas), statistics, max_batch_pixels

    @property
    def maps(self) -> Mapping[str, str]:
        """URLs of the maps by group; none where the map is a side input."""
        return self._handler.maps

    def display_data(self) -> dict[str, Any]:
        """Shown by runners' user interfaces."""
        return {"map": ", ".join(self.maps.values()), "alphas": ", ".join(map(str, self._alphas))}

    @no_annotations
    def expand(self, images: beam.PCollection[LoadedImage]) -> LoadedOutcome | LoadedOutcomeWithStatistics:
        """Only the merging of statistics ends outside of the stage, after each bundle's have been merged within."""
        check_windows(self, images, *([self._side_input.pvalue] if self._side_input else []))
        batches = images | "BatchByPixels" >> BatchByPixels(self._max_batch_pixels, self._handler.device)
        if self._side_input is not None:
            attach = beam.Map(_with_map, self._side_input).with_output_types(ImageBatch)
            batches = batches | "AttachMap" >> attach
        split = beam.FlatMap(_split).with_output_types(TransportedImage)
        transported = (
            batches
            | "RunInference" >> RunInference(self._handler).with_output_types(TransportPrediction)
            | "SplitOutcome" >> split.with_outputs("failures", "statistics", main="images")
        )
        if not self._statistics:
            return LoadedOutcome(transported.images, transported.failures)
        statistics = transported.statistics | "MergeStatistics" >> MergeStatistics(Part)
        return LoadedOutcomeWithStatistics(transported.images, transported.failures, statistics)


def _with_map(batch: ImageBatch, of_group: tuple[str, FittedMap]) -> ImageBatch:
    _, batch.map = of_group
    return batch


def _split(prediction: TransportPrediction) -> Iterator[Any]:
    result = prediction.inference
    if isinstance(result, Failure):
        yield beam.pvalue.TaggedOutput("failures", result)
    elif isinstance(result, GatheredStatistics):
        yield from (beam.pvalue.TaggedOutput("statistics", statistics) for statistics in result.parts)
    else:
        yield result
