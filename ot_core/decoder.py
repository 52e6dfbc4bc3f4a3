"""What a change of the latent does to the decoded image: what the default method knows beyond the paper's.

Decoders weigh latents very unevenly: a few directions change the colour of a patch, most others only its detail. That
matters twice. The least move of a latent isn't the least change of the image, so the map measures its cost in pixels.
And restorers keep the mean colour of a patch, so where the two sides differ in it, they differ in what they show; the
map need not, and should not, carry that over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ot_core.autoencoder import Autoencoder
from ot_core.hardware import default_batch_pixels
from ot_core.statistics import Array, GaussianStatistics

#: Latent positions along each side of the fields that are probed; a decoder's response decays within half of it.
_EXTENT = 9
_FIELDS = 8
#: Size of a probe, in standard deviations of its channel.
_STEP = 0.1
#: Share of an isotropic metric mixed in, so that no direction is free.
_ISOTROPIC = 0.05


@dataclass(frozen=True, eq=False)
class DecoderGeometry:
    """First-order effect of changing one latent patch, dimension D = C p^2.

    Attributes:
        metric: (D, D) float64, symmetric positive definite, mean diagonal 1: |decode(z + d) - decode(z)|^2 is
            proportional to d^T metric d, but for a small isotropic part.
        colour: (3, D) float64: what the change adds to the mean colour of the decoded patch, up to a factor.
    """

    metric: Array
    colour: Array


def decoder_geometry(autoencoder: Autoencoder, statistics: GaussianStatistics, patch_size: int) -> DecoderGeometry:
    """Measures a decoder by small changes of each channel at one position.

    The responses are averaged over a few random fields, white noise with the given statistics; their inner products,
    shifted by the patch's offsets, make up the metric. Nothing random differs from run to run.

    Args:
        autoencoder: f pixels per latent position, C channels.
        statistics: of patches of natural latents, dimension D = C p^2.
        patch_size: p, odd.
    """
    channels, p = autoencoder.latent_channels, patch_size
    _, covariance = _of_one_position(statistics, p)
    steps = _STEP * np.sqrt(np.diagonal(covariance)) + 1e-12
    products = np.zeros((2 * p - 1, 2 * p - 1, channels, channels))
    colour = np.zeros((3, channels))
    for field in random_fields(statistics, p, _FIELDS, _EXTENT):
        responses = _responses(autoencoder.with_margin(0), field, steps)
        products += _inner_products(responses, autoencoder.downsampling_factor, p)
        colour += responses.sum((2, 3)).T.numpy()
    return DecoderGeometry(_metric_of(products), np.repeat(colour, p * p, axis=1))


def random_fields(statistics: GaussianStatistics, patch_size: int, count: int, extent: int) -> Iterator[Array]:
    """Latents (C, extent, extent), white from position to position, with the statistics of one position.

    Nothing random differs from run to run.

    Args:
        statistics: of latent patches, dimension D = C p^2.
        patch_size: p, odd.
        count: how many fields.
        extent: their sides, in positions.
    """
    mean, covariance = _of_one_position(statistics, patch_size)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    rng = np.random.default_rng(0)
    for _ in range(count):
        field = mean[:, None] + root @ rng.standard_normal((len(mean), extent**2))
        yield field.reshape(-1, extent, extent)


def _of_one_position(statistics: GaussianStatistics, p: int) -> tuple[Array, Array]:
    """Mean (C,) and covariance (C, C) at the centre of patches.

    Rounded, so that statistics which differ in their last digits alone, as sums in another order do, give the same
    fields: decoding is done in float32, which would make a millionth of any difference.
    """
    centre = np.arange(statistics.dimension // p**2) * p * p + p * p // 2
    mean, covariance = statistics.mean[centre], statistics.covariance()[np.ix_(centre, centre)]
    return mean.astype(np.float32).astype(np.float64), covariance.astype(np.float32).astype(np.float64)


def _metric_of(products: Array) -> Array:
    """Metric of patches from the inner products of responses, (2p - 1, 2p - 1, C, C)."""
    p, channels = (len(products) + 1) // 2, products.shape[-1]
    shift = np.arange(p)[:, None] - np.arange(p)[None, :] + p - 1
    # (i, i', j, j', c, c') -> (c, i, j, c', i', j')
    blocks = products[shift[:, :, None, None], shift[None, None]].transpose(4, 0, 2, 5, 1, 3)
    metric = blocks.reshape(channels * p * p, -1)
    metric = (metric + metric.T) / 2
    scale = np.trace(metric) / len(metric)
    if scale <= 0:
        return np.eye(len(metric))
    return (metric / scale + _ISOTROPIC * np.eye(len(metric))) / (1 + _ISOTROPIC)


def _responses(autoencoder: Autoencoder, field: Array, steps: Array) -> Tensor:
    """Derivatives (C, 3, H, W), float64, of the decoded field by each channel at its centre."""
    middle, channels = _EXTENT // 2, torch.arange(len(steps))
    fields = torch.from_numpy(field).float().repeat(len(steps) + 1, 1, 1, 1)  # the last stays undisturbed
    fields[channels, channels, middle, middle] += torch.from_numpy(steps).float()
    most = max(1, default_batch_pixels(autoencoder.device.type) // (_EXTENT * autoencoder.downsampling_factor) ** 2)
    decoded = torch.cat([autoencoder.decode(several).cpu().double() for several in torch.split(fields, most)])
    return (decoded[:-1] - decoded[-1]) / torch.from_numpy(steps)[:, None, None, None]


def _inner_products(responses: Tensor, factor: int, p: int) -> Array:
    """Inner products of responses shifted against each other, (2p - 1, 2p - 1, C, C)."""
    height, width = responses.shape[-2:]
    result = np.zeros((2 * p - 1, 2 * p - 1, len(responses), len(responses)))
    for row in range(1 - p, p):
        for column in range(1 - p, p):
            # The response to a change `row` positions further down is the same response, moved down.
            dy, dx = row * factor, column * factor
            moved = responses[..., max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
            fixed = responses[..., max(0, dy) : height - max(0, -dy), max(0, dx) : width - max(0, -dx)]
            result[row + p - 1, column + p - 1] = (moved.flatten(1) @ fixed.flatten(1).T).numpy()
    return result
