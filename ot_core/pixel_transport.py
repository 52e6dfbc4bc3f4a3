"""From restored pixels to transported pixels: encode, map, decode and blend. Knows nothing of where they come from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ot_core.autoencoder import Autoencoder, Pixels, to_tensor, unit_pixels
from ot_core.errors import Cause, ImageError
from ot_core.latent_transport import blend, mixed
from ot_core.tiles import decode_in_tiles, encode_in_tiles

_Results = tuple[Pixels, ...]


class Transported(NamedTuple):
    """What transport made of images of one padded size.

    Attributes:
        results: for each image an (H, W, 3) array for each alpha, or why there is none: uint8, rounded; or float32 in
            [0, 1], not rounded yet, of an image that was float32.
        before, after: latents (B, C, h, w), as they were encoded and transported, without a margin.
    """

    results: list[_Results | ImageError]
    before: Tensor
    after: Tensor


def transport_pixels(
    pixels: Sequence[Pixels],
    autoencoder: Autoencoder,
    transport: Callable[[Tensor], Tensor],
    alphas: Sequence[float],
    tile_pixels: int,
    interpolation: str = "pixels",
    residuals: Sequence[float] | None = None,
) -> Transported:
    """Transports images.

    Args:
        pixels: (H, W, 3), uint8 or float32 in [0, 1], of one padded size.
        autoencoder: encodes and decodes.
        transport: maps latents.
        alphas: weights of the restored image in the results: 0 is full transport, 1 the restored image.
        tile_pixels: a single image of more is done in overlapping tiles.
        interpolation: "pixels" mixes the two images by alpha; "latents" mixes their latents and decodes the mixture,
            which moves the map towards the identity.
        residuals: for each image, the share added back of what the autoencoder loses of it: with the restored image x,
            its latent z, the decoder D and the map T, the result is D(T z) + residual (x - D(z)). Where all are 0,
            which is the default, D(z) isn't decoded.
    """
    residuals = residuals if residuals is not None and any(residuals) else None
    height, width = autoencoder.padded_size(*pixels[0].shape[:2])
    if len(pixels) == 1 and height * width > tile_pixels:
        latents = encode_in_tiles(autoencoder, pixels[0], tile_pixels)
        decode: Callable[[Tensor], Iterable[tuple[slice, Tensor]]] = functools.partial(
            decode_in_tiles, autoencoder, tile_pixels=tile_pixels
        )
    else:
        latents = autoencoder.encode(to_tensor(pixels, autoencoder))
        decode = functools.partial(_whole, autoencoder, height)
    with torch.inference_mode():
        transported = transport(latents)

    def blended(moved: Tensor, alphas: Sequence[float]) -> list[_Results | ImageError]:
        round_trip = decode(latents) if residuals is not None else None
        return _blended(pixels, decode(moved), alphas, autoencoder.device, round_trip, residuals)

    if interpolation == "pixels":
        results = blended(transported, alphas)
    else:
        each = [blended(alpha * latents + (1 - alpha) * transported, [0.0]) for alpha in alphas]
        results = [_joined(several) for several in zip(*each, strict=True)]
    return Transported(results, autoencoder.inner(latents), autoencoder.inner(transported))


def _whole(autoencoder: Autoencoder, height: int, latents: Tensor) -> list[tuple[slice, Tensor]]:
    return [(slice(0, height), autoencoder.decode(latents))]


@torch.inference_mode()
def _blended(
    restored: Sequence[Pixels],
    decoded: Iterable[tuple[slice, Tensor]],
    alphas: Sequence[float],
    device: torch.device,
    round_trip: Iterable[tuple[slice, Tensor]] | None = None,
    residuals: Sequence[float] | None = None,
) -> list[_Results | ImageError]:
    """A result for each image and alpha, written strip by strip: rows of the images, and (B, 3, rows, W) of them.

    Both `decoded` and `round_trip` come in the same strips.
    """
    results = [tuple(np.empty(pixels.shape, pixels.dtype) for _ in alphas) for pixels in restored]
    finite = np.ones(len(restored), bool)
    weights = residuals or [0.0] * len(restored)
    strips = zip(decoded, round_trip, strict=True) if round_trip is not None else ((strip, None) for strip in decoded)
    for (rows, strip), lossy in strips:
        finite &= ~strip.flatten(1).sum(1).isnan().cpu().numpy()
        for index, (one, pixels, images) in enumerate(zip(strip, restored, results, strict=True)):
            height, width = pixels[rows].shape[:2]
            before, after = unit_pixels(pixels[rows], device)[0], one[:, :height, :width]
            if lossy is not None and weights[index]:
                after = after + weights[index] * (before - lossy[1][index, :, :height, :width])
            for alpha, image in zip(alphas, images, strict=True):
                mix = blend if image.dtype == np.uint8 else mixed
                image[rows] = mix(before, after, alpha).permute(1, 2, 0).cpu().numpy()
    bad = ImageError(Cause.NOT_FINITE, "the autoencoder decoded NaN")
    return [images if good else bad for images, good in zip(results, finite, strict=True)]


def _joined(results: Sequence[_Results | ImageError]) -> _Results | ImageError:
    """One image's results of several alphas, which were computed one by one."""
    return next((one for one in results if isinstance(one, ImageError)), None) or tuple(
        pixels for one in results if not isinstance(one, ImageError) for pixels in one
    )
