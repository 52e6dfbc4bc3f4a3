"""Tiles: every position once, no seams, and what an untiled pass gives."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ot_core import Autoencoder, load_autoencoder
from ot_core.autoencoder import to_tensor
from ot_core.tiles import OVERLAP, decode_in_tiles, encode_in_tiles, tile_spans


@given(st.integers(1, 400), st.sampled_from([1, 4, 8]), st.integers(1, 6), st.integers(4, 9))
def test_spans_cover_everything_and_only_neighbours_meet(units, unit, overlap, overlaps):
    size, overlap = units * unit, overlap * unit
    longest = overlap * overlaps
    spans = tile_spans(size, longest, overlap, unit)
    assert (spans[0].start, spans[-1].stop) == (0, size)
    assert len({span.stop - span.start for span in spans}) == 1
    assert spans[0].stop - spans[0].start <= max(longest, 1)
    for before, after in itertools.pairwise(spans):
        assert before.start < after.start
        assert before.stop - after.start >= overlap - unit
        assert after.start % unit == 0
    for before, after in zip(spans, spans[2:], strict=False):
        assert before.stop <= after.start


class _Local(nn.Module):
    """Sees less than the overlap around each pixel, so that tiles can't differ but at the border of the image."""

    downsampling_factor = 4

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 5, 12, 4, 4), nn.ConvTranspose2d(5, 3, 12, 4, 4)
        self.largest = 0

    def encode(self, x):
        self.largest = max(self.largest, x.shape[-1] * x.shape[-2])
        return self.down(x)

    def decode(self, z):
        self.largest = max(self.largest, 16 * z.shape[-1] * z.shape[-2])
        return self.up(z)


@pytest.mark.parametrize(("height", "width"), [(1200, 700), (300, 1901), (1100, 333), (513, 2000)])
def test_of_a_local_autoencoder_the_tiled_result_is_the_untiled_one(photo, height, width):
    torch.manual_seed(0)
    autoencoder = Autoencoder(_Local(), "local")
    pixels = photo(height, width)
    whole = autoencoder.encode(to_tensor([pixels], autoencoder))
    autoencoder._module.largest = 0
    latents = encode_in_tiles(autoencoder, pixels, 2**18)
    torch.testing.assert_close(latents, whole, rtol=1e-4, atol=1e-5)
    strips = list(decode_in_tiles(autoencoder, whole, 2**18))
    assert 2**16 < autoencoder._module.largest <= 2**18
    rows = [row for span, _ in strips for row in range(span.start, span.stop)]
    assert rows == list(range(4 * whole.shape[2]))
    torch.testing.assert_close(torch.cat([s for _, s in strips], 2), autoencoder.decode(whole), rtol=1e-4, atol=1e-5)


def test_of_the_default_autoencoder_no_seam_shows(photo):
    autoencoder = load_autoencoder(device="cpu")
    pixels = photo(640, 480)
    x = to_tensor([pixels], autoencoder)
    whole = autoencoder.decode(autoencoder.encode(x))[0].numpy()
    tiles = decode_in_tiles(autoencoder, encode_in_tiles(autoencoder, pixels, 2**17), 2**17)
    tiled = torch.cat([strip for _, strip in tiles], 2)[0].numpy()
    difference = np.abs(tiled - whole)
    assert difference.mean() < 0.2 / 255
    assert difference.max() < 2 / 255


def test_smaller_tiles_than_four_overlaps_are_not_made(photo):
    torch.manual_seed(0)
    autoencoder = Autoencoder(_Local(), "local")
    autoencoder._module.largest = 0
    encode_in_tiles(autoencoder, photo(4 * OVERLAP + 40, 64), 1)
    assert autoencoder._module.largest > 64 * 2 * OVERLAP
