"""What rounding an image to 8 bits does to its latent: the evidence below which a map amplifies nothing.

A restorer can remove a kind of detail altogether. What varies in such directions of a latent patch is rounding, and a
map that stretches it to the variance of natural images draws noise. `TransportMap.fit` bounds its gains by this.
"""

from __future__ import annotations

import functools
import operator

import numpy as np
import torch

from ot_core.autoencoder import Autoencoder
from ot_core.decoder import random_fields
from ot_core.patches import latent_statistics
from ot_core.statistics import Array, GaussianStatistics

#: Random fields of latents that are decoded, rounded and encoded again, and their sides in positions.
_FIELDS, _EXTENT = 8, 16


def rounding_covariance(autoencoder: Autoencoder, statistics: GaussianStatistics, patch_size: int) -> Array:
    """Covariance (D, D), float64, of the change of a latent patch when its image is rounded to 8 bits.

    Measured on images that are decoded from white fields of latents of the given statistics: a uniform error of one
    grey level's width is added to them, and the difference encoded. Nothing random differs from run to run.

    Args:
        autoencoder: decodes and encodes.
        statistics: of patches of restored latents, dimension D = C p^2.
        patch_size: p, odd.
    """
    rng, autoencoder = np.random.default_rng(1), autoencoder.with_margin(0)
    parts = []
    for field in random_fields(statistics, patch_size, _FIELDS, _EXTENT):
        image = autoencoder.decode(torch.from_numpy(field[None]).float())
        error = torch.from_numpy(rng.uniform(-0.5, 0.5, image.shape) / 255).to(image)
        change = autoencoder.encode(image + error) - autoencoder.encode(image)
        found = latent_statistics(change[0], patch_size)
        assert found is not None
        parts.append(found)
    return functools.reduce(operator.add, parts).covariance()
