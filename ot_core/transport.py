"""Applying a transport map to a latent, and trading the result against the restored image."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ot_core.errors import Cause, ImageError
from ot_core.patches import fold, folding_weights, latent_statistics
from ot_core.transport_map import TransportMap


class LatentTransport:
    """A transport map ready to be applied to latents on one device.

    The definition: every patch of the replicate-padded latent, one centred at each position, is mapped by
    y = T (x - ms) + mt, and the mapped patches are folded back with their weights. All of that is linear and the same
    everywhere but near the border, where fewer patches cover a position. So it is computed as one convolution from C
    to C channels with a kernel of p + k - 1 rows and columns, and with kernels of their own for the outer k // 2 rows
    and columns. No patch is ever held.

    Args:
        transport_map: the map.
        device: where latents live.
        dtype: precision of the convolution; float64 gives the definition to the last digits.
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
        self._matrix, self._bias = matrix.view(channels, p, p, channels, p, p), bias.view(channels, p, p)
        self._noise_root = _root(transport_map.noise_covariance)
        self._device, self._dtype = torch.device(device), dtype
        self._patch_size, self._kernel_size, self._sigma = p, p if kernel_size is None else kernel_size, sigma
        self._kernels: dict[tuple[range, range], tuple[Tensor, Tensor]] = {}

    def __call__(self, latents: Tensor, keys: list[str] | None = None) -> Tensor:
        """Transports latents (B, C, H, W) to (B, C, H, W), in the dtype that they came in.

        Args:
            latents: on the device given at construction.
            keys: one per latent; they seed the noise of a map with a noise covariance, fresh at every
                position, so that the same image gets the same result on any worker and in any batch.
        """
        batch, channels, height, width = latents.shape
        result = torch.empty(latents.shape, dtype=self._dtype, device=latents.device)
        taps = self._patch_size + self._kernel_size - 1
        padded = F.pad(latents.to(self._dtype), (taps // 2,) * 4, mode="replicate")
        all_columns = self._covered_alike(width)
        for rows, down in self._covered_alike(height):
            for columns, across in all_columns:
                kernel, bias = self._kernel(down, across)
                seen = padded[:, :, rows.start : rows.stop + taps - 1, columns.start : columns.stop + taps - 1]
                if len(rows) > 1 and len(columns) > 1:
                    moved = F.conv2d(seen, kernel, bias)
                else:  # a product of matrices, which for a single row or column is several times faster
                    windows = seen.unfold(2, taps, 1).unfold(3, taps, 1).permute(0, 1, 4, 5, 2, 3)
                    flat = windows.reshape(batch, channels * taps**2, -1)
                    moved = (kernel.flatten(1) @ flat + bias[:, None]).view(batch, channels, len(rows), len(columns))
                result[:, :, rows.start : rows.stop, columns.start : columns.stop] = moved
        if self._noise_root is not None:
            for one, key in zip(result, keys or [""] * batch, strict=True):
                noise = self._noise(key, height, width).to(one)
                one += fold(noise[None], self._patch_size, self._kernel_size, self._sigma)[0]
        return result.to(latents.dtype)

    def _covered_alike(self, size: int) -> list[tuple[range, range]]:
        """Rows, or columns, with how far the patches that cover them lie: the middle ones alike, each outer one not."""
        radius = self._kernel_size // 2
        outer = {*range(min(radius, size)), *range(max(size - radius, 0), size)}
        starts = sorted({*outer, min(radius, size - 1), size})
        return [
            (range(start, stop), range(max(-radius, start - size + 1), min(radius, start) + 1))
            for start, stop in itertools.pairwise(starts)
        ]

    def _kernel(self, down: range, across: range) -> tuple[Tensor, Tensor]:
        """Kernel (C, C, p + k - 1, p + k - 1) and bias (C,) where patches at these distances cover a position."""
        if (down, across) not in self._kernels:
            p, radius = self._patch_size, self._kernel_size // 2
            weights = folding_weights(self._kernel_size, self._sigma)
            kernel = torch.zeros(*self._bias.shape[:1] * 2, *(p + 2 * radius,) * 2, dtype=torch.float64)
            bias, total = torch.zeros(len(kernel), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
            for i, j in itertools.product(down, across):
                weight = weights[radius + i, radius + j]
                element = (slice(None), p // 2 + i, p // 2 + j)
                kernel[:, :, radius - i : radius - i + p, radius - j : radius - j + p] += weight * self._matrix[element]
                bias += weight * self._bias[element]
                total += weight
            self._kernels[down, across] = (
                (kernel / total).to(self._device, self._dtype),
                (bias / total).to(self._device, self._dtype),
            )
        return self._kernels[down, across]

    def _noise(self, key: str, height: int, width: int) -> Tensor:
        """Noise of every patch: (D, H, W) float64."""
        assert self._noise_root is not None
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        white = np.random.default_rng(seed).standard_normal((self._noise_root.shape[1], height * width))
        return torch.from_numpy(self._noise_root @ white).view(-1, height, width)


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


def blend(restored: Tensor, transported: Tensor, alpha: float) -> Tensor:
    """x_alpha = alpha x_restored + (1 - alpha) x_transported (paper eq. 4), clamped and rounded to 8 bits.

    Args:
        restored: of any shape, float32 in [0, 1].
        transported: of the same shape and device, float32; nominally in [0, 1].
        alpha: 0 is full transport, 1 the restored image itself; other values extrapolate.

    Returns:
        uint8 of that shape.
    """
    mixed = alpha * restored + (1 - alpha) * transported
    return mixed.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def _root(covariance: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """L with L L^T = covariance, which is singular by nature here, so by eigenvectors rather than Cholesky."""
    if covariance is None:
        return None
    values, vectors = np.linalg.eigh(covariance)
    keep = values > 1e-12 * max(float(values[-1]), 0.0)
    return vectors[:, keep] * np.sqrt(values[keep])
