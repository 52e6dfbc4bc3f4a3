"""The margin that an image is continued by before it is encoded."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ot_core import Autoencoder, load_autoencoder
from ot_core.autoencoder import to_tensor
from ot_core.margin import measured_margin, with_margin
from ot_core.tiles import SMALLEST_TILE_PIXELS, decode_in_tiles, encode_in_tiles


class Averages(nn.Module):
    """Encodes each 4 x 4 square by a mean that reaches beyond it, over surroundings of its own choice."""

    downsampling_factor = 4

    def __init__(self, surroundings: str) -> None:
        super().__init__()
        self.surroundings = surroundings

    def encode(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (4, 4, 4, 4), mode=self.surroundings), 12, stride=4)

    def decode(self, z: Tensor) -> Tensor:
        return F.interpolate(z, scale_factor=4)


@pytest.mark.parametrize(("surroundings", "margin"), [("constant", 4), ("replicate", 0)])
def test_zeros_around_an_image_want_a_margin_and_replicated_pixels_dont(surroundings: str, margin: int) -> None:
    assert measured_margin(Autoencoder(Averages(surroundings), "averages")) == margin


def test_pixels_have_none() -> None:
    assert measured_margin(load_autoencoder("pixels")) == 0


def test_the_default_autoencoder_wants_one_and_its_latents_keep_their_size() -> None:
    plain = load_autoencoder()
    wide = with_margin(plain)
    images = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    assert wide.margin > 0
    assert wide.margin % wide.downsampling_factor == 0
    latents = wide.encode(images)
    assert wide.inner(latents).shape == plain.encode(images).shape
    assert wide.decode(latents).shape == images.shape
    assert plain.margin == 0  # a copy was changed


def test_latents_are_those_of_the_image_continued_by_hand() -> None:
    wide = load_autoencoder().with_margin(16)
    images, bare = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0)), wide.bare()
    continued = F.pad(images, (16,) * 4, mode="replicate")
    latents = wide.encode(images)
    torch.testing.assert_close(latents, bare.encode(continued))
    torch.testing.assert_close(wide.inner(latents), bare.encode(continued)[..., 2:-2, 2:-2])
    torch.testing.assert_close(wide.decode(latents), bare.decode(latents)[..., 16:-16, 16:-16])


def test_with_a_margin_nothing_tells_that_an_image_ends() -> None:
    plain = load_autoencoder()
    wide = plain.with_margin(8)
    stripes = torch.rand(1, 3, 1, 64, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 64, -1)
    latents = wide.encode(stripes)
    torch.testing.assert_close(latents, latents[..., :1, :].expand_as(latents), atol=1e-4, rtol=1e-4)
    zeros = plain.encode(stripes)  # the convolutions of the first are as they were
    assert (zeros - zeros[..., 4:5, :]).abs().max() > 0.1
    assert plain.with_margin(16).bare()._module is wide._module  # and one copy serves all margins


def test_a_copy_with_a_margin_shares_the_weights() -> None:
    plain = load_autoencoder()
    mine, theirs = plain._module.state_dict(), plain.with_margin(8)._module.state_dict()
    assert {key: tensor.data_ptr() for key, tensor in mine.items()} == {
        key: tensor.data_ptr() for key, tensor in theirs.items()
    }


def test_tiles_are_continued_at_the_edges_of_the_image_alone() -> None:
    wide = load_autoencoder().with_margin(16)
    pixels = (torch.rand(90, 1100, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    whole = wide.encode(to_tensor([pixels], wide))
    in_tiles = encode_in_tiles(wide, pixels, SMALLEST_TILE_PIXELS)
    assert in_tiles.shape == whole.shape
    torch.testing.assert_close(in_tiles, whole, atol=5e-4, rtol=1e-4)  # of noise, whose latents are up to ten
    strips = list(decode_in_tiles(wide, whole, SMALLEST_TILE_PIXELS))
    assert [rows.start for rows, _ in strips] == [0, *(rows.stop for rows, _ in strips[:-1])]
    decoded = torch.cat([strip for _, strip in strips], dim=2)
    torch.testing.assert_close(decoded, wide.decode(whole), atol=2e-3, rtol=0)


@pytest.mark.parametrize("convolves", [False, True])
def test_a_module_that_cannot_be_copied_gets_a_margin_all_the_same(convolves):
    class Locked(nn.Module):
        downsampling_factor = 8

        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()
            self.smooth = nn.Conv2d(3, 3, 3, padding=1) if convolves else nn.Identity()

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            with self.lock:
                return nn.functional.avg_pool2d(self.smooth(x), 8)

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return nn.functional.interpolate(z, scale_factor=8.0)

    autoencoder = Autoencoder(Locked(), "locked").with_margin(8)
    x = torch.rand(1, 3, 32, 24)
    assert autoencoder.encode(x).shape == (1, 3, 6, 5)
    assert autoencoder.decode(autoencoder.encode(x)).shape == x.shape
