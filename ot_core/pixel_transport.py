"""From restored pixels to transported pixels: encode, map, decode and blend. Knows nothing of where they come from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ot_core.autoencoder import Autoencoder
from ot_core.errors import Cause, ImageError
from ot_core.hardware import computing_on
from ot_core.images import eight_bits
from ot_core.latent_transport import blend, mixed
from ot_core.patches import NOT_FINITE
from ot_core.tiles import decode_in_tiles, encode_in_tiles
from ot_core.transfer import Pixels, fetched, sent, stacked, unit

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
    device = autoencoder.device
    in_tiles = len(pixels) == 1 and height * width > tile_pixels
    there = None if in_tiles else sent(stacked(pixels, height, width), device)
    blends = [
        _Blend(pixels, there, several, device, residuals)
        for several in ([alphas] if interpolation == "pixels" else [[0.0]] * len(alphas))
    ]
    with computing_on(device), torch.inference_mode():
        if there is None:
            latents = encode_in_tiles(autoencoder, pixels[0], tile_pixels)
        else:
            latents = autoencoder.encode(unit(there))

        def decoded(latents: Tensor) -> Iterable[tuple[slice, Tensor]]:
            if in_tiles:
                return decode_in_tiles(autoencoder, latents, tile_pixels)
            return [(slice(0, height), autoencoder.decode(latents))]

        transported = transport(latents)
        weights: Sequence[float | None] = [None] if interpolation == "pixels" else alphas
        for one, weight in zip(blends, weights, strict=True):
            moved = transported if weight is None else weight * latents + (1 - weight) * transported
            one.begin(decoded(moved), None if residuals is None else decoded(latents))
    each = [one.results() for one in blends]  # the device goes on with another thread's images
    results = each[0] if len(each) == 1 else [_joined(several) for several in zip(*each, strict=True)]
    return Transported(results, autoencoder.inner(latents), autoencoder.inner(transported))


class _Blend:
    """Blends images with what was decoded in their place, strip by strip, for several alphas at once.

    Args:
        restored: (H, W, 3) each.
        there: the same, stacked on the device; or None, and they are sent as they are needed.
        alphas: see `transport_pixels`.
        device: where images are blended.
        residuals: see `transport_pixels`.
    """

    def __init__(
        self,
        restored: Sequence[Pixels],
        there: Tensor | None,
        alphas: Sequence[float],
        device: torch.device,
        residuals: Sequence[float] | None,
    ) -> None:
        self._restored, self._there, self._alphas, self._device = restored, there, alphas, device
        self._residuals = None if residuals is None else torch.tensor(residuals, device=device)[:, None, None, None]
        self._rounded = all(pixels.dtype == np.uint8 for pixels in restored)
        self._results = [tuple(np.empty(pixels.shape, pixels.dtype) for _ in alphas) for pixels in restored]
        self._finite = torch.ones(len(restored), dtype=torch.bool, device=device)
        self._coming: tuple[slice, Callable[[], Pixels]] | None = None

    def begin(self, decoded: Iterable[tuple[slice, Tensor]], round_trip: Iterable[tuple[slice, Tensor]] | None) -> None:
        """Blends, and begins to fetch the last strip.

        Args:
            decoded: rows of the images, and (B, 3, rows, W) of them.
            round_trip: the same of the restored images, in the same strips.
        """
        lossy: Iterable[tuple[slice, Tensor] | None] = itertools.repeat(None) if round_trip is None else round_trip
        for (rows, after), lost in zip(decoded, lossy, strict=False):
            before = unit(self._strip(rows, after.shape[-1]))
            if lost is not None and self._residuals is not None:
                added = after + self._residuals * (before - lost[1])
                after = torch.where(self._residuals > 0, added, after)
            self._finite &= ~after.sum((1, 2, 3)).isnan()
            mix = blend if self._rounded else mixed
            mixes = [mix(before, after, alpha).permute(0, 2, 3, 1) for alpha in self._alphas]
            here = fetched(torch.stack(mixes))  # (alpha, B, rows, W, 3)
            self._take()
            self._coming = rows, here
        self._finite_here = fetched(self._finite)  # now: later another thread's batch would have to end first

    def _strip(self, rows: slice, width: int) -> Tensor:
        if self._there is not None:
            return self._there[:, rows]
        return sent(stacked([self._restored[0][rows]], rows.stop - rows.start, width), self._device)

    def _take(self) -> None:
        """Writes the strip that was fetched last into the results."""
        if self._coming is None:
            return
        rows, here = self._coming
        for of_alpha, mixes in enumerate(here()):
            for pixels, images in zip(mixes, self._results, strict=True):
                image = images[of_alpha]
                height, width = image[rows].shape[:2]
                inside = pixels[:height, :width]
                image[rows] = inside if inside.dtype == image.dtype else eight_bits(inside)
        self._coming = None

    def results(self) -> list[_Results | ImageError]:
        """Those of each image, or why it has none."""
        self._take()
        bad = ImageError(Cause.NOT_FINITE, f"the autoencoder decoded {NOT_FINITE}")
        finite = self._finite_here()
        return [images if good else bad for images, good in zip(self._results, finite, strict=True)]


def _joined(results: Sequence[_Results | ImageError]) -> _Results | ImageError:
    """One image's results of several alphas, which were computed one by one."""
    return next((one for one in results if isinstance(one, ImageError)), None) or tuple(
        pixels for one in results if not isinstance(one, ImageError) for pixels in one
    )
