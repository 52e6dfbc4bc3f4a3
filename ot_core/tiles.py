"""Large images in overlapping tiles, blended so that no seam shows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ot_core.autoencoder import Autoencoder, to_tensor
from ot_core.transfer import Pixels

#: Least overlap of neighbouring tiles, in pixels: more than autoencoders without attention see around a pixel.
OVERLAP = 128
#: Smaller tiles would be all overlap.
SMALLEST_TILE_PIXELS = (4 * OVERLAP) ** 2


def encode_in_tiles(autoencoder: Autoencoder, pixels: Pixels, tile_pixels: int) -> Tensor:
    """Latent (1, C, h, w) of one image with its margin, encoded in tiles of at most tile_pixels.

    Args:
        autoencoder: what encodes.
        pixels: (H, W, 3), uint8 or float32 in [0, 1].
        tile_pixels: at least SMALLEST_TILE_PIXELS counts.
    """
    factor, margin, bare = autoencoder.downsampling_factor, autoencoder.margin, autoencoder.bare()
    height, width = (side + 2 * margin for side in autoencoder.padded_size(*pixels.shape[:2]))

    def replicated(span: slice, side: int) -> NDArray[np.int64]:
        """Which pixels a tile shows: beyond an edge of the image, those at the edge."""
        return np.arange(span.start * factor - margin, span.stop * factor - margin).clip(0, side - 1)

    def encode(rows: slice, columns: slice) -> Tensor:
        tile = pixels[replicated(rows, pixels.shape[0])][:, replicated(columns, pixels.shape[1])]
        return bare.encode(to_tensor([tile], bare))

    strips = blended_tiles(height // factor, width // factor, *_spans(tile_pixels, factor), encode)
    return torch.cat([strip for _, strip in strips], dim=2)


def decode_in_tiles(autoencoder: Autoencoder, latents: Tensor, tile_pixels: int) -> Iterator[tuple[slice, Tensor]]:
    """Decodes latents (1, C, h, w) in tiles of at most tile_pixels; gives (rows, (1, 3, rows, W) in [0, 1]) from top to
    bottom, so that the whole never has to be in memory. The latents' margin is cut off.
    """
    factor, margin, bare = autoencoder.downsampling_factor, autoencoder.margin, autoencoder.bare()
    height, width = (side * factor for side in latents.shape[-2:])

    def decode(rows: slice, columns: slice) -> Tensor:
        window = latents[
            :, :, rows.start // factor : rows.stop // factor, columns.start // factor : columns.stop // factor
        ]
        return bare.decode(window)

    for rows, strip in blended_tiles(height, width, *_spans(tile_pixels, 1, factor), decode, unit=factor):
        first, last = max(rows.start, margin), min(rows.stop, height - margin)
        if first < last:
            inside = strip[..., first - rows.start : last - rows.start, margin : width - margin]
            yield slice(first - margin, last - margin), inside


def _spans(tile_pixels: int, scale: int, unit: int = 1) -> tuple[int, int]:
    """Longest side and least overlap of tiles, in positions that are `scale` pixels apart."""
    side = max(int(tile_pixels**0.5), 4 * OVERLAP) // (scale * unit) * unit
    return side, -(-OVERLAP // (scale * unit)) * unit


def tile_spans(size: int, longest: int, overlap: int, unit: int = 1) -> list[slice]:
    """Covers 0 to size with spans of equal length that begin at multiples of a unit.

    Args:
        size: a multiple of the unit, as the other lengths.
        longest: at least 4 overlaps.
        overlap: neighbours have at least one unit less in common; no three spans have anything in common.
        unit: see above.
    """
    if size <= longest:
        return [slice(0, size)]
    n = -(-(size - overlap) // (longest - overlap))
    length = -(-(size + (n - 1) * overlap) // (n * unit)) * unit
    starts = [index * (size - length) // ((n - 1) * unit) * unit for index in range(n)]
    return [slice(start, start + length) for start in starts]


def blended_tiles(
    height: int,
    width: int,
    longest: int,
    overlap: int,
    function: Callable[[slice, slice], Tensor],
    unit: int = 1,
) -> Iterator[tuple[slice, Tensor]]:
    """Calls a function on tiles of a plane, and gives finished strips: (rows, (1, C, rows, width)) from top to bottom.

    In the overlaps tiles fade into each other; their weights add to one everywhere.

    Args:
        height: of the plane; a multiple of the unit, as the other lengths.
        width: likewise.
        longest: side of a tile at most, at least 4 overlaps.
        overlap: of neighbouring tiles, at least.
        function: gives (1, C, rows, columns) of the plane.
        unit: tiles begin at multiples of it.
    """
    rows, columns = tile_spans(height, longest, overlap, unit), tile_spans(width, longest, overlap, unit)
    fades = _fades(columns)
    rest: Tensor | None = None
    for (span, fade), below in zip(zip(rows, _fades(rows), strict=True), [*rows[1:], None], strict=True):
        strip: Tensor | None = None
        for column, weight in zip(columns, fades, strict=True):
            tile = function(span, column)
            if strip is None:
                strip = tile.new_zeros(*tile.shape[:-1], width)
            strip[..., column] += tile * weight.to(tile)
        assert strip is not None
        strip *= fade.to(strip)[:, None]
        if rest is not None:
            strip[..., : rest.shape[-2], :] += rest
        done = (below.start if below else height) - span.start
        yield slice(span.start, span.start + done), strip[..., :done, :]
        rest = strip[..., done:, :]


def _fades(spans: list[slice]) -> list[Tensor]:
    """Weight of each position of each span: 1, but falls to 0 where it meets its neighbours.

    It stays 0 for the last quarter: a tile is wrong near its border, where it doesn't see what lies beyond.
    """
    weights = [torch.ones(span.stop - span.start) for span in spans]
    for (before, left), (after, right) in itertools.pairwise(zip(spans, weights, strict=True)):
        shared = before.stop - after.start
        unused = shared // 4
        ramp = ((torch.arange(shared) + 0.5 - unused) / (shared - 2 * unused)).clamp(0, 1)
        right[:shared] *= ramp
        left[-shared:] *= 1 - ramp
    return weights
