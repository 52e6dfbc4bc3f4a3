"""The handler that transports images: what a worker holds in memory, and what inference gives."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ot_core import (
    Autoencoder,
    FittedMap,
    ImageError,
    LatentTransport,
    UserError,
    ZeroShotTransport,
)
from ot_core.choices import INTERPOLATIONS
from ot_core.engine import Engine
from ot_core.fitting import autoencoder_of, read_maps
from ot_core.hardware import default_tile_pixels
from ot_core.pixel_transport import transport_pixels
from transforms import metrics
from transforms.elements import (
    Failure,
    GatheredStatistics,
    ImageRef,
    LoadedImage,
    TransportedImage,
    TransportPrediction,
)
from transforms.model_handlers import ImageModelHandler
from transforms.write_drift import ImageStatistics, gather

_Pixels = tuple[NDArray[np.generic], ...]


class _Transported(NamedTuple):
    """The results of one image, and what statistics are gathered of."""

    pixels: _Pixels
    statistics: ImageStatistics | None


@dataclass(frozen=True, eq=False)
class TransportModel:
    """What a transport worker holds in memory, once per process.

    Attributes:
        autoencoder: encodes and decodes.
        transports: the maps by group, on the autoencoder's device; "" is for images of any other.
        engine: where it works.
        patch_size: the maps'.
        residuals: as in `transport_pixels`, by group.
    """

    autoencoder: Autoencoder
    transports: Mapping[str, LatentTransport | ZeroShotTransport]
    engine: Engine
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


@dataclass(frozen=True)
class TransportOptions:
    """How images are transported, beside the map and the alphas.

    Attributes:
        interpolation: "pixels" mixes the restored image with the transported one by alpha; "latents" mixes their
            latents and decodes the mixture, which moves the map towards the identity.
        kernel_size: folding kernel k <= p, odd; default p.
        sigma: standard deviation of Gaussian folding weights in latent pixels; infinite means uniform.
        zero_shot: each image's own statistics take the place of the map's source.
        residual: as in `transport_pixels`; default the map's own, or 0 with `zero_shot`.
        compiled: see `ot_core.Autoencoder.compiled`.

    Raises:
        UserError: if the interpolation isn't known.
    """

    interpolation: str = "pixels"
    kernel_size: int | None = None
    sigma: float = math.inf
    zero_shot: bool = False
    residual: float | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(f"interpolation {self.interpolation}: expected one of {', '.join(INTERPOLATIONS)}")


class TransportModelHandler(ImageModelHandler):
    """Encodes, transports and decodes images.

    Inference gives a `TransportPrediction` for each image, and with statistics one more.

    Args:
        map: URL of the transport map; or of several, by group, of which "" is for images of any other.
        alphas: weights of the restored image in the results, one result for each.
        vae: the autoencoder; default the one that the map names.
        device: torch device; default CUDA where there is one.
        precision: one of `ot_core.choices.PRECISIONS`; default the device's fastest.
        tile_pixels: larger images are done in overlapping tiles; default `default_tile_pixels`.
        statistics: whether to gather statistics of the latents, before and after transport (`transforms.write_drift`);
            not of an image that only lacks some alphas, since an earlier run has counted it.
        options: see the class.
        **kwargs: as in `ImageModelHandler`.
    """

    def __init__(
        self,
        map: str | Mapping[str, str],
        alphas: Sequence[float] = (0.0,),
        vae: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        tile_pixels: int | None = None,
        statistics: bool = False,
        options: TransportOptions | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(device=device, **kwargs)
        self.maps = {"": map} if isinstance(map, str) else dict(map)
        self._alphas, self._vae = tuple(alphas), vae
        self._precision, self._tile_pixels = precision, tile_pixels
        self._statistics, self._options = statistics, options or TransportOptions()

    def update_model_path(self, model_path: str | None = None) -> None:
        """Lets `model_metadata_pcoll` name the map, so that one pipeline can fit and transport."""
        self.maps = {"": model_path} if model_path else self.maps

    def load(self) -> "TransportModel | LateTransportModel":
        """Loads the maps and the autoencoder, once per process; without a map's URL nothing yet."""
        if not self.maps:
            return LateTransportModel(self._late_model)
        with metrics.timed("load_model"):
            return self._model(read_maps(self.maps, self._vae, self.device, self._precision, self._options.compiled))

    def _model(self, maps: Iterable[tuple[str, FittedMap, Autoencoder]]) -> TransportModel:
        """Of maps of one space and autoencoder, each of which is let go once it is on the device."""
        transports: dict[str, LatentTransport | ZeroShotTransport] = {}
        residuals: dict[str, float] = {}
        maps = iter(maps)
        first = next(maps)
        _, known, autoencoder = first
        patch_size, options = known.space.patch_size, self._options
        k, sigma = options.kernel_size, options.sigma
        for group, fitted, _ in itertools.chain([first], maps):
            device = autoencoder.device
            transports[group] = (
                ZeroShotTransport(fitted.map, patch_size, fitted.target, device, k, sigma)
                if options.zero_shot
                else LatentTransport(fitted.map, patch_size, device, kernel_size=k, sigma=sigma)
            )
            of_map = 0.0 if options.zero_shot else fitted.residual
            residuals[group] = of_map if options.residual is None else options.residual
        engine = Engine(autoencoder.device, self._tile_pixels or default_tile_pixels(autoencoder.device.type))
        return TransportModel(autoencoder, transports, engine, patch_size, residuals)

    def _late_model(self, fitted: FittedMap) -> TransportModel:
        autoencoder = autoencoder_of(
            fitted.space, "of this pipeline", self._vae, self.device, self._precision, self._options.compiled
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

        def size(loaded: LoadedImage) -> tuple[int, int]:
            return model.autoencoder.padded_size(*loaded.size)

        return model.engine.over_images(images, size, transport, metrics.observe_batch)

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
            self._options.interpolation,
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
