"""Statistics of latent patches and other features, gathered by a combine: the wiring of `ot_core.statistics`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.typehints.decorators import no_annotations

from ot_core import GaussianStatistics
from ot_core.features import FeatureExtractor
from ot_core.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from ot_core.map_file import read_statistics
from ot_core.parts import WHOLE, Part
from transforms.batching import BatchByPixels
from transforms.elements import Failure, ImageRef, LoadedImage
from transforms.model_handlers import FeatureStatisticsModelHandler, LatentStatisticsModelHandler
from transforms.read_images import ReadImages
from transforms.restore_images import DegradeImages, RestoreImages
from transforms.windows import check_windows


@beam.typehints.with_input_types(GaussianStatistics)
@beam.typehints.with_output_types(GaussianStatistics)
class GaussianStatisticsCombineFn(beam.CombineFn):
    """Adds GaussianStatistics. The accumulator is the statistics themselves; None is the empty one."""

    def create_accumulator(self) -> GaussianStatistics | None:
        """Nothing yet, of no dimension yet."""
        return None

    def add_input(self, accumulator: GaussianStatistics | None, element: GaussianStatistics) -> GaussianStatistics:
        """Merging is addition."""
        return element if accumulator is None else accumulator + element

    def merge_accumulators(self, accumulators: Iterable[GaussianStatistics | None]) -> GaussianStatistics | None:
        """Merging is addition."""
        total = None
        for accumulator in accumulators:
            if accumulator is not None:
                total = self.add_input(total, accumulator)
        return total

    def extract_output(self, accumulator: GaussianStatistics | None) -> GaussianStatistics | None:
        """The sum, or None of nothing."""
        return accumulator


class MergeStatistics(beam.PTransform):
    """(key, GaussianStatistics) -> the same, one for each key.

    Args:
        key: the keys' type, which Beam can't see where inference gave them; else it would pickle them.
        fanout: intermediate merges for each key, for very many bundles. Default none.
    """

    def __init__(self, key: Any, fanout: int | None = None) -> None:
        super().__init__()
        self._kind, self._fanout = tuple[key, GaussianStatistics], fanout

    @no_annotations
    def expand(self, statistics: beam.PCollection[Any]) -> beam.PCollection[Any]:
        """Merges what a bundle has before it is shuffled."""
        merge = beam.CombinePerKey(GaussianStatisticsCombineFn())
        if self._fanout is not None:
            merge = merge.with_hot_key_fanout(self._fanout)
        return statistics | "OfKind" >> beam.Map(_same).with_output_types(self._kind) | "Merge" >> merge


def _same(element: Any) -> Any:
    return element


class StatisticsOutcome(NamedTuple):
    """Result of `LatentStatistics` and `FeatureStatistics`: statistics, keyed where these say so, and failures."""

    statistics: beam.PCollection[Any]
    failures: beam.PCollection[Failure]


class LatentStatistics:
    """Statistics of the latent patches of images: `LatentStatistics.PerKey` or `LatentStatistics.Globally`.

    Images are read, decoded and encoded in one fused stage, in which a batch of images becomes one small element
    for each part; only those cross the shuffle. One stage serves all sides, so the model loads once.
    """

    @beam.typehints.with_input_types(ImageRef | LoadedImage)
    class PerKey(beam.PTransform):
        """ImageRef or LoadedImage -> (Part, GaussianStatistics), one for each part that has a usable image.

        Args:
            vae: what `ot_core.load_autoencoder` takes; default the one that ships with the package.
            patch_size: p, odd.
            max_pixels: larger images are failures.
            max_batch_pixels: see `BatchByPixels`.
            fanout: intermediate merges for each part, for very many bundles. Default none.
            precision: see `LatentStatisticsModelHandler`.
            degradation: makes of each image a degraded copy for the side "source" (`DegradeImages`); default none.
            restorer: restores the images of the side "source" first (`RestoreImages`); default nothing.
            max_bytes: larger files are failures.
            margin: pixels that images are continued by before they are encoded; default measured (`ot_core.margin`).
            device: of the models, as in `ot_core.hardware.chosen_device`.
        """

        def __init__(
            self,
            vae: str | None = None,
            patch_size: int = 3,
            max_pixels: int = DEFAULT_MAX_PIXELS,
            max_batch_pixels: int | None = None,
            fanout: int | None = None,
            precision: str | None = "float32",
            degradation: str | None = None,
            restorer: str | None = None,
            max_bytes: int = DEFAULT_MAX_BYTES,
            margin: int | None = None,
            device: str | None = None,
        ) -> None:
            super().__init__()
            self._read = ReadImages(max_pixels, max_bytes)
            self._degrade = DegradeImages(degradation) if degradation else None
            self._restore = (
                RestoreImages(restorer, ("source",), max_pixels, max_batch_pixels, precision, device)
                if restorer
                else None
            )
            self._handler = LatentStatisticsModelHandler(vae, patch_size, device, precision, margin, batched=True)
            self._device = device
            self._vae, self._patch_size = vae, patch_size
            self._max_batch_pixels, self._fanout = max_batch_pixels, fanout

        def display_data(self) -> dict[str, Any]:
            """Shown by runners' user interfaces."""
            return {"vae": self._vae or "default", "patch_size": self._patch_size}

        @no_annotations
        def expand(self, images: beam.PCollection[ImageRef | LoadedImage]) -> StatisticsOutcome:
            """Read, unless they are in memory; degrade, restore, encode, merge."""
            check_windows(self, images)
            failures: list[beam.PCollection[Failure]] = []
            if images.element_type is not LoadedImage:
                images, unread = images | "ReadImages" >> self._read
                failures.append(unread)
            if self._degrade is not None:
                images, undegraded = images | "DegradeImages" >> self._degrade
                failures.append(undegraded)
            if self._restore is not None:
                images, unrestored = images | "RestoreImages" >> self._restore
                failures.append(unrestored)
            batching = BatchByPixels(self._max_batch_pixels, self._device)
            merge = MergeStatistics(Part, self._fanout)
            statistics, unencoded = _gather(images, batching, "EncodeLatents", self._handler, merge)
            all_failures = (*failures, unencoded) | "FlattenFailures" >> beam.Flatten()
            return StatisticsOutcome(statistics, all_failures)

    @beam.typehints.with_input_types(ImageRef | LoadedImage)
    class Globally(beam.PTransform):
        """ImageRef or LoadedImage -> GaussianStatistics over all parts; no element where no image was usable.

        Args:
            per_key: how they are gathered; default as `LatentStatistics.PerKey` does by itself.
        """

        def __init__(self, per_key: "LatentStatistics.PerKey | None" = None) -> None:
            super().__init__()
            self._per_key = per_key or LatentStatistics.PerKey()

        @no_annotations
        def expand(self, images: beam.PCollection[ImageRef | LoadedImage]) -> StatisticsOutcome:
            """All images are put into one part."""
            check_windows(self, images)
            in_one_part = beam.Map(_in_one_part).with_output_types(images.element_type)
            statistics, failures = images | "OnePart" >> in_one_part | "PerKey" >> self._per_key
            return StatisticsOutcome(statistics | "Statistics" >> beam.Values(), failures)


class ReadStatistics(beam.PTransform):
    """Statistics that were gathered before: gives (Part, GaussianStatistics), as `LatentStatistics.PerKey`.

    Args:
        sides: (side, URL): of the statistics file or map at the URL, the parts of that side.
    """

    def __init__(self, sides: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._sides = list(sides)

    @no_annotations
    def expand(self, pbegin: beam.Pipeline) -> beam.PCollection[tuple[Part, GaussianStatistics]]:
        """Read by a worker: a job's graph has no room for large matrices."""
        return pbegin | "Files" >> beam.Create(self._sides) | "ReadFile" >> beam.FlatMapTuple(_read_side)


def _read_side(side: str, url: str) -> Iterator[tuple[Part, GaussianStatistics]]:
    yield from read_statistics(url).of_side(side).items()


@beam.typehints.with_input_types(LoadedImage)
class FeatureStatistics(beam.PTransform):
    """LoadedImage -> ((feature, Part), GaussianStatistics), one for each feature and part that has a usable image.

    For images that come from `ReadImages` or `CompareImages`; stays in one stage with them. A statistics object of D
    dimensions takes 8 D^2 bytes (32 MiB for Inception's 2048), so a batch of images is merged in the model's stage, and
    runners merge the batches of a bundle before they shuffle anything (combiner lifting): what crosses the shuffle, and
    what is held, is one object for each feature, part and bundle.

    Args:
        extractors: by the features' names.
        max_batch_pixels: see `BatchByPixels`.
        fanout: see `LatentStatistics.PerKey`.
        device: of the models, as the extractors were told.
    """

    def __init__(
        self,
        extractors: Mapping[str, FeatureExtractor],
        max_batch_pixels: int | None = None,
        fanout: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self._handler = FeatureStatisticsModelHandler(extractors, batched=True, device=device)
        self._device = device
        self._names, self._max_batch_pixels, self._fanout = list(extractors), max_batch_pixels, fanout
        self._whole = frozenset(name for name, extractor in extractors.items() if not extractor.in_parts)

    def display_data(self) -> dict[str, Any]:
        """Shown by runners' user interfaces."""
        return {"features": ", ".join(self._names)}

    @no_annotations
    def expand(self, images: beam.PCollection[LoadedImage]) -> StatisticsOutcome:
        """Batch, extract, merge."""
        check_windows(self, images)
        batching = BatchByPixels(self._max_batch_pixels, self._device)
        merge = MergeStatistics(tuple[str, Part], self._fanout)
        return _gather(images, batching, "ExtractFeatures", self._handler, merge, self._whole)


def _gather(
    images: beam.PCollection[LoadedImage],
    batching: BatchByPixels,
    label: str,
    handler: FeatureStatisticsModelHandler,
    merge: MergeStatistics,
    whole: frozenset[str] = frozenset(),
) -> StatisticsOutcome:
    outcomes = (
        images
        | "BatchByPixels" >> batching
        | label >> RunInference(handler)
        | "SplitOutcome" >> beam.ParDo(_SplitOutcomeDoFn(whole)).with_outputs("failures", main="statistics")
    )
    return StatisticsOutcome(outcomes.statistics | "MergeStatistics" >> merge, outcomes.failures)


def _in_one_part(image: Any) -> Any:
    if isinstance(image, LoadedImage):
        return image._replace(ref=_in_one_part(image.ref))
    return image._replace(side="", group="", part_number=WHOLE)


class _SplitOutcomeDoFn(beam.DoFn):
    def __init__(self, whole: frozenset[str]) -> None:
        self._whole = whole

    def process(self, element: Any) -> Iterator[Any]:
        if isinstance(element, Failure):
            yield beam.pvalue.TaggedOutput("failures", element)
            return
        key, statistics = element
        if self._whole and key[0] in self._whole:  # of features, by name and part
            key = (key[0], key[1]._replace(number=WHOLE))
        yield key, statistics
