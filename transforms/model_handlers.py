"""Beam ModelHandlers around the autoencoder and other networks. One image that fails never takes its batch along."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from apache_beam.ml.inference.base import ModelHandler
from numpy.typing import NDArray
from torch import Tensor

from ot_core import (
    Autoencoder,
    DecodedImage,
    FittedMap,
    GaussianStatistics,
    ImageError,
    LatentTransport,
    UserError,
    ZeroShotTransport,
)
from ot_core.choices import INTERPOLATIONS
from ot_core.device import described
from ot_core.engine import over_images, workers_of
from ot_core.features import FeatureExtractor, LatentFeatures
from ot_core.fitting import autoencoder_of, read_maps
from ot_core.hardware import chosen_device, default_tile_pixels
from ot_core.parts import Part
from ot_core.transporting import transport_pixels
from transforms import metrics
from transforms.drift import ImageStatistics, gather
from transforms.elements import (
    Failure,
    GatheredStatistics,
    ImageRef,
    LoadedImage,
    TransportedImage,
    TransportPrediction,
)
from transforms.worker import ends_with_device

_Pixels = tuple[NDArray[np.generic], ...]
#: An image, and its number in the batch: two may have one reference.
_Numbered = tuple[int, LoadedImage]


class _Transported(NamedTuple):
    """The results of one image, and what statistics are gathered of."""

    pixels: _Pixels
    statistics: ImageStatistics | None


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
        return chosen_device() if self.device is None else self.device

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
        workers: as in `TransportModel`.
    """

    by_feature: Mapping[str, Any]
    workers: Executor | None = None


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
            return FeatureModels(models, workers_of(chosen_device(self.device)))

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

        def statistics(equal: Sequence[_Numbered], _: int) -> list[GaussianStatistics | ImageError]:
            return extractor.statistics([loaded.image.pixels for _, loaded in equal], model)

        most = default_tile_pixels(self.placed)
        return over_images(images, size, statistics, most, models.workers, metrics.observe_batch)


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


@dataclass(frozen=True, eq=False)
class TransportModel:
    """What a transport worker holds in memory, once per process.

    Attributes:
        autoencoder: encodes and decodes.
        transports: the maps by group, on the autoencoder's device; "" is for images of any other.
        workers: on a CPU a thread for each core, in which torch uses one.
        patch_size: the maps'.
        residuals: as in `transport_pixels`, by group.
    """

    autoencoder: Autoencoder
    transports: Mapping[str, LatentTransport | ZeroShotTransport]
    workers: Executor | None = None
    patch_size: int = 3
    residuals: Mapping[str, float] = field(default_factory=dict)

    def group_of(self, ref: ImageRef) -> str:
        """Whose map an image is transported with."""
        return ref.group if ref.group in self.transports else ""

    def transport(self, latents: Tensor, refs: Sequence[ImageRef]) -> Tensor:
        """Each latent by the map of its image: images of several groups are encoded and decoded together."""
        members: dict[str, list[int]] = {}
        for index, ref in enumerate(refs):
            members.setdefault(self.group_of(ref), []).append(index)
        if len(members) == 1:
            return self.transports[next(iter(members))](latents, [ref.key for ref in refs])
        result = torch.empty_like(latents)
        for group, indices in members.items():
            result[indices] = self.transports[group](latents[indices], [refs[index].key for index in indices])
        return result


class LateTransportModel:
    """Makes the model when the first batch brings its map along.

    Args:
        make: the model of a map.
    """

    def __init__(self, make: Callable[[FittedMap], TransportModel]) -> None:
        self._make = make
        self._made: tuple[FittedMap, TransportModel] | None = None
        self._lock = threading.Lock()

    def of(self, fitted: FittedMap) -> TransportModel:
        """The model of a map; made once for each bundle, to which Beam gives the map anew."""
        with self._lock:
            if self._made is None or self._made[0] is not fitted:
                self._made = fitted, self._make(fitted)
            return self._made[1]


class TransportModelHandler(ImageModelHandler):
    """Encodes, transports and decodes images.

    Inference gives a `TransportPrediction` for each image, and with statistics one more.

    Args:
        map: URL of the transport map; or of several, by group, of which "" is for images of any other.
        alphas: weights of the restored image in the results, one result for each.
        vae: the autoencoder; default the one that the map names.
        device: torch device; default CUDA where there is one.
        interpolation: "pixels" mixes the restored image with the transported one by alpha; "latents" mixes their
            latents and decodes the mixture, which moves the map towards the identity.
        kernel_size: folding kernel k <= p, odd; default p.
        sigma: standard deviation of Gaussian folding weights in latent pixels; infinite means uniform.
        zero_shot: each image's own statistics take the place of the map's source.
        residual: as in `transport_pixels`; default the map's own, or 0 with `zero_shot`.
        precision: one of `ot_core.choices.PRECISIONS`; default the device's fastest.
        compiled: see `ot_core.Autoencoder`.
        tile_pixels: larger images are done in overlapping tiles; default `default_tile_pixels`.
        statistics: whether to gather statistics of the latents, before and after transport (`transforms.drift`); not of
            an image that only lacks some alphas, since an earlier run has counted it.
        **kwargs: as in `ImageModelHandler`.

    Raises:
        UserError: if the interpolation isn't known.
    """

    def __init__(
        self,
        map: str | Mapping[str, str],
        alphas: Sequence[float] = (0.0,),
        vae: str | None = None,
        device: str | None = None,
        interpolation: str = "pixels",
        kernel_size: int | None = None,
        sigma: float = math.inf,
        zero_shot: bool = False,
        residual: float | None = None,
        precision: str | None = None,
        compiled: bool = False,
        tile_pixels: int | None = None,
        statistics: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(device=device, **kwargs)
        if interpolation not in INTERPOLATIONS:
            raise UserError(f"interpolation {interpolation}: expected one of {', '.join(INTERPOLATIONS)}")
        self.maps = {"": map} if isinstance(map, str) else dict(map)
        self._alphas, self._vae = tuple(alphas), vae
        self._interpolation, self._zero_shot, self._residual = interpolation, zero_shot, residual
        self._precision, self._compiled, self._tile_pixels = precision, compiled, tile_pixels
        self._statistics = statistics
        self._folding: dict[str, Any] = {"kernel_size": kernel_size, "sigma": sigma}

    def update_model_path(self, model_path: str | None = None) -> None:
        """Lets `model_metadata_pcoll` name the map, so that one pipeline can fit and transport."""
        self.maps = {"": model_path} if model_path else self.maps

    def load(self) -> "TransportModel | LateTransportModel":
        """Loads the maps and the autoencoder, once per process; without a map's URL nothing yet."""
        if not self.maps:
            return LateTransportModel(self._late_model)
        with metrics.timed("load_model"):
            return self._model(read_maps(self.maps, self._vae, self.device, self._precision, self._compiled))

    def _model(self, maps: Iterable[tuple[str, FittedMap, Autoencoder]]) -> TransportModel:
        """Of maps of one space and autoencoder, each of which is let go once it is on the device."""
        transports: dict[str, LatentTransport | ZeroShotTransport] = {}
        residuals: dict[str, float] = {}
        maps = iter(maps)
        first = next(maps)
        _, known, autoencoder = first
        patch_size, options = known.space.patch_size, {"device": autoencoder.device, **self._folding}
        for group, fitted, _ in itertools.chain([first], maps):
            if self._zero_shot:
                transports[group] = ZeroShotTransport(fitted.map, patch_size, fitted.target, **options)
            else:
                transports[group] = LatentTransport(fitted.map, patch_size, **options)
            of_map = 0.0 if self._zero_shot else fitted.residual
            residuals[group] = of_map if self._residual is None else self._residual
        workers = workers_of(autoencoder.device.type)
        return TransportModel(autoencoder, transports, workers, patch_size, residuals)

    def _late_model(self, fitted: FittedMap) -> TransportModel:
        autoencoder = autoencoder_of(
            fitted.space, "of this pipeline", self._vae, self.device, self._precision, self._compiled
        )
        return self._model([("", fitted, autoencoder)])

    def infer(
        self, batch: Sequence[LoadedImage], model: TransportModel | LateTransportModel
    ) -> list[TransportPrediction]:
        """See the class."""
        if isinstance(model, LateTransportModel):
            fitted = getattr(batch, "map", None)
            if fitted is None:
                raise UserError("TransportModelHandler: expected the URL of a map")
            model = model.of(fitted)
        start = time.perf_counter()
        images = self.loaded(batch)
        with metrics.timed("transport"):
            outcomes = list(metrics.through_model(self._outcomes(images, model)))
        share = (time.perf_counter() - start) / max(len(images), 1)
        results: list[TransportPrediction] = []
        statistics: list[ImageStatistics] = []
        for loaded, result in outcomes:
            inference: TransportedImage | Failure | GatheredStatistics
            if isinstance(result, Exception):
                inference = Failure.of(loaded.ref, "transport", result)
            else:
                metrics.count(metrics.IMAGES_TRANSPORTED)
                inference = TransportedImage(loaded, result.pixels, loaded.seconds + share)
                if result.statistics is not None:
                    statistics.append(result.statistics)
            results.append(TransportPrediction(loaded.ref, inference, model.autoencoder.fingerprint))
        if statistics:
            inference = gather(statistics)
            results.append(TransportPrediction(None, inference, model.autoencoder.fingerprint))
        return results

    def _outcomes(
        self, images: Sequence[LoadedImage], model: TransportModel
    ) -> Iterator[tuple[LoadedImage, _Transported | Exception]]:
        def transport(images: Sequence[LoadedImage], tile_pixels: int) -> list[_Transported | ImageError]:
            return self._transport(images, model, tile_pixels)

        tile_pixels = self._tile_pixels or default_tile_pixels(model.autoencoder.device.type)

        def size(loaded: LoadedImage) -> tuple[int, int]:
            return model.autoencoder.padded_size(*loaded.size)

        return over_images(images, size, transport, tile_pixels, model.workers, metrics.observe_batch)

    def _transport(
        self, images: Sequence[LoadedImage], model: TransportModel, tile_pixels: int
    ) -> list[_Transported | ImageError]:
        """Images of one padded shape; a single one of more than tile_pixels in tiles."""
        refs = [loaded.ref for loaded in images]
        pixels = [loaded.image.pixels for loaded in images]
        wanted = [ref.alphas or self._alphas for ref in refs]
        alphas = [alpha for alpha in self._alphas if any(alpha in each for each in wanted)]
        residuals = [model.residuals.get(model.group_of(ref), 0.0) for ref in refs]
        done = transport_pixels(
            pixels,
            model.autoencoder,
            lambda z: model.transport(z, refs),
            alphas,
            tile_pixels,
            self._interpolation,
            residuals,
        )
        results = [
            found
            if isinstance(found, ImageError)
            else tuple(result for alpha, result in zip(alphas, found, strict=True) if alpha in each)
            for found, each in zip(done.results, wanted, strict=True)
        ]
        statistics: Sequence[ImageStatistics | None] = [None] * len(images)
        if self._statistics:
            statistics = [
                None
                if ref.alphas
                else ImageStatistics.of(ref.key, before, after, model.patch_size, model.group_of(ref))
                for ref, before, after in zip(refs, done.before, done.after, strict=True)
            ]
        return [
            result if isinstance(result, ImageError) else _Transported(result, of_image)
            for result, of_image in zip(results, statistics, strict=True)
        ]
