"""Beam ModelHandlers around the autoencoder and other networks. One image that fails never takes its batch along."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from apache_beam.ml.inference.base import ModelHandler
from numpy.typing import NDArray

from ot_core import (
    Autoencoder,
    Cause,
    GaussianStatistics,
    ImageError,
    LatentTransport,
    MapFileError,
    TransportMap,
    UserError,
    ZeroShotTransport,
    blend,
    load_autoencoder,
    read_map,
)
from ot_core.autoencoder import DEFAULT_VAE, is_factory
from ot_core.features import FeatureExtractor, LatentFeatures, to_tensor
from transforms import metrics
from transforms.elements import Failure, ImageBatch, LoadedImage, TransportedImage, TransportPrediction

_Result = TypeVar("_Result")
#: Where alpha mixes the restored image with the transported one.
INTERPOLATIONS = ("pixels", "latents")
_Pixels = tuple[NDArray[np.uint8], ...]


class _ImageModelHandler(ModelHandler[ImageBatch, Any, Any]):
    """What both handlers share: batches come ready-made, and are weighed without pickling them."""

    def should_skip_batching(self) -> bool:
        """`BatchByPixels` has batched already."""
        return True

    def get_num_bytes(self, batch: ImageBatch) -> int:
        """Bytes of pixels in a batch."""
        return sum(loaded.image.nbytes for loaded in batch.images)

    def get_metrics_namespace(self) -> str:
        """One namespace for all our metrics."""
        return metrics.METRICS_NAMESPACE


class FeatureModels(dict[str, Any]):
    """The model of each feature. Beam holds models by weak reference, which a plain dict doesn't allow."""


class FeatureStatisticsModelHandler(_ImageModelHandler):
    """Gathers statistics of several kinds of features.

    Inference gives one ((feature, group), GaussianStatistics) for each feature and group in the batch, and a Failure
    for each image of which a feature could not be computed; such an image counts in no feature.

    Args:
        extractors: by the features' names.
    """

    def __init__(self, extractors: Mapping[str, FeatureExtractor]) -> None:
        super().__init__()
        self._extractors = dict(extractors)

    def load_model(self) -> Any:
        """Loads the model of each extractor, once per process."""
        with metrics.timed("load_model"):
            return FeatureModels({name: extractor.load() for name, extractor in self._extractors.items()})

    def run_inference(
        self, batch: ImageBatch, model: Any, inference_args: dict[str, Any] | None = None
    ) -> list[tuple[Any, GaussianStatistics] | Failure]:
        """See the class."""
        metrics.observe(metrics.BATCH_SIZE, len(batch.images))
        failures: list[Failure] = []
        found: dict[str, dict[int, GaussianStatistics]] = {}  # by the image's identity: two may have one reference
        images = list(batch.images)
        for feature in self._extractors:
            found[feature] = {}
            for loaded, result in self._extract(feature, images, model[feature]):
                if isinstance(result, Exception):
                    failures.append(Failure.of(loaded.ref, "encode", result))
                else:
                    found[feature][id(loaded)] = result
            images = [loaded for loaded in images if id(loaded) in found[feature]]
        metrics.count(metrics.IMAGES_ENCODED, len(images))
        groups: dict[str, list[int]] = {}
        for loaded in images:
            groups.setdefault(loaded.ref.group, []).append(id(loaded))
        totals = [
            ((feature, group), GaussianStatistics.total([found[feature][image] for image in members]))
            for feature in self._extractors
            for group, members in groups.items()
        ]
        return [*totals, *failures]

    def _extract(
        self, feature: str, images: Sequence[LoadedImage], model: Any
    ) -> Iterator[tuple[LoadedImage, GaussianStatistics | Exception]]:
        extractor = self._extractors[feature]
        return _over_equal_shapes(
            images,
            lambda height, width: extractor.padded_size(model, height, width),
            lambda equal: extractor.statistics([loaded.image.pixels for loaded in equal], model),
        )


class LatentStatisticsModelHandler(FeatureStatisticsModelHandler):
    """Encodes images and gathers the statistics of their latent patches.

    Inference gives one (group, GaussianStatistics) for each group in the batch, and a Failure for each image that
    could not be encoded.

    Args:
        vae: what `ot_core.load_autoencoder` takes; default the one that ships with the package.
        patch_size: p, odd.
        device: torch device; default CUDA where there is one.
    """

    def __init__(self, vae: str | None = None, patch_size: int = 3, device: str | None = None) -> None:
        super().__init__({"latent": LatentFeatures(vae, patch_size, device)})

    def load_model(self) -> Autoencoder:
        """Loads the autoencoder, once per process."""
        return super().load_model()["latent"]

    def run_inference(
        self, batch: ImageBatch, model: Autoencoder, inference_args: dict[str, Any] | None = None
    ) -> list[tuple[str, GaussianStatistics] | Failure]:
        """See the class."""
        outcomes = super().run_inference(batch, FeatureModels(latent=model))
        return [o if isinstance(o, Failure) else (o[0][1], o[1]) for o in outcomes]


@dataclass(frozen=True, eq=False)
class TransportModel:
    """What a transport worker holds in memory, once per process.

    Attributes:
        autoencoder: encodes and decodes.
        transport: the map, on the autoencoder's device.
    """

    autoencoder: Autoencoder
    transport: LatentTransport | ZeroShotTransport


class TransportModelHandler(_ImageModelHandler):
    """Encodes, transports and decodes images.

    Inference gives a PredictionResult for each image; see `TransportPrediction`.

    Args:
        map: URL of the transport map.
        alphas: weights of the restored image in the results, one result for each.
        vae: the autoencoder; default the one that the map names.
        device: torch device; default CUDA where there is one.
        interpolation: "pixels" mixes the restored image with the transported one by alpha; "latents" mixes their
            latents and decodes the mixture, which moves the map towards the identity.
        kernel_size: folding kernel k <= p, odd; default p.
        sigma: standard deviation of Gaussian folding weights in latent pixels; infinite means uniform.
        zero_shot: each image's own statistics take the place of the map's source.

    Raises:
        UserError: if the interpolation isn't known.
    """

    def __init__(
        self,
        map: str,
        alphas: Sequence[float] = (0.0,),
        vae: str | None = None,
        device: str | None = None,
        interpolation: str = "pixels",
        kernel_size: int | None = None,
        sigma: float = math.inf,
        zero_shot: bool = False,
    ) -> None:
        super().__init__()
        if interpolation not in INTERPOLATIONS:
            raise UserError(f"interpolation {interpolation}: expected one of {', '.join(INTERPOLATIONS)}")
        self._map, self._alphas, self._vae, self._device = map, tuple(alphas), vae, device
        self._interpolation, self._zero_shot = interpolation, zero_shot
        self._folding: dict[str, Any] = {"kernel_size": kernel_size, "sigma": sigma}

    def update_model_path(self, model_path: str | None = None) -> None:
        """Lets `model_metadata_pcoll` name the map, so that one pipeline can fit and transport."""
        self._map = model_path or self._map

    def load_model(self) -> TransportModel:
        """Loads the map and the autoencoder, once per process."""
        with metrics.timed("load_model"):
            transport_map = read_map(self._map)
            autoencoder = autoencoder_of_map(transport_map, self._map, self._vae, self._device)
            transport = ZeroShotTransport if self._zero_shot else LatentTransport
            return TransportModel(autoencoder, transport(transport_map, device=autoencoder.device, **self._folding))

    def run_inference(
        self, batch: ImageBatch, model: TransportModel, inference_args: dict[str, Any] | None = None
    ) -> list[TransportPrediction]:
        """See the class."""
        start = time.perf_counter()
        metrics.observe(metrics.BATCH_SIZE, len(batch.images))
        outcomes = list(
            _over_equal_shapes(
                batch.images, model.autoencoder.padded_size, lambda images: self._transport(images, model)
            )
        )
        share = (time.perf_counter() - start) / len(batch.images)
        results = []
        for loaded, result in outcomes:
            inference: TransportedImage | Failure
            if isinstance(result, Exception):
                inference = Failure.of(loaded.ref, "transport", result)
            else:
                metrics.count(metrics.IMAGES_TRANSPORTED)
                inference = TransportedImage(loaded, result, loaded.seconds + share)
            results.append(TransportPrediction(loaded.ref, inference, model.autoencoder.fingerprint))
        return results

    def _transport(self, images: Sequence[LoadedImage], model: TransportModel) -> list[_Pixels | ImageError]:
        autoencoder = model.autoencoder
        latents = autoencoder.encode(to_tensor([loaded.image.pixels for loaded in images], autoencoder))
        with torch.inference_mode():
            transported = model.transport(latents, [loaded.ref.key for loaded in images])
        if self._interpolation == "pixels":
            decoded = [autoencoder.decode(transported)]
            weights: Sequence[float] = self._alphas
        else:
            decoded = [autoencoder.decode(alpha * latents + (1 - alpha) * transported) for alpha in self._alphas]
            weights = [0.0] * len(decoded)
        arrays = [pixels.permute(0, 2, 3, 1).cpu().numpy() for pixels in decoded]
        return [_blended(loaded, [array[i] for array in arrays], weights) for i, loaded in enumerate(images)]


def _blended(loaded: LoadedImage, decoded: list[NDArray[np.float32]], alphas: Sequence[float]) -> _Pixels | ImageError:
    """One result for each alpha, from one decoded image for all of them or one for each."""
    restored = loaded.image.pixels
    cropped = [pixels[: restored.shape[0], : restored.shape[1]] for pixels in decoded]
    if not all(np.isfinite(pixels).all() for pixels in cropped):
        return ImageError(Cause.NOT_FINITE, "the autoencoder decoded NaN or infinity")
    each = cropped if len(cropped) == len(alphas) else cropped * len(alphas)
    return tuple(blend(restored, pixels, alpha) for pixels, alpha in zip(each, alphas, strict=True))


def autoencoder_of_map(
    transport_map: TransportMap, map_url: str, vae: str | None = None, device: str | None = None
) -> Autoencoder:
    """The autoencoder to use with a map: the user's choice, or the one that the map names; checked to be the same.

    A map is data, so it may name a folder, a URL or a hub id, but never code to import: that takes the user's flag.

    Raises:
        MapFileError: if the autoencoder isn't the one that the map was fitted with.
        UserError: if it can't be loaded.
    """
    if vae is None and is_factory(transport_map.vae):
        raise MapFileError(
            f"map {map_url}: was fitted with the autoencoder {transport_map.vae}, which is code; "
            f"pass --vae {transport_map.vae} if you trust it"
        )
    autoencoder = load_autoencoder(vae or transport_map.vae or DEFAULT_VAE, device)
    if transport_map.vae_sha256 and transport_map.vae_sha256 != autoencoder.fingerprint:
        raise MapFileError(
            f"map {map_url}: was fitted with the autoencoder {transport_map.vae} ({transport_map.vae_sha256[:12]}), "
            f"not with {autoencoder.name} ({autoencoder.fingerprint[:12]}); pass the same --vae, or fit again"
        )
    if transport_map.latent_channels != autoencoder.latent_channels:
        raise MapFileError(
            f"map {map_url}: is for {transport_map.latent_channels} latent channels, but the autoencoder "
            f"{autoencoder.name} has {autoencoder.latent_channels}; pass the --vae that it was fitted with"
        )
    return autoencoder


def _over_equal_shapes(
    images: Sequence[LoadedImage],
    padded_size: Callable[[int, int], tuple[int, int]],
    function: Callable[[Sequence[LoadedImage]], Sequence[_Result | ImageError]],
) -> Iterator[tuple[LoadedImage, _Result | Exception]]:
    """Applies a function to the images of each padded shape, halving where the device runs out of memory."""

    def shape(loaded: LoadedImage) -> tuple[int, int]:
        height, width = loaded.image.pixels.shape[:2]
        return padded_size(height, width)

    for _, equal in itertools.groupby(sorted(images, key=shape), key=shape):
        yield from _halving(list(equal), function)


def _halving(
    images: list[LoadedImage], function: Callable[[Sequence[LoadedImage]], Sequence[_Result | ImageError]]
) -> Iterable[tuple[LoadedImage, _Result | Exception]]:
    try:
        return list(zip(images, function(images), strict=True))
    except Exception as error:  # with several images the culprit is unknown: try the halves
        if len(images) > 1:
            middle = len(images) // 2
            return itertools.chain(_halving(images[:middle], function), _halving(images[middle:], function))
        if isinstance(error, torch.OutOfMemoryError):
            height, width = images[0].image.pixels.shape[:2]
            error = ImageError(Cause.OUT_OF_MEMORY, f"{width}x{height} pixels don't fit on the device")
        return [(images[0], error)]
