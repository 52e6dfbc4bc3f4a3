"""How far an image must go on beyond its edges before it is encoded.

An encoder sees something where an image ends: most often zeros, which are black to some layers and mid-grey to others.
Its latents along the edges then differ from those inside, and a transport map amplifies the difference. Replicated
pixels around the image, and replicated features around what its convolutions see, are better surroundings than zeros
for most encoders, but not for all of them. So it is measured.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from ot_core.autoencoder import Autoencoder

#: Margins that are tried, in latent positions.
_TRIED = (0, 1, 2)
#: Images of so many pixels a side are cut out of ones that are larger by so much on each side.
_SIDE, _BEYOND, _IMAGES = 96, 32, 4
#: A larger margin must bring the edges nearer by this share.
_WORTH = 0.1


def with_margin(autoencoder: Autoencoder, margin: int | None = None) -> Autoencoder:
    """The same autoencoder, which replicates so many pixels around an image before it encodes it.

    Args:
        autoencoder: any.
        margin: pixels, a multiple of the downsampling factor; None for `measured_margin`.
    """
    return autoencoder.with_margin(measured_margin(autoencoder) if margin is None else margin)


@functools.lru_cache(maxsize=4)
def measured_margin(autoencoder: Autoencoder) -> int:
    """The margin, in pixels, whose latents along the edges are nearest to those that the true surroundings give.

    Random images with the spectrum of photographs are encoded whole, and cut out of their surroundings with each
    margin. The smallest margin is taken that no larger one betters by a tenth. Nothing random differs from run to run.
    """
    factor = autoencoder.downsampling_factor
    if factor == 1:  # pixels, or an encoder that sees one at a time
        return 0
    beyond = -(-_BEYOND // factor) * factor
    side = -(-_SIDE // factor) * factor
    whole = _photograph_like(side + 2 * beyond)
    inside, cut = slice(beyond, beyond + side), beyond // factor
    truth = autoencoder.with_margin(0).encode(whole)[..., cut:-cut, cut:-cut]
    image = whole[..., inside, inside]
    candidates = [autoencoder.with_margin(tried * factor) for tried in _TRIED]
    errors = [_edge_error(candidate.inner(candidate.encode(image)), truth) for candidate in candidates]
    best = 0
    for tried, error in zip(_TRIED, errors, strict=True):
        if error < (1 - _WORTH) * errors[best]:
            best = tried
    return best * factor


def _photograph_like(side: int) -> Tensor:
    """Random images (N, 3, side, side) in [0, 1]: power falls with the square of the frequency, colours are faint."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = np.inf
    white = rng.standard_normal((_IMAGES, 4, side, side))
    planes = np.fft.ifft2(np.fft.fft2(white) / frequency).real
    planes /= planes.std((2, 3), keepdims=True)
    images = 0.5 + 0.2 * planes[:, :1] + 0.05 * planes[:, 1:]
    return torch.from_numpy(images.clip(0, 1).astype(np.float32))


def _edge_error(latents: Tensor, truth: Tensor) -> float:
    """Mean squared error of the outermost latents, (N, C, h, w), in variances of the true ones of each channel."""
    error = (latents - truth).square()
    edges = torch.cat([error[..., 0, :], error[..., -1, :], error[..., 0], error[..., -1]], dim=-1)
    return float((edges.mean((0, 2)) / truth.var((0, 2, 3)).clamp_min(1e-12)).mean())
