"""FLUX.2's tiny autoencoder (madebyollin/taesd, MIT) as a user's own autoencoder.

diffusers has no class for this network, so the file doubles as an example of
``--vae benchmarks.flux2_tiny:autoencoder``: a torch module with ``encode``, ``decode`` and the
attribute ``downsampling_factor``. The weights are not part of this project: the factory reads
``data/autoencoders/taef2-encoder.safetensors`` and ``taef2-decoder.safetensors`` in the folder named
by the environment variable ``DOT_SHARED``, by default ``../shared`` seen from the repository root.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WIDTH = 64
LATENT_CHANNELS = 32


class _Block(nn.Module):
    """Three 3x3 convolutions with a skip; (B, n, h, w) to the same shape.

    ``pooled`` blocks first add a 1x1 bottleneck whose group norm sees the whole image, so their
    results depend on the image's extent: tiles of an image do not decode exactly alike.
    """

    def __init__(self, width: int, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.pool: nn.Sequential | None = None
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(4, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class _Clamp(nn.Module):
    """Soft clamp of latents to [-3, 3]; any shape."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z / 3) * 3


def _encoder() -> nn.Sequential:
    """(B, 3, H, W) in [0, 1] to (B, 32, H/8, W/8). Indices are those of the weight file."""
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1), _Block(WIDTH)]
    for stage in range(3):
        layers.append(nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False))
        layers.extend(_Block(WIDTH, pooled=stage == 2) for _ in range(3))
    layers.append(nn.Conv2d(WIDTH, LATENT_CHANNELS, 3, padding=1))
    return nn.Sequential(*layers)


def _decoder() -> nn.Sequential:
    """(B, 32, h, w) to (B, 3, 8h, 8w) in [0, 1]. Indices are those of the weight file."""
    layers: list[nn.Module] = [_Clamp(), nn.Conv2d(LATENT_CHANNELS, WIDTH, 3, padding=1), nn.ReLU()]
    for stage in range(3):
        layers.extend(_Block(WIDTH, pooled=stage == 0) for _ in range(3))
        layers.append(nn.Upsample(scale_factor=2))
        layers.append(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False))
    layers.extend([_Block(WIDTH), nn.Conv2d(WIDTH, 3, 3, padding=1)])
    return nn.Sequential(*layers)


class Flux2Tiny(nn.Module):
    """Deterministic autoencoder with 32 latent channels and a downsampling factor of 8."""

    downsampling_factor = 8

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _encoder()
        self.decoder = _decoder()

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], H and W multiples of 8, to latents (B, 32, H/8, W/8)."""
        return self.encoder((x + 1) / 2)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, 32, h, w) to images (B, 3, 8h, 8w), nominally in [-1, 1] (not clamped)."""
        return self.decoder(z) * 2 - 1


def _weights_folder() -> Path:
    shared = os.environ.get("DOT_SHARED") or Path(__file__).resolve().parents[2] / "shared"
    return Path(shared) / "data" / "autoencoders"


def autoencoder() -> Flux2Tiny:
    """The network with its weights, in float32 and evaluation mode."""
    folder = _weights_folder()
    model = Flux2Tiny()
    for part in ("encoder", "decoder"):
        path = folder / f"taef2-{part}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: set DOT_SHARED to the folder that holds "
                "data/autoencoders/taef2-encoder.safetensors and taef2-decoder.safetensors"
            )
        state = {name: tensor.float() for name, tensor in load_file(path).items()}
        getattr(model, part).load_state_dict(state)
    return model.eval().requires_grad_(False)
