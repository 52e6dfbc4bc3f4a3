"""How far apart two latents are in pixels: the quadratic form by which the transport map measures its cost.

The paper's map moves latents as little as possible in latent space. Decoders weigh latents very unevenly (a change of
the mean colour is a large change of the image, most others are not), so the least move of a latent isn't the least
change of the image. Measured by the decoder's own metric, the map carries the source's Gaussian to the same target
while it changes pixels less.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ot_core.autoencoder import Autoencoder
from ot_core.statistics import Array, GaussianStatistics

#: Latent positions along each side of the fields that are probed; a decoder's response decays within half of it.
_EXTENT = 9
_FIELDS = 8
#: Size of a probe, in standard deviations of its channel.
_STEP = 0.1
#: Share of an isotropic metric mixed in, so that no direction is free.
_ISOTROPIC = 0.05


def decoder_metric(autoencoder: Autoencoder, statistics: GaussianStatistics, patch_size: int) -> Array:
    """Metric G of latent patches with |decode(z + d) - decode(z)|^2 ~ d^T G d, for a change d of one patch.

    The decoder's responses to a small change of each channel at one position are averaged over a few random fields,
    white noise with the given statistics; their inner products, shifted by the patch's offsets, make up G. Nothing
    random differs from run to run.

    Args:
        autoencoder: f pixels per latent position, C channels.
        statistics: of patches of natural latents, dimension D = C p^2.
        patch_size: p, odd.

    Returns:
        (D, D) float64, symmetric positive definite, with a mean diagonal of 1.
    """
    channels, p = autoencoder.latent_channels, patch_size
    centre = np.arange(channels) * p * p + p * p // 2
    mean, covariance = statistics.mean[centre], statistics.covariance()[np.ix_(centre, centre)]
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    steps = _STEP * np.sqrt(np.diagonal(covariance)) + 1e-12
    rng = np.random.default_rng(0)
    blocks = np.zeros((2 * p - 1, 2 * p - 1, channels, channels))
    for _ in range(_FIELDS):
        field = mean[:, None] + root @ rng.standard_normal((channels, _EXTENT**2))
        blocks += _correlations(
            _responses(autoencoder, field.reshape(channels, _EXTENT, _EXTENT), steps), autoencoder, p
        )
    offsets = np.arange(p)
    rows = offsets[:, None] - offsets[None, :] + p - 1
    # (i, j, i', j', c, c') -> (c, i, j, c', i', j')
    metric = blocks[rows[:, None, :, None], rows[None, :, None, :]].transpose(4, 0, 1, 5, 2, 3)
    metric = metric.reshape(channels * p * p, -1)
    metric = (metric + metric.T) / 2
    scale = np.trace(metric) / len(metric)
    if scale <= 0:
        return np.eye(len(metric))
    return (metric / scale + _ISOTROPIC * np.eye(len(metric))) / (1 + _ISOTROPIC)


def _responses(autoencoder: Autoencoder, field: Array, steps: Array) -> Tensor:
    """Derivatives (C, 3, H, W), float64, of the decoded field by each channel at its centre."""
    base = torch.from_numpy(field).float()
    middle = _EXTENT // 2
    undisturbed = autoencoder.decode(base[None])
    responses = []
    for channel, step in enumerate(steps):
        disturbed = base.clone()
        disturbed[channel, middle, middle] += step
        responses.append((autoencoder.decode(disturbed[None]) - undisturbed).double().cpu() / step)
    return torch.cat(responses)


def _correlations(responses: Tensor, autoencoder: Autoencoder, p: int) -> Array:
    """Inner products of responses shifted against each other, (2p - 1, 2p - 1, C, C)."""
    factor, (height, width) = autoencoder.downsampling_factor, responses.shape[-2:]
    result = np.zeros((2 * p - 1, 2 * p - 1, len(responses), len(responses)))
    for row in range(1 - p, p):
        for column in range(1 - p, p):
            # The response to a change `row` positions further down is the same response, moved down.
            dy, dx = row * factor, column * factor
            moved = responses[..., max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
            fixed = responses[..., max(0, dy) : height - max(0, -dy), max(0, dx) : width - max(0, -dx)]
            result[row + p - 1, column + p - 1] = (moved.flatten(1) @ fixed.flatten(1).T).numpy()
    return result
