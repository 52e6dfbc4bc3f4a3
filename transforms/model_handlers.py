"""Beam ModelHandlers around the autoencoder and other networks. One image that fails never takes its batch along."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from apache_beam.ml.inference.base import ModelHandler
from numpy.typing import NDArray

from ot_core import (
    DecodedImage,
    GaussianStatistics,
    ImageError,
)
from ot_core.device import described
from ot_core.engine import Engine
from ot_core.features import FeatureExtractor, LatentFeatures
from ot_core.hardware import chosen_device, default_tile_pixels
from ot_core.parts import Part
from transforms import metrics
from transforms.elements import (
    Failure,
    ImageRef,
    LoadedImage,
)
from transforms.worker import ends_with_device

#: An image, and its number in the batch: two may have one reference.
_Numbered = tuple[int, LoadedImage]


class ImageModelHandler(ModelHandler[Any, Any, Any]):
    """What all handlers share: a batch is a sequence of images, whose metrics are ours.

    `BatchByPixels` makes the batches of our own transforms. A handler that somebody gives to RunInference without it
    lets Beam batch, as Beam's own handlers do, and takes (H, W, 3) uint8 arrays as well as `LoadedImage`.

    A handler loads its model in `load` and gives what inference gives in `infer`. Where Beam shares models among the
    processes of a machine (`large_model`, `model_copies`), the processes reach it by a proxy, see `SharedModel`.

    Args:
        batched: whether the elements are batches already.
        device: of the model, as in `ot_core.hardware.chosen_device`, which each worker asks for itself.
        **kwargs: of Beam's ModelHandler: min_batch_size, max_batch_size, model_copies, env_vars and so on.
    """

    def __init__(self, batched: bool = False, device: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._batched, self.device = batched, device

    @property
    def placed(self) -> str:
        """The torch device; that it is there, `load` has found."""
        return chosen_device(self.device)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Lets every handler end the worker whose device is lost."""
        super().__init_subclass__(**kwargs)
        for name in {"load", "infer"} & set(vars(cls)):
            setattr(cls, name, ends_with_device()(vars(cls)[name]))

    def load(self) -> Any:
        """Loads the model."""
        raise NotImplementedError

    def infer(self, batch: Sequence[Any], model: Any) -> list[Any]:
        """What inference gives for a batch; see the class of the handler."""
        raise NotImplementedError

    def load_model(self) -> Any:
        """As Beam calls it, once per process, or for each copy that processes share."""
        model = self.load()
        return SharedModel(self, model) if self.share_model_across_processes() else model

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> list[Any]:
        """As Beam calls it."""
        if not self.share_model_across_processes():
            return self.infer(batch, model)
        results, reported = model.infer(batch)
        metrics.replay(reported)
        return list(results)

    def should_skip_batching(self) -> bool:
        """Whether `BatchByPixels` has batched already."""
        return self._batched

    def get_num_bytes(self, batch: Sequence[LoadedImage | NDArray[np.uint8]]) -> int:
        """Bytes of pixels in a batch, without pickling them."""
        return sum(image.nbytes if isinstance(image, np.ndarray) else image.image.nbytes for image in batch)

    def get_metrics_namespace(self) -> str:
        """One namespace for all our metrics."""
        return metrics.METRICS_NAMESPACE

    def loaded(self, batch: Sequence[LoadedImage | NDArray[np.uint8]]) -> list[LoadedImage]:
        """The images of a batch, each an object of its own; counts them."""
        metrics.observe(metrics.BATCH_SIZE, len(batch))
        metrics.count(metrics.DEVICE + described(self.placed))
        return [
            LoadedImage(ImageRef("", ""), DecodedImage(image), 0.0) if isinstance(image, np.ndarray) else image
            for image in batch
        ]


class SharedModel:
    """A model that several processes use. Their proxies call methods, and can't reach anything else of it.

    Args:
        handler: the model's.
        model: what its `load` gave.
    """

    def __init__(self, handler: ImageModelHandler, model: Any) -> None:
        self._handler, self._model = handler, model

    def infer(self, batch: Sequence[Any]) -> tuple[list[Any], metrics.Captured]:
        """The results of a batch, and its metrics, which the process that asks reports to Beam."""
        with metrics.captured() as reported:
            return self._handler.infer(batch, self._model), reported


@dataclass(frozen=True, eq=False)
class FeatureModels:
    """What a worker that gathers statistics holds in memory, once per process.

    Attributes:
        by_feature: what each extractor's `load` gave.
        engine: where they work.
    """

    by_feature: Mapping[str, Any]
    engine: Engine


class FeatureStatisticsModelHandler(ImageModelHandler):
    """Gathers statistics of several kinds of features.

    Inference gives one ((feature, Part), GaussianStatistics) for each feature and part in the batch, and a Failure
    for each image of which a feature could not be computed; such an image counts in no feature.

    Args:
        extractors: by the features' names.
        **kwargs: as in `ImageModelHandler`.
    """

    def __init__(self, extractors: Mapping[str, FeatureExtractor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._extractors = dict(extractors)

    def load(self) -> Any:
        """Loads the model of each extractor, once per process."""
        with metrics.timed("load_model"):
            models = {name: extractor.load() for name, extractor in self._extractors.items()}
            device = chosen_device(self.device)
            return FeatureModels(models, Engine(device, default_tile_pixels(device)))

    def infer(
        self, batch: Sequence[LoadedImage], model: FeatureModels
    ) -> list[tuple[Any, GaussianStatistics] | Failure]:
        """See the class."""
        failures: list[Failure] = []
        found: dict[str, dict[int, GaussianStatistics]] = {}  # by the image's number in the batch
        images = list(enumerate(self.loaded(batch)))
        *_, last = self._extractors
        for feature in self._extractors:
            found[feature] = {}
            extracted = self._extract(feature, images, model)
            for (number, loaded), result in metrics.through_model(extracted) if feature == last else extracted:
                if isinstance(result, Exception):
                    failures.append(Failure.of(loaded.ref, "encode", result))
                else:
                    found[feature][number] = result
            images = [(number, loaded) for number, loaded in images if number in found[feature]]
        metrics.count(metrics.IMAGES_ENCODED, len(images))
        parts: dict[Part, list[int]] = {}
        for number, loaded in images:
            parts.setdefault(loaded.ref.part, []).append(number)
        totals = [
            ((feature, part), GaussianStatistics.total([found[feature][number] for number in members]))
            for feature in self._extractors
            for part, members in parts.items()
        ]
        return [*totals, *failures]

    def _extract(
        self, feature: str, images: Sequence[_Numbered], models: FeatureModels
    ) -> Iterator[tuple[_Numbered, GaussianStatistics | Exception]]:
        extractor, model = self._extractors[feature], models.by_feature[feature]

        def size(image: _Numbered) -> tuple[int, int]:
            return extractor.padded_size(model, *image[1].size)

        def statistics(equal: Sequence[_Numbered], most_pixels: int) -> list[GaussianStatistics | ImageError]:
            return extractor.statistics([loaded.image.pixels for _, loaded in equal], model, most_pixels)

        return models.engine.over_images(images, size, statistics, metrics.observe_batch)


class LatentStatisticsModelHandler(FeatureStatisticsModelHandler):
    """Encodes images and gathers the statistics of their latent patches.

    Inference gives one (Part, GaussianStatistics) for each part in the batch, and a Failure for each image that
    could not be encoded.

    Args:
        vae: what `ot_core.load_autoencoder` takes; default the one that ships with the package.
        patch_size: p, odd.
        device: torch device; default CUDA where there is one.
        precision: as in `LatentFeatures`.
        margin: as in `LatentFeatures`.
        **kwargs: as in `ImageModelHandler`.
    """

    def __init__(
        self,
        vae: str | None = None,
        patch_size: int = 3,
        device: str | None = None,
        precision: str | None = "float32",
        margin: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            {"latent": LatentFeatures(vae, patch_size, device, precision, margin)}, device=device, **kwargs
        )

    def infer(
        self, batch: Sequence[LoadedImage], model: FeatureModels
    ) -> list[tuple[Part, GaussianStatistics] | Failure]:
        """See the class."""
        outcomes = super().infer(batch, model)
        return [o if isinstance(o, Failure) else (o[0][1], o[1]) for o in outcomes]
