"""Less than float32, where it is near enough."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ot_core import Autoencoder, load_autoencoder
from ot_core.autoencoder import to_tensor
from ot_core.hardware import default_precision


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
    eager, compiled = (Autoencoder(module, "small", compiled=compiled) for compiled in (False, True))
    assert hasattr(compiled._encode, "_torchdynamo_orig_callable")
    for height, width in ((32, 32), (20, 18)):
        x = torch.rand(1, 3, height, width)
        latents = eager.encode(x)
        torch.testing.assert_close(compiled.encode(x), latents, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled.decode(latents), eager.decode(latents), rtol=1e-4, atol=1e-5)
