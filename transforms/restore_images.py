"""Restoring images within a job, and degrading natural ones to make pairs; both stay in the stage that reads them."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.typehints.decorators import no_annotations

from ot_core import Cause, DecodedImage, ImageError
from ot_core.degradation import Degradation
from ot_core.engine import Engine
from ot_core.hardware import chosen_device
from ot_core.images import DEFAULT_MAX_PIXELS
from ot_core.restorer import TILE_PIXELS, Restorer, load_restorer, restored_image
from transforms import metrics
from transforms.batching import BatchByPixels
from transforms.elements import Failure, LoadedImage, RestorePrediction
from transforms.model_handlers import ImageModelHandler
from transforms.windows import check_windows


class RestoreOutcome(NamedTuple):
    """Result of `RestoreImages`: restored images, and those that could not be."""

    images: beam.PCollection[LoadedImage]
    failures: beam.PCollection[Failure]


@dataclass(frozen=True, eq=False)
class RestoreModel:
    """What a worker that restores holds in memory, once per process.

    Attributes:
        restorer: the model.
        engine: where it works.
    """

    restorer: Restorer
    engine: Engine


class RestoreModelHandler(ImageModelHandler):
    """Restores images. Inference gives a `RestorePrediction` for each.

    Args:
        restorer: what `ot_core.load_restorer` takes.
        sides: restore the images of these sides alone, and let the others through as they are; default all.
        max_pixels: an image that becomes larger is a failure.
        tile_pixels: a larger input is restored in overlapping tiles.
        device: torch device; default CUDA where there is one.
        precision: as in `ot_core.load_restorer`.
        **kwargs: as in `ImageModelHandler`.
    """

    def __init__(
        self,
        restorer: str,
        sides: Collection[str] | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        tile_pixels: int | None = None,
        device: str | None = None,
        precision: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(device=device, **kwargs)
        self._restorer, self._sides, self._max_pixels = restorer, sides, max_pixels
        self._tile_pixels = tile_pixels or TILE_PIXELS
        self._precision = precision

    def load(self) -> RestoreModel:
        """Loads the restorer, once per process."""
        with metrics.timed("load_restorer"):
            restorer = load_restorer(self._restorer, self.device, self._precision)
            # Budgets are of restored pixels, of which there may be many times as many.
            return RestoreModel(restorer, Engine(chosen_device(self.device), self._tile_pixels * restorer.scale**2))

    def infer(self, batch: Sequence[LoadedImage], model: RestoreModel) -> list[RestorePrediction]:
        """See the class."""
        start = time.perf_counter()
        images = self.loaded(batch)
        chosen = [loaded for loaded in images if self._sides is None or loaded.ref.side in self._sides]
        others = [loaded for loaded in images if not (self._sides is None or loaded.ref.side in self._sides)]
        with metrics.timed("restore"):
            outcomes = list(self._restored(chosen, model))
        share = (time.perf_counter() - start) / max(len(chosen), 1)
        fingerprint = model.restorer.fingerprint
        results = [RestorePrediction(loaded.ref, loaded, fingerprint) for loaded in others]
        for loaded, result in outcomes:
            inference: LoadedImage | Failure
            if isinstance(result, Exception):
                inference = Failure.of(loaded.ref, "restore", result)
            else:
                metrics.count(metrics.IMAGES_RESTORED)
                inference = LoadedImage(loaded.ref, result, loaded.seconds + share)
            results.append(RestorePrediction(loaded.ref, inference, fingerprint))
        return results

    def _restored(
        self, images: Sequence[LoadedImage], model: RestoreModel
    ) -> Iterator[tuple[LoadedImage, DecodedImage | Exception]]:
        restorer = model.restorer

        def restore(alike: Sequence[LoadedImage], tile_pixels: int) -> list[DecodedImage | ImageError]:
            return self._restore(alike, restorer, tile_pixels)

        def size(loaded: LoadedImage) -> tuple[int, int]:
            return restorer.padded_size(*loaded.size)

        return model.engine.over_images(images, size, restore, metrics.observe_batch)

    def _restore(
        self, images: Sequence[LoadedImage], restorer: Restorer, tile_pixels: int
    ) -> list[DecodedImage | ImageError]:
        height, width = (restorer.scale * side for side in images[0].size)
        if height * width > self._max_pixels:
            message = f"{width}x{height} pixels when restored, over the limit of {self._max_pixels}"
            return [ImageError(Cause.TOO_LARGE, message)] * len(images)
        if restorer.alone and len(images) > 1:
            return [self._restore([image], restorer, tile_pixels)[0] for image in images]
        pixels = restorer([loaded.image.pixels for loaded in images], tile_pixels // restorer.scale**2)
        return [
            result if isinstance(result, ImageError) else restored_image(loaded.image, result)
            for loaded, result in zip(images, pixels, strict=True)
        ]


@beam.typehints.with_input_types(LoadedImage)
class RestoreImages(beam.PTransform):
    """Restores images in memory: LoadedImage -> LoadedImage, Failure.

    Args:
        restorer: what `ot_core.load_restorer` takes.
        sides: as in `RestoreModelHandler`.
        max_pixels: as in `RestoreModelHandler`.
        max_batch_pixels: see `BatchByPixels`; larger images are restored in overlapping tiles of so many pixels.
        precision: as in `ot_core.load_restorer`.
        device: as in `RestoreModelHandler`.
    """

    def __init__(
        self,
        restorer: str,
        sides: Collection[str] | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        max_batch_pixels: int | None = None,
        precision: str | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self._handler = RestoreModelHandler(
            restorer, sides, max_pixels, max_batch_pixels or None, device, precision, batched=True
        )
        self._restorer, self._max_batch_pixels, self._device = restorer, max_batch_pixels, device

    def display_data(self) -> dict[str, Any]:
        """Shown by runners' user interfaces."""
        return {"restorer": self._restorer}

    @no_annotations
    def expand(self, images: beam.PCollection[LoadedImage]) -> RestoreOutcome:
        """Fuses with the steps around it."""
        check_windows(self, images)
        restored = (
            images
            | "BatchByPixels" >> BatchByPixels(self._max_batch_pixels, self._device)
            | "RunInference" >> RunInference(self._handler).with_output_types(RestorePrediction)
            | "SplitOutcome"
            >> beam.FlatMap(_split).with_output_types(LoadedImage).with_outputs("failures", main="images")
        )
        return RestoreOutcome(restored.images, restored.failures)


def _split(prediction: RestorePrediction) -> Iterator[Any]:
    if isinstance(prediction.inference, Failure):
        yield beam.pvalue.TaggedOutput("failures", prediction.inference)
    else:
        yield prediction.inference


@beam.typehints.with_input_types(LoadedImage)
class DegradeImages(beam.PTransform):
    """Gives each image and a degraded copy of it: LoadedImage -> LoadedImage, Failure.

    Of an image whose sides aren't multiples of the degradation's scale, the part whose sides are.

    Args:
        spec: see `ot_core.degradation`.
        original: the side of the image itself.
        degraded: the side of the copy.

    Raises:
        UserError: if the spec can't be understood.
    """

    def __init__(self, spec: str, original: str = "target", degraded: str = "source") -> None:
        super().__init__()
        self._degradation, self._sides = Degradation(spec), (original, degraded)

    def display_data(self) -> dict[str, Any]:
        """Shown by runners' user interfaces."""
        return {"degradation": self._degradation.spec}

    @no_annotations
    def expand(self, images: beam.PCollection[LoadedImage]) -> RestoreOutcome:
        """One fused step."""
        check_windows(self, images)
        degrade = beam.ParDo(_DegradeDoFn(self._degradation, *self._sides)).with_output_types(LoadedImage)
        both = images | "Degrade" >> degrade.with_outputs("failures", main="images")
        return RestoreOutcome(both.images, both.failures)


class _DegradeDoFn(beam.DoFn):
    def __init__(self, degradation: Degradation, original: str, degraded: str) -> None:
        self._degradation, self._original, self._degraded = degradation, original, degraded

    def process(self, element: LoadedImage) -> Iterator[Any]:
        ref = element.ref
        copy = ref._replace(side=self._degraded)
        start = time.perf_counter()
        try:
            with metrics.timed("degrade"):
                original = self._degradation.cropped(element.image)
                image = self._degradation(original, ref.key)
        except ImageError as error:
            yield beam.pvalue.TaggedOutput("failures", Failure.of(copy, "degrade", error))
            return
        yield element._replace(image=original)
        yield LoadedImage(copy, image, time.perf_counter() - start)
