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

# For each of the sides, and each of its rows or columns, how far from it the patches that cover it lie.
_Covers = tuple[tuple[range, ...], ...]


class LatentTransport:
    """A transport map ready to be applied to latents on one device.

    The definition: every patch of the replicate-padded latent, one centred at each position, is mapped by
    y = T (x - ms) + mt, and the mapped patches are folded back with their weights. All of that is linear and the same
    everywhere but near the border, where fewer patches cover a position. So it is computed as one convolution from C
    to C channels with a kernel of p + k - 1 rows and columns, and with kernels of their own for the positions on the
    border, the outer k // 2 rows and columns. No patch is ever held.

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
        self._taps = p + self._kernel_size - 1
        self._inside: _Covers = ((range(-(self._kernel_size // 2), self._kernel_size // 2 + 1),),)
        self._kernels: dict[tuple[_Covers, _Covers], tuple[Tensor, Tensor]] = {}
        # A CPU's convolutions are made for sixteen output channels and more; of four, a block of 2x2 positions makes
        # sixteen. An odd last row or column of blocks reaches into the border, so there must be one.
        self._together = 2 if channels <= 8 and self._kernel_size > 1 else 1
        self._convolution = self._block_kernel(self._together)

    def __call__(self, latents: Tensor, keys: list[str] | None = None) -> Tensor:
        """Transports latents (B, C, H, W) to (B, C, H, W), in the dtype that they came in.

        Args:
            latents: on the device given at construction.
            keys: one per latent; they seed the noise of a map with a noise covariance, fresh at every
                position, so that the same image gets the same result on any worker and in any batch.
        """
        batch, _, height, width = latents.shape
        padded = F.pad(latents.to(self._dtype), (self._taps // 2,) * 4, mode="replicate")
        result = torch.empty(latents.shape, dtype=self._dtype, device=latents.device)
        self._transport_inside(padded, result)
        self._transport_border(padded, result)
        if self._noise_root is not None:
            for one, key in zip(result, keys or [""] * batch, strict=True):
                noise = self._noise(key, height, width).to(one)
                one += fold(noise[None], self._patch_size, self._kernel_size, self._sigma)[0]
        return result.to(latents.dtype)

    def _transport_inside(self, padded: Tensor, result: Tensor) -> None:
        """Fills in the positions that patches on all sides cover: a convolution, a block of positions at a time."""
        radius, together = self._kernel_size // 2, self._together
        height, width = (max(size - 2 * radius, 0) for size in result.shape[2:])
        if height and width:
            height, width = height + height % together, width + width % together
            seen = padded[:, :, radius : radius + height + self._taps - 1, radius : radius + width + self._taps - 1]
            moved = F.conv2d(seen, *self._convolution, stride=together)
            place = result[:, :, radius : radius + height, radius : radius + width]
            blocks = moved.view(*place.shape[:2], together, together, *moved.shape[2:]).permute(0, 1, 4, 2, 5, 3)
            place.view(blocks.shape).copy_(blocks)

    def _transport_border(self, padded: Tensor, result: Tensor) -> None:
        """Fills in the border: r of its rows, or q of its columns, on each of s or z sides, and where those cross."""
        radius, (height, width) = self._kernel_size // 2, result.shape[2:]
        if not radius:
            return
        windows = padded.unfold(2, self._taps, 1).unfold(3, self._taps, 1)
        (rows, down), (columns, across) = _sides(height, radius), _sides(width, radius)
        if width > 2 * radius:
            inner = slice(radius, width - radius)
            kernels, biases = self._border_kernels(down, self._inside)
            seen = windows[:, :, :, inner].unfold(2, *rows)
            moved = torch.einsum("bcsmijr,srzqocij->bmsro", seen, kernels) + biases[:, :, 0, 0]
            result[:, :, :, inner].unfold(2, *rows).permute(0, 3, 2, 4, 1).copy_(moved)
        if height > 2 * radius:
            inner = slice(radius, height - radius)
            kernels, biases = self._border_kernels(self._inside, across)
            seen = windows[:, :, inner].unfold(3, *columns)
            moved = torch.einsum("bcmzijq,srzqocij->bmzqo", seen, kernels) + biases[0, 0]
            result[:, :, inner].unfold(3, *columns).permute(0, 2, 3, 4, 1).copy_(moved)
        kernels, biases = self._border_kernels(down, across)
        seen = windows.unfold(2, *rows).unfold(3, *columns)
        moved = torch.einsum("bcszijrq,srzqocij->bsrzqo", seen, kernels) + biases
        result.unfold(2, *rows).unfold(3, *columns).permute(0, 2, 4, 3, 5, 1).copy_(moved)

    def _border_kernels(self, down: _Covers, across: _Covers) -> tuple[Tensor, Tensor]:
        """Kernels (s, r, z, q, C, C, taps, taps) and biases (s, r, z, q, C) of s times r rows and z times q columns."""
        if (down, across) not in self._kernels:
            kinds = itertools.product(*(itertools.chain(*covers) for covers in (down, across)))
            shape = len(down), len(down[0]), len(across), len(across[0])
            kernels, biases = map(torch.stack, zip(*itertools.starmap(self._kernel, kinds), strict=True))
            self._kernels[down, across] = (
                kernels.view(*shape, *kernels.shape[1:]).to(self._device, self._dtype),
                biases.view(*shape, -1).to(self._device, self._dtype),
            )
        return self._kernels[down, across]

    def _block_kernel(self, side: int) -> tuple[Tensor, Tensor]:
        """Kernel and bias that give the side^2 positions of a block at once, as channels (C, rows, columns)."""
        kernel, bias = self._kernel(self._inside[0][0], self._inside[0][0])
        channels, size = len(kernel), self._taps + side - 1
        block = torch.zeros(channels, side, side, channels, size, size, dtype=kernel.dtype)
        for i, j in itertools.product(range(side), range(side)):
            block[:, i, j, :, i : i + self._taps, j : j + self._taps] = kernel
        bias = bias.repeat_interleave(side**2)
        return block.flatten(0, 2).to(self._device, self._dtype), bias.to(self._device, self._dtype)

    def _kernel(self, down: range, across: range) -> tuple[Tensor, Tensor]:
        """Kernel (C, C, taps, taps) and bias (C,), float64, where patches at these distances cover a position."""
        p, radius = self._patch_size, self._kernel_size // 2
        weights = folding_weights(self._kernel_size, self._sigma)
        kernel = torch.zeros(*self._bias.shape[:1] * 2, self._taps, self._taps, dtype=torch.float64)
        bias, total = torch.zeros(len(kernel), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for i, j in itertools.product(down, across):
            weight = weights[radius + i, radius + j]
            element = (slice(None), p // 2 + i, p // 2 + j)
            kernel[:, :, radius - i : radius - i + p, radius - j : radius - j + p] += weight * self._matrix[element]
            bias += weight * self._bias[element]
            total += weight
        return kernel / total, bias / total

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


def _sides(size: int, radius: int) -> tuple[tuple[int, int], _Covers]:
    """The outer `radius` rows, or columns, at both ends of `size`, or all of them as one side where they meet.

    Returns:
        Size and step, for Tensor.unfold, of the sides, and what covers their rows.
    """
    length = radius if size >= 2 * radius else size
    step = max(size - length, 1)
    starts = range(0, size - length + 1, step)
    covers = [
        tuple(range(max(-radius, at - size + 1), min(radius, at) + 1) for at in range(start, start + length))
        for start in starts
    ]
    return (length, step), tuple(covers)


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
