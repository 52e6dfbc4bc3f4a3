"""Beam ModelHandlers around the autoencoder. One image that fails never takes its batch along."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    latent_statistics,
    load_autoencoder,
    read_map,
)
from ot_core.autoencoder import DEFAULT_VAE, is_factory
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


class LatentStatisticsModelHandler(_ImageModelHandler):
    """Encodes images and gathers the statistics of their latent patches.

    Inference gives one (group, GaussianStatistics) for each group in the batch, and a Failure for each image that
    could not be encoded.

    Args:
        vae: what `ot_core.load_autoencoder` takes; default the one that ships with the package.
        patch_size: p, odd.
        device: torch device; default CUDA where there is one.
    """

    def __init__(self, vae: str | None = None, patch_size: int = 3, device: str | None = None) -> None:
        super().__init__()
        self._vae, self._patch_size, self._device = vae, patch_size, device

    def load_model(self) -> Autoencoder:
        """Loads the autoencoder, once per process."""
        with metrics.timed("load_model"):
            return load_autoencoder(self._vae, self._device)

    def run_inference(
        self, batch: ImageBatch, model: Autoencoder, inference_args: dict[str, Any] | None = None
    ) -> list[tuple[str, GaussianStatistics] | Failure]:
        """See the class."""
        totals: dict[str, GaussianStatistics] = {}
        failures: list[Failure] = []
        for loaded, result in _over_equal_shapes(batch, model, lambda images: self._statistics(images, model)):
            if isinstance(result, Exception):
                failures.append(Failure.of(loaded.ref, "encode", result))
                continue
            metrics.count(metrics.IMAGES_ENCODED)
            group = loaded.ref.group
            totals[group] = totals[group] + result if group in totals else result
        return [*totals.items(), *failures]

    def _statistics(self, images: Sequence[LoadedImage], model: Autoencoder) -> list[GaussianStatistics | ImageError]:
        latents = model.encode(_to_tensor(images, model))
        return [self._statistics_of_one(latent) for latent in latents]

    def _statistics_of_one(self, latent: torch.Tensor) -> GaussianStatistics | ImageError:
        statistics = latent_statistics(latent, self._patch_size)
        if statistics is None:
            height, width = latent.shape[-2:]
            return ImageError(
                Cause.TOO_SMALL,
                f"its latent is {height}x{width}; expected at least one patch of {self._patch_size}x{self._patch_size}",
            )
        return statistics


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
        outcomes = list(_over_equal_shapes(batch, model.autoencoder, lambda images: self._transport(images, model)))
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
        latents = autoencoder.encode(_to_tensor(images, autoencoder))
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
    batch: ImageBatch,
    autoencoder: Autoencoder,
    function: Callable[[Sequence[LoadedImage]], Sequence[_Result | ImageError]],
) -> Iterator[tuple[LoadedImage, _Result | Exception]]:
    """Applies a function to the images of each padded shape, halving where the device runs out of memory."""

    def shape(loaded: LoadedImage) -> tuple[int, int]:
        height, width = loaded.image.pixels.shape[:2]
        return autoencoder.padded_size(height, width)

    metrics.observe(metrics.BATCH_SIZE, len(batch.images))
    for _, images in itertools.groupby(sorted(batch.images, key=shape), key=shape):
        yield from _halving(list(images), function)


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


def _to_tensor(images: Sequence[LoadedImage], autoencoder: Autoencoder) -> torch.Tensor:
    """(B, 3, H, W) float32 in [0, 1], padded to one shape."""
    return torch.cat([autoencoder.pad(_one_to_tensor(loaded)) for loaded in images])


def _one_to_tensor(loaded: LoadedImage) -> torch.Tensor:
    pixels = loaded.image.pixels
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32))[None]
    return tensor / 255 if pixels.dtype == np.uint8 else tensor
