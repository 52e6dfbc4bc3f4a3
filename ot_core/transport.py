"""Applying a transport map to a latent, and trading the result against the restored image."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ot_core.errors import Cause, ImageError
from ot_core.patches import fold, latent_statistics
from ot_core.transport_map import TransportMap


class LatentTransport:
    """A transport map ready to be applied to latents on one device.

    Every patch of the replicate-padded latent, one centred at each position, is mapped by
    y = T (x - ms) + mt; the mapped patches are folded back with their weights. Unfolding and mapping is one
    convolution from C to D channels with kernel T.

    Args:
        transport_map: the map.
        device: where latents live.
        dtype: precision of the convolution; float64 gives the definition.
        kernel_size: folding kernel k <= p, odd; default p.
        sigma: standard deviation of Gaussian folding weights in latent pixels; infinite means uniform.
    """

    def __init__(
        self,
        transport_map: TransportMap,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        kernel_size: int | None = None,
        sigma: float = math.inf,
    ) -> None:
        p, channels = transport_map.patch_size, transport_map.latent_channels
        matrix = torch.from_numpy(transport_map.matrix)
        bias = torch.from_numpy(transport_map.target_mean - transport_map.matrix @ transport_map.source_mean)
        self._weight = matrix.view(-1, channels, p, p).to(device, dtype)
        self._bias = bias.to(device, dtype)
        self._noise_root = _root(transport_map.noise_covariance)
        self._patch_size, self._kernel_size, self._sigma = p, kernel_size, sigma

    def __call__(self, latents: Tensor, keys: list[str] | None = None) -> Tensor:
        """Transports latents (B, C, H, W) to (B, C, H, W), in the dtype that they came in.

        Args:
            latents: on the device given at construction.
            keys: one per latent; they seed the noise of a map with a noise covariance, fresh at every
                position, so that the same image gets the same result on any worker and in any batch.
        """
        margin = self._patch_size // 2
        padded = F.pad(latents.to(self._weight.dtype), (margin,) * 4, mode="replicate")
        patches = F.conv2d(padded, self._weight, self._bias)
        if self._noise_root is not None:
            for patch, key in zip(patches, keys or [""] * len(patches), strict=True):
                patch += self._noise(key, patch)
        return fold(patches, self._patch_size, self._kernel_size, self._sigma).to(latents.dtype)

    def _noise(self, key: str, patch: Tensor) -> Tensor:
        assert self._noise_root is not None
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        white = np.random.default_rng(seed).standard_normal((self._noise_root.shape[1], patch[0].numel()))
        return torch.from_numpy(self._noise_root @ white).to(patch).view_as(patch)


class ZeroShotTransport:
    """Transports each latent by a map of its own: from the statistics of its own patches to the target's.

    Nothing restored is needed to fit, but whatever makes an image differ from the average natural one counts as
    the restorer's doing. A latent with few patches has a singular covariance; the map's noise term makes up for it.

    Args:
        transport_map: gives the target and the patch size; its source plays no part.
        **options: as `LatentTransport`.
    """

    def __init__(self, transport_map: TransportMap, **options: Any) -> None:
        self._map, self._options = transport_map, options

    def __call__(self, latents: Tensor, keys: list[str] | None = None) -> Tensor:
        """As `LatentTransport`.

        Raises:
            ImageError: if a latent holds fewer than two patches.
        """
        return torch.cat(
            [self._one(z[None], [key]) for z, key in zip(latents, keys or [""] * len(latents), strict=True)]
        )

    def _one(self, latent: Tensor, key: list[str]) -> Tensor:
        p = self._map.patch_size
        source = latent_statistics(latent[0], p)
        if source is None or source.count < 2:
            height, width = latent.shape[-2:]
            raise ImageError(
                Cause.TOO_SMALL, f"its latent is {height}x{width}; expected two patches of {p}x{p} or more"
            )
        own = TransportMap.fit(
            source, self._map.target, patch_size=p, metric=self._map.metric, invariant=self._map.invariant
        )
        return LatentTransport(own, **self._options)(latent, key)


def blend(restored: NDArray[Any], transported: NDArray[np.float32], alpha: float) -> NDArray[np.uint8]:
    """x_alpha = alpha x_restored + (1 - alpha) x_transported (paper eq. 4), clamped and rounded to 8 bits.

    Args:
        restored: (H, W, 3), uint8, or float32 in [0, 1].
        transported: (H, W, 3) float32; nominally in [0, 1].
        alpha: 0 is full transport, 1 the restored image itself; other values extrapolate.

    Returns:
        (H, W, 3) uint8.
    """
    x = restored.astype(np.float32) * np.float32(1 / 255) if restored.dtype == np.uint8 else restored
    mixed = np.clip(alpha * x + (1 - alpha) * transported, 0, 1)
    return np.rint(mixed * 255).astype(np.uint8)


def _root(covariance: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """L with L L^T = covariance, which is singular by nature here, so by eigenvectors rather than Cholesky."""
    if covariance is None:
        return None
    values, vectors = np.linalg.eigh(covariance)
    keep = values > 1e-12 * max(float(values[-1]), 0.0)
    return vectors[:, keep] * np.sqrt(values[keep])
