"""The margin that an image is continued by before it is encoded."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ot_core import Autoencoder, load_autoencoder
from ot_core.margin import measured_margin, with_margin


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
    assert wide.encode(images).shape == plain.encode(images).shape
    assert plain.margin == 0  # a copy was changed


def test_latents_are_those_of_the_image_continued_by_hand() -> None:
    plain = load_autoencoder()
    images = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    by_hand = plain.encode(F.pad(images, (16,) * 4, mode="replicate"))[..., 2:-2, 2:-2]
    torch.testing.assert_close(plain.with_margin(16).encode(images), by_hand)
