"""Comparing candidates with a reference, image by image and as distributions: the wiring of `ot_core.quality`."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations

from ot_core import Cause, GaussianStatistics, ImageError
from ot_core.features import FeatureExtractor
from ot_core.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS
from ot_core.leaving_out import Distance, measured_distance
from ot_core.parts import Part
from ot_core.quality import Quality, QualityTotals, load_lpips, mean_squared_error, measure
from ot_core.restorer import load_restorer, restore_image
from transforms import metrics
from transforms.elements import Change, Failure, ImageQuality, ImageRef, LoadedImage, failure_of_side
from transforms.read_images import read_image
from transforms.windows import check_windows
from transforms.worker import ends_with_device

#: The side of the images that all others are compared with.
REFERENCE = "reference"
#: Statistics of a feature of the images of a part.
_OfFeature = tuple[tuple[str, Part], GaussianStatistics]


class CompareOutcome(NamedTuple):
    """Result of `CompareImages`.

    Attributes:
        images: every image that could be read, of the reference too, paired or not.
        quality: a row for each pair.
        changes: one for each reference that an enhanced candidate was compared with.
        failures: images that couldn't be read, have no reference, or not its size.
    """

    images: beam.PCollection[LoadedImage]
    quality: beam.PCollection[ImageQuality]
    changes: beam.PCollection[Change]
    failures: beam.PCollection[Failure]


@beam.typehints.with_input_types(ImageRef)
class CompareImages(beam.PTransform):
    """Compares the images of each candidate with those of the side "reference" that have the same key.

    Only references to images are grouped; then one stage reads each image once, compares it, and hands it on, so that
    `FeatureStatistics` needn't read it again. A reference that no candidate has is handed on and counted.

    Args:
        baseline: the candidate from which the others' `change` is measured; default the reference itself.
        enhanced: the candidates that `changes` tells of; default all but the baseline.
        lpips_weights: see `ot_core.quality.Lpips`; default no LPIPS.
        max_pixels: larger images are failures.
        max_bytes: larger files are failures.
        restorer: restores the images of the baseline first (`ot_core.load_restorer`); default nothing.
        device: of the models, as in `ot_core.hardware.chosen_device`.
    """

    def __init__(
        self,
        baseline: str | None = None,
        enhanced: Collection[str] | None = None,
        lpips_weights: str | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        max_bytes: int = DEFAULT_MAX_BYTES,
        restorer: str | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self._compare = _CompareDoFn(
            baseline or REFERENCE, enhanced, lpips_weights, max_pixels, max_bytes, restorer, device
        )

    @no_annotations
    def expand(self, refs: beam.PCollection[ImageRef]) -> CompareOutcome:
        """Group references, then one fused step."""
        check_windows(self, refs)
        compared = (
            refs
            | "KeyByKey" >> beam.Map(_by_key)
            | "GroupByKey" >> beam.GroupByKey()
            | "Compare"
            >> beam.ParDo(self._compare)
            .with_output_types(LoadedImage)
            .with_outputs("quality", "changes", "failures", main="images")
        )
        return CompareOutcome(compared.images, compared.quality, compared.changes, compared.failures)


def _by_key(ref: ImageRef) -> tuple[str, ImageRef]:
    return ref.key, ref


class _CompareDoFn(beam.DoFn):
    def __init__(
        self,
        baseline: str,
        enhanced: Collection[str] | None,
        lpips_weights: str | None,
        max_pixels: int,
        max_bytes: int,
        restorer: str | None,
        device: str | None,
    ) -> None:
        self._restorer, self._device = restorer, device
        self._baseline, self._enhanced, self._lpips_weights = baseline, enhanced, lpips_weights
        self._max_pixels, self._max_bytes = max_pixels, max_bytes

    @ends_with_device()
    def setup(self) -> None:
        self._lpips = load_lpips(self._lpips_weights, self._device) if self._lpips_weights else None
        self._loaded = load_restorer(self._restorer, self._device) if self._restorer else None

    def process(self, element: tuple[str, Iterable[ImageRef]]) -> Iterator[Any]:
        key, found = element
        # The reference and the baseline come first, because the others are compared with them.
        order = (REFERENCE, self._baseline)
        refs = sorted(found, key=lambda ref: (order.index(ref.side) if ref.side in order else len(order), ref.side))
        has_reference = refs[0].side == REFERENCE
        if has_reference and len(refs) == 1:
            metrics.count(metrics.REFERENCES_WITHOUT_CANDIDATE)
        kept: dict[str, LoadedImage] = {}
        rows: list[ImageQuality] = []
        for ref in refs:
            try:
                loaded = read_image(ref, self._max_pixels, self._max_bytes)
            except Exception as error:  # one bad image costs one row, whatever went wrong with it
                yield beam.pvalue.TaggedOutput("failures", Failure.of(ref, "read", error))
                continue
            if self._loaded is not None and ref.side == self._baseline:
                try:
                    with ends_with_device(), metrics.timed("restore"):
                        loaded = loaded._replace(image=restore_image(loaded.image, self._loaded))
                except Exception as error:
                    yield beam.pvalue.TaggedOutput("failures", Failure.of(ref, "restore", error))
                    continue
            yield loaded
            if ref.side in order:
                kept[ref.side] = loaded
            if ref.side == REFERENCE or (has_reference and REFERENCE not in kept):
                continue  # where the reference can't be read, that is one failure, not one for each candidate
            try:
                with ends_with_device():
                    row = self._row(loaded, kept)
            except Exception as error:
                yield beam.pvalue.TaggedOutput("failures", Failure.of(ref, "compare", error))
            else:
                metrics.count(metrics.IMAGES_COMPARED if has_reference else metrics.IMAGES_WITHOUT_REFERENCE)
                yield beam.pvalue.TaggedOutput("quality", row)
                rows.append(row)
        changes = [row.change for row in rows if row.change is not None and self._is_enhanced(row.candidate)]
        if changes:
            compared = {REFERENCE, *(row.candidate for row in rows)}
            found_in = tuple(ref for ref in refs if ref.side in compared)
            psnr = tuple((row.candidate, row.psnr) for row in rows)
            yield beam.pvalue.TaggedOutput("changes", Change(max(changes), key, found_in, psnr))

    def _is_enhanced(self, candidate: str) -> bool:
        return candidate != self._baseline if self._enhanced is None else candidate in self._enhanced

    def _row(self, loaded: LoadedImage, kept: dict[str, LoadedImage]) -> ImageQuality:
        ref, pixels = loaded.ref, loaded.image.pixels
        baseline, change = kept.get(self._baseline), None
        if baseline is not None and baseline.image.pixels.shape == pixels.shape:
            change = 255 * mean_squared_error(pixels, baseline.image.pixels) ** 0.5
        row = ImageQuality(
            ref.key, ref.side, "", ref.source_uri, None, None, None, None, change, loaded.size[1], loaded.size[0]
        )
        reference = kept.get(REFERENCE)
        if reference is None:
            return row
        if loaded.size != reference.size:
            (height, width), (expected_height, expected_width) = loaded.size, reference.size
            raise ImageError(
                Cause.SIZE_MISMATCH,
                f"{width}x{height} pixels in candidate {ref.side}, but its reference has "
                f"{expected_width}x{expected_height}",
            )
        with metrics.timed("compare"):
            quality = measure(reference.image.pixels, pixels, self._lpips)
        return row._replace(
            reference_uri=reference.ref.source_uri,
            mse=quality.mse,
            psnr=quality.psnr,
            ssim=quality.ssim,
            lpips=quality.lpips,
        )


@beam.typehints.with_input_types(ImageQuality)
@beam.typehints.with_output_types(tuple[str, QualityTotals])
class TotalQuality(beam.PTransform):
    """ImageQuality -> (candidate, QualityTotals)."""

    @no_annotations
    def expand(self, quality: beam.PCollection[ImageQuality]) -> beam.PCollection[tuple[str, QualityTotals]]:
        """A sum for each candidate."""
        check_windows(self, quality)
        return (
            quality
            | "ByCandidate" >> beam.Map(_totals_by_candidate)
            | "SumQuality" >> beam.CombinePerKey(QualityTotals.sum)
        )


def _totals_by_candidate(row: ImageQuality) -> tuple[str, QualityTotals]:
    quality = None if row.mse is None else Quality(row.mse, row.ssim, row.lpips)
    return row.candidate, QualityTotals.of(quality, row.width * row.height, row.change)


class DistanceOutcome(NamedTuple):
    """Result of `FeatureDistances`: ((feature, candidate), distance from the reference), and failures."""

    distances: beam.PCollection[tuple[tuple[str, str], Distance]]
    failures: beam.PCollection[Failure]


@beam.typehints.with_input_types(_OfFeature)
class FeatureDistances(beam.PTransform):
    """((feature, Part), GaussianStatistics) -> ((feature, candidate), Distance) from the side "reference".

    A candidate's parts come together in one element, and the reference's are a side input.

    Args:
        extractors: by the features' names; each has a distance of its own.
    """

    def __init__(self, extractors: Mapping[str, FeatureExtractor]) -> None:
        super().__init__()
        self._extractors = dict(extractors)

    @no_annotations
    def expand(self, statistics: beam.PCollection[_OfFeature]) -> DistanceOutcome:
        """One element for each feature and candidate."""
        check_windows(self, statistics)
        reference = statistics | "Reference" >> beam.Filter(_is_reference)
        measured = (
            statistics
            | "Candidates" >> beam.Filter(_is_candidate)
            | "ByCandidate" >> beam.Map(_by_candidate)
            | "Parts" >> beam.GroupByKey()
            | "Distance"
            >> beam.ParDo(_DistanceDoFn(self._extractors), beam.pvalue.AsDict(reference)).with_outputs(
                "failures", main="distances"
            )
        )
        return DistanceOutcome(measured.distances, measured.failures)


def _is_reference(element: _OfFeature) -> bool:
    return element[0][1].side == REFERENCE


def _is_candidate(element: _OfFeature) -> bool:
    return not _is_reference(element)


def _by_candidate(element: _OfFeature) -> tuple[tuple[str, str], tuple[int, GaussianStatistics]]:
    (feature, part), statistics = element
    return (feature, part.side), (part.number, statistics)


class _DistanceDoFn(beam.DoFn):
    def __init__(self, extractors: Mapping[str, FeatureExtractor]) -> None:
        self._extractors = extractors

    def process(
        self,
        element: tuple[tuple[str, str], Iterable[tuple[int, GaussianStatistics]]],
        references: dict[tuple[str, Part], GaussianStatistics],
    ) -> Iterator[Any]:
        (feature, candidate), found = element
        parts = dict(found)
        reference = {part.number: of_part for (name, part), of_part in references.items() if name == feature}
        with metrics.timed("distance"):
            distance = measured_distance(reference, parts, self._extractors[feature].distance)
        if distance is None:
            message = f"{feature} distance of candidate {candidate}: fewer than 2 vectors on one side"
            failure = failure_of_side(candidate, "distance", Cause.NO_STATISTICS, message)
            yield beam.pvalue.TaggedOutput("failures", failure)
        else:
            yield (feature, candidate), distance
