"""Deep optimal transport for images in memory, one by one: what the jobs do, without Beam.

transporter = Transporter.from_map("map.safetensors")
natural_looking = transporter(image, alpha=0.5)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ot_core.autoencoder import Autoencoder, load_autoencoder
from ot_core.check import MOST_PAIRS, KeptBack, Pair, middle, part_to_keep_back
from ot_core.choices import METHODS
from ot_core.degradation import Degradation
from ot_core.encoding import grey_of, picture_of, sixteen_bits
from ot_core.engine import Engine
from ot_core.features import LatentFeatures
from ot_core.fitted_map import FittedMap, SourceOrigin
from ot_core.fitting import autoencoder_of, check_restorer, fit_map
from ot_core.hardware import default_tile_pixels
from ot_core.images import DecodedImage, decoded_picture, eight_bits
from ot_core.latent_transport import LatentTransport
from ot_core.map_file import read_map, write_map
from ot_core.margin import with_margin
from ot_core.parts import SIDES, Part, number_of
from ot_core.pixel_transport import transport_pixels
from ot_core.restorer import Restorer, load_restorer, restore_image
from ot_core.statistics import GaussianStatistics

#: A picture as users have it: a PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a tensor (C, H, W) or
#: (B, C, H, W) of as many channels. Arrays and tensors are uint8, or floating point in [0, 1].
Picture = TypeVar("Picture", Image.Image, NDArray[Any], Tensor)
_CHANNELS: Final = (1, 3, 4)


class Transporter:
    """A transport map with its autoencoder, ready for images.

    Gives the same pixels as dot-transport does for the same image on the same kind of machine.

    Attributes:
        map: the transport map.
        autoencoder: encodes and decodes.
        restorer: restores images first, or None for images that are restored.

    Args:
        map: see above.
        autoencoder: see above; the one that the map was fitted with.
        restorer: see above.
    """

    def __init__(self, map: FittedMap, autoencoder: Autoencoder, restorer: Restorer | None = None) -> None:
        self.map, self.autoencoder, self.restorer = map, autoencoder, restorer
        self._transport = LatentTransport(map.map, map.space.patch_size, device=autoencoder.device)

    @classmethod
    def from_map(
        cls,
        map: str,
        vae: str | None = None,
        restorer: str | None = None,
        device: str | None = None,
        precision: str | None = None,
    ) -> Transporter:
        """Reads a map that dot-fit or `save` wrote.

        Args:
            map: its path or URL.
            vae: the autoencoder; default the one that the map names.
            restorer: what `load_restorer` takes, for images that aren't restored yet.
            device: torch device; default CUDA where there is one.
            precision: of the autoencoder; default the device's fastest, as dot-transport.

        Raises:
            MapFileError: if the map can't be read, or wasn't fitted with this autoencoder and restorer.
            UserError: if one of these can't be loaded.
        """
        fitted = read_map(map)
        autoencoder = autoencoder_of(fitted.space, map, vae, device, precision)
        loaded = load_restorer(restorer, device, precision) if restorer else None
        if loaded is not None:
            check_restorer(fitted.origin, f"map {map}", loaded)
        return cls(fitted, autoencoder, loaded)

    @classmethod
    def fit(
        cls,
        natural: Iterable[Any],
        restored: Iterable[Any] | None = None,
        *,
        paired: bool = False,
        degrade: str | None = None,
        restorer: str | None = None,
        vae: str | None = None,
        patch_size: int = 3,
        method: str | None = None,
        device: str | None = None,
        precision: str | None = None,
    ) -> Transporter:
        """Fits a map on a few images, as dot-fit does.

        Args:
            natural: pictures of any kind that `__call__` takes.
            restored: the same. Leave it out with `degrade`.
            paired: whether the restored pictures are restorations of the natural ones, in the same order.
            degrade: makes the restored pictures from the natural ones: these are degraded so (`ot_core.degradation`),
                and restored by the restorer.
            restorer: what `load_restorer` takes. With `restored` it restores these first.
            vae: what `load_autoencoder` takes.
            patch_size: p, odd.
            method: as in `fit_map`; default "pixels" of pairs, else "matched".
            device: torch device; default CUDA where there is one.
            precision: of the autoencoder when transporting; fitting is in float32.

        Raises:
            ValueError: if restored pictures and `degrade` don't go together, the pairs are not as many on both sides,
                or the method isn't known.
            ImageError: if an image can't be used.
            UserError: if something can't be loaded.
        """
        if (restored is None) == (degrade is None):
            raise ValueError("Transporter.fit: expected either restored pictures or degrade")
        if method not in (None, *METHODS):
            raise ValueError(f"method {method}: expected one of {', '.join(METHODS)}")
        features = LatentFeatures(vae, patch_size, device)
        encoder, loaded = features.load(), load_restorer(restorer, device) if restorer else None
        statistics: dict[Part, list[GaussianStatistics]] = {}
        kept = _Kept()

        def add(side: str, image: DecodedImage, key: str) -> None:
            def gather(images: Sequence[DecodedImage], most_pixels: int) -> list[Any]:
                return features.statistics([one.pixels for one in images], encoder, most_pixels)

            part = Part(side, number_of(key))
            statistics.setdefault(part, []).append(_alone(image, encoder, gather))

        degradation = Degradation(degrade) if degrade else None
        for key, image in _numbered(natural):
            if degradation is not None:
                image = degradation.cropped(image)
                source = _restored(degradation(image, key), loaded)
                add("source", source, key)
                kept.put("source", key, source)
            add("target", image, key)
            kept.put("target", key, image)
        for key, image in _numbered(restored or ()):
            source = _restored(image, loaded)
            add("source", source, key)
            kept.put("source", key, source)
        counts = {side: sum(len(s) for part, s in statistics.items() if part.side == side) for side in SIDES}
        if not all(counts.values()) or (paired and len(set(counts.values())) > 1):
            raise ValueError(f"Transporter.fit: expected pictures on both sides, as many where paired; found {counts}")
        name, fingerprint = (loaded.name, loaded.fingerprint) if loaded else ("", "")
        origin = SourceOrigin(name, fingerprint, degrade or "")
        totals = {part: GaussianStatistics.total(several) for part, several in statistics.items()}
        method = method or ("pixels" if paired or degrade else "matched")
        exact = with_margin(load_autoencoder(vae), encoder.margin)
        pairs = kept.back() if paired or degrade else None
        fitted = fit_map(totals, exact, patch_size, method, origin=origin, kept_back=pairs)
        return cls(fitted, load_autoencoder(vae, device, precision).with_margin(encoder.margin), loaded)

    def save(self, url: str) -> None:
        """Writes the map, for `from_map` and dot-transport."""
        write_map(self.map, url)

    def __call__(self, image: Picture, alpha: float = 0.0, key: str = "") -> Picture:
        """Transports a picture; gives one of the same kind.

        uint8 stays uint8, and floating point is computed in float32 and never rounded to fewer bits. PIL images of 16
        bits give I;16, and F gives F; with a transparent level both give LA, since PIL has no deeper grey beside
        transparency. PIL has no colour of 16 bits either, but `decode_image(data).pixels` has. A restorer's results
        have 8 bits, whatever it was given. Grey stays grey, and transparency passes through unchanged.

        Args:
            image: see `Picture`.
            alpha: weight of the restored image in the result: 0 is full transport, 1 the restored image.
            key: seeds the noise of a map that has some, as an image's key does in the jobs.

        Raises:
            TypeError: if it isn't a picture of any of these kinds.
            ImageError: if it can't be transported.
        """
        if isinstance(image, Tensor) and image.ndim == 4:
            return torch.stack([self(one, alpha, key) for one in image])
        decoded = _decoded(image)
        decoded = _restored(decoded, self.restorer)
        pixels = self._transported(decoded, alpha, key)
        return _like(image, pixels, decoded)

    def _transported(self, image: DecodedImage, alpha: float, key: str) -> NDArray[Any]:
        """(H, W, 3), uint8 or float32, as the image's pixels are."""

        def transport(images: Sequence[DecodedImage], tile_pixels: int) -> list[Any]:
            pixels = [one.pixels for one in images]
            residuals = [self.map.residual] * len(images)
            return transport_pixels(pixels, self.autoencoder, mapped, [alpha], tile_pixels, residuals=residuals).results

        def mapped(latents: Tensor) -> Tensor:
            return self._transport(latents, [key])

        pixels: NDArray[Any] = _alone(image, self.autoencoder, transport)[0]
        return pixels


class _Kept:
    """The middles of the first few images of each random part, of which one part is kept back as pairs."""

    def __init__(self) -> None:
        self._parts: dict[int, dict[str, dict[str, NDArray[Any]]]] = {}

    def put(self, side: str, key: str, image: DecodedImage) -> None:
        """Takes the image of a side of a pair."""
        of_part = self._parts.setdefault(number_of(key), {})
        pixels = middle(image.pixels)
        if pixels is not None and (key in of_part or len(of_part) < MOST_PAIRS):
            of_part.setdefault(key, {})[side] = pixels.copy()

    def back(self) -> KeptBack | None:
        """What is kept back, if there is any pair."""
        pairs = {
            part: [Pair(two["source"], two["target"]) for two in found.values() if _is_pair(two)]
            for part, found in self._parts.items()
        }
        part = part_to_keep_back(pairs)
        return None if part is None else KeptBack(part, pairs[part])


def _is_pair(two: dict[str, NDArray[Any]]) -> bool:
    return len(two) == len(SIDES) and two["source"].shape == two["target"].shape


def _alone(
    image: DecodedImage, autoencoder: Autoencoder, function: Callable[[Sequence[DecodedImage], int], list[Any]]
) -> Any:
    """The result of a function of images for one, as the jobs call it: on a CPU in a thread of one core.

    In bfloat16 the last digit depends on how many cores share an image.
    """

    def size(image: DecodedImage) -> tuple[int, int]:
        return autoencoder.padded_size(*image.pixels.shape[:2])

    engine = Engine(autoencoder.device, default_tile_pixels(autoencoder.device.type))
    ((_, result),) = engine.over_images([image], size, function)
    if isinstance(result, Exception):
        raise result
    return result


def _restored(image: DecodedImage, restorer: Restorer | None) -> DecodedImage:
    return image if restorer is None else restore_image(image, restorer)


def _numbered(pictures: Iterable[Any]) -> Iterable[tuple[str, DecodedImage]]:
    """Images with keys that tell their order; a batch counts as its images."""
    each = itertools.chain.from_iterable(
        picture if isinstance(picture, Tensor) and picture.ndim == 4 else (picture,) for picture in pictures
    )
    return ((f"{index:08d}", _decoded(picture)) for index, picture in enumerate(each))


def _decoded(picture: Any) -> DecodedImage:
    if isinstance(picture, Image.Image):
        return decoded_picture(picture)
    array = _array(picture)
    if array.ndim != 3 or array.shape[2] not in _CHANNELS or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        found = f"{array.dtype} {tuple(picture.shape)}"
        raise TypeError(f"picture of {found}: expected 1, 3 or 4 channels, uint8 or floating point in [0, 1]")
    if array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):
        raise TypeError("picture of floating point numbers: expected all in [0, 1]")
    transparency = eight_bits(array[:, :, 3]) if array.shape[2] == 4 else None
    colours = array[:, :, :3] if array.shape[2] > 1 else np.repeat(array, 3, axis=2)
    pixels = colours if array.dtype == np.uint8 else np.asarray(colours, np.float32)
    return DecodedImage(np.ascontiguousarray(pixels), transparency, grey=array.shape[2] == 1)


def _array(picture: Any) -> NDArray[Any]:
    """(H, W, C) of an array or a tensor."""
    if isinstance(picture, Tensor) and picture.ndim == 3:
        return picture.detach().cpu().permute(1, 2, 0).numpy()
    if isinstance(picture, np.ndarray):
        return picture[:, :, None] if picture.ndim == 2 else picture
    raise TypeError(f"{type(picture).__name__}: expected a PIL image, a numpy array or a torch tensor")


def _like(picture: Any, pixels: NDArray[Any], decoded: DecodedImage) -> Any:
    """Pixels (H, W, 3), uint8 or float32, as a picture of the same kind."""
    exact = pixels.dtype != np.uint8
    if isinstance(picture, Image.Image):
        if not exact or decoded.transparency is not None:
            return picture_of(eight_bits(pixels), decoded)
        return Image.fromarray(grey_of(pixels) if picture.mode == "F" else sixteen_bits(pixels, decoded)[..., 0])
    given = _array(picture)
    if exact:
        colours = grey_of(pixels)[..., None] if decoded.grey else pixels
        array = np.concatenate([colours.astype(given.dtype), given[..., 3:]], axis=2)
    else:
        rounded = np.asarray(picture_of(pixels, decoded)).reshape(*pixels.shape[:2], -1)
        array = rounded if given.dtype == np.uint8 else (rounded / 255).astype(given.dtype)
    if isinstance(picture, np.ndarray):
        return array[:, :, 0] if picture.ndim == 2 else array
    return torch.from_numpy(array.copy()).permute(2, 0, 1).to(picture.device)
