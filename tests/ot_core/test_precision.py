"""Less than float32, where it is near enough."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ot_core import Autoencoder, Cause, ImageError, load_autoencoder
from ot_core.autoencoder import to_tensor
from ot_core.hardware import default_precision
from ot_core.pixel_transport import transport_pixels


def test_bfloat16_is_near_float32_and_gives_float32(photo):
    images = [photo(96, 80, seed=seed) for seed in range(3)]
    exact, fast = (load_autoencoder(device="cpu", precision=precision) for precision in ("float32", "bfloat16"))
    latents = exact.encode(to_tensor(images, exact))
    rough = fast.encode(to_tensor(images, fast))
    assert rough.dtype == torch.float32
    assert 0 < (rough - latents).norm() < 0.03 * latents.norm()
    decoded, roughly = exact.decode(latents), fast.decode(latents)
    assert roughly.dtype == torch.float32
    error = (roughly - decoded).square().mean()
    assert 0 < error < 10**-4.5  # 45 dB


def test_the_fingerprint_is_that_of_the_weights_whatever_they_are_used_in():
    fingerprints = {load_autoencoder(device="cpu", precision=p).fingerprint for p in ("float32", "bfloat16")}
    assert len(fingerprints) == 1


def test_without_weights_nothing_is_rounded(photo):
    pixels = load_autoencoder("pixels", "cpu", "bfloat16")
    x = to_tensor([photo(8, 8)], pixels)
    assert pixels.precision == "float32"
    torch.testing.assert_close(pixels.decode(pixels.encode(x)), x, rtol=0, atol=1e-6)


def test_none_is_the_default_of_the_device_and_the_same_object():
    assert load_autoencoder(None, "cpu", None) is load_autoencoder(device="cpu", precision=default_precision("cpu"))


def test_a_module_that_takes_views_works_all_the_same():
    class Views(nn.Module):
        downsampling_factor = 1

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def encode(self, x: Tensor) -> Tensor:
            return x.view(-1).view(x.shape) * self.scale

        def decode(self, z: Tensor) -> Tensor:
            return z

    x = torch.rand(1, 3, 4, 6)
    torch.testing.assert_close(Autoencoder(Views(), "views").encode(x), 2 * x - 1)


def test_an_error_that_says_nothing_of_the_order_of_channels_is_raised():
    class Broken(nn.Module):
        def encode(self, x: Tensor) -> Tensor:
            raise RuntimeError("no kernel for this machine")

        def decode(self, z: Tensor) -> Tensor:
            return z

    with pytest.raises(RuntimeError, match="no kernel"):
        Autoencoder(Broken(), "broken")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("tile_pixels", [2**20, 2**18])
def test_an_image_that_is_decoded_to_anything_infinite_fails_and_takes_no_other_along(photo, value, tile_pixels):
    class Overflowing(nn.Module):
        """Like float16, beyond whose range numbers become infinite, where an image is white."""

        downsampling_factor = 8

        def encode(self, x: Tensor) -> Tensor:
            return x[..., ::8, ::8]

        def decode(self, z: Tensor) -> Tensor:
            larger = z.repeat_interleave(8, -1).repeat_interleave(8, -2)
            return torch.where(larger >= 1, value, larger)

    side = 1024 if tile_pixels == 2**18 else 64
    good, bad = (photo(side, side, seed=seed) // 2 for seed in range(2))
    bad[-8:, -8:] = 255
    autoencoder = Autoencoder(Overflowing(), "overflowing")
    batches = [[good], [bad]] if tile_pixels == 2**18 else [[good, bad]]
    results = [
        result
        for batch in batches
        for result in transport_pixels(batch, autoencoder, lambda z: z, [0.0, 0.5], tile_pixels, "pixels").results
    ]
    assert not isinstance(results[0], ImageError)
    assert isinstance(results[1], ImageError)
    assert results[1].cause == Cause.NOT_FINITE


def test_compiled_computes_the_same_whatever_the_size():
    class Small(nn.Module):  # the default autoencoder takes half a minute to compile
        downsampling_factor = 2

        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 3, 2, stride=2)

        def encode(self, x: Tensor) -> Tensor:
            return self.down(x).tanh()

        def decode(self, z: Tensor) -> Tensor:
            return self.up(z).tanh()

    module = Small()
    eager = Autoencoder(module, "small")
    compiled = eager.compiled()
    assert compiled._module is eager._module
    assert hasattr(compiled._encode, "_torchdynamo_orig_callable")
    for height, width in ((32, 32), (20, 18)):
        x = torch.rand(1, 3, height, width)
        latents = eager.encode(x)
        torch.testing.assert_close(compiled.encode(x), latents, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled.decode(latents), eager.decode(latents), rtol=1e-4, atol=1e-5)
