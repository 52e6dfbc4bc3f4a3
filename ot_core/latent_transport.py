"""Applying a transport map to a latent, and trading the result against the restored image."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ot_core.errors import Cause, ImageError
from ot_core.hardware import computing_on
from ot_core.patches import check_finite, fold, folding_weights, latent_statistics
from ot_core.statistics import GaussianStatistics
from ot_core.transport_map import TransportMap

# For each row or column of a block of positions, how far from it the patches that cover it lie.
_Covers = tuple[range, ...]
_Blocks = tuple[_Covers, ...]
#: Positions along the border that are worked on together, at most.
_ALONG = 8


class LatentTransport:
    """A transport map ready to be applied to latents on one device.

    The definition: every patch of the replicate-padded latent, one centred at each position, is mapped by
    y = T (x - ms) + mt, and the mapped patches are folded back with their weights. All of that is linear and the same
    everywhere but near the border, where fewer patches cover a position. So it is computed as one convolution from C
    to C channels with a kernel of p + k - 1 rows and columns, and with kernels of their own for the positions on the
    border, the outer k // 2 rows and columns. No patch is ever held.

    Args:
        transport_map: the map, of dimension C p^2.
        patch_size: p, odd.
        device: where latents live.
        dtype: precision of the convolution; float64 gives the definition to the last digits.
        kernel_size: folding kernel k <= p, odd; default p.
        sigma: standard deviation of Gaussian folding weights in latent pixels; infinite means uniform.
    """

    def __init__(
        self,
        transport_map: TransportMap,
        patch_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        kernel_size: int | None = None,
        sigma: float = math.inf,
    ) -> None:
        p, channels = patch_size, transport_map.dimension // patch_size**2
        matrix = torch.from_numpy(transport_map.matrix)
        bias = torch.from_numpy(transport_map.target_mean - transport_map.matrix @ transport_map.source_mean)
        self._matrix, self._bias = matrix.view(channels, p, p, channels, p, p), bias.view(channels, p, p)
        self._noise_root = _root(transport_map.noise_covariance)
        self._device, self._dtype = torch.device(device), dtype
        self._patch_size, self._kernel_size, self._sigma = p, kernel_size or p, sigma
        self._taps = p + self._kernel_size - 1
        self._inside = range(-(self._kernel_size // 2), self._kernel_size // 2 + 1)
        self._kernels: dict[tuple[_Blocks, _Blocks], tuple[Tensor, Tensor]] = {}
        # Products of matrices and a CPU's convolutions are made for sixteen output channels and more. A latent of four
        # has as many where several positions are worked on together, each seeing a little more than it needs.
        few = channels <= 8
        self._rows, self._along = (4, _ALONG) if few else (1, 1)
        kernel, bias = self._block((self._inside,) * self._rows, (self._inside,))
        self._convolution = self._ready(kernel[:, 0].transpose(0, 1).flatten(0, 1), bias[:, 0].T.flatten())

    def __call__(self, latents: Tensor, keys: list[str] | None = None) -> Tensor:
        """Transports latents (B, C, H, W) to (B, C, H, W), in the dtype that they came in.

        Args:
            latents: on the device given at construction.
            keys: one per latent; they seed the noise of a map with a noise covariance, fresh at every
                position, so that the same image gets the same result on any worker and in any batch.
        """
        with computing_on(self._device):
            return self._transported(latents, keys)

    def _transported(self, latents: Tensor, keys: list[str] | None) -> Tensor:
        batch, _, height, width = latents.shape
        margin = self._taps // 2
        beyond = (margin, margin + -width % _ALONG, margin, margin + -height % _ALONG)  # the last blocks are whole
        padded = F.pad(latents.to(self._dtype), beyond, mode="replicate")
        result = self._transport_inside(padded, height, width)
        if self._kernel_size > 1:
            self._transport_border(padded, result)
        if self._noise_root is not None:
            for one, key in zip(result, keys or [""] * batch, strict=True):
                noise = self._noise(key, height, width).to(one.dtype).to(one.device)
                one += fold(noise[None], self._patch_size, self._kernel_size, self._sigma)[0]
        return result.to(latents.dtype)

    def _transport_inside(self, padded: Tensor, height: int, width: int) -> Tensor:
        """(B, C, H, W), right where patches on all sides cover a position: a convolution, some rows at a time."""
        rows, (kernel, bias) = self._rows, self._convolution
        seen = padded[:, :, : height + -height % rows + self._taps - 1, : width + self._taps - 1]
        moved = F.conv2d(seen, kernel, bias, stride=(rows, 1))
        return moved.view(len(moved), -1, rows, *moved.shape[2:]).transpose(2, 3).flatten(2, 3)[:, :, :height]

    def _transport_border(self, padded: Tensor, result: Tensor) -> None:
        """Corrects the outer rows, then the outer columns, then where those cross, on all sides at once."""
        radius, more, (height, width) = self._kernel_size // 2, self._taps - 1, result.shape[2:]
        (rows, row_step, down), (columns, column_step, across) = _sides(height, radius), _sides(width, radius)
        along = ((self._inside,) * self._along,)
        low = padded[:, :, : height + more].unfold(2, rows + more, row_step)  # b c s w i
        flat = padded[:, :, :, : width + more].unfold(3, columns + more, column_step)  # b c h z j

        seen = low.unfold(3, self._along + more, self._along)  # b c s n i j
        moved = self._move(seen.permute(2, 0, 3, 1, 4, 5), down, along)  # s b n r t c
        moved = moved.permute(1, 5, 0, 2, 4, 3).flatten(3, 4)[:, :, :, :width]
        result.unfold(2, rows, row_step).copy_(moved)

        seen = flat.unfold(2, self._along + more, self._along)  # b c n z j i
        moved = self._move(seen.permute(3, 0, 2, 1, 5, 4), along, across)  # z b n t q c
        moved = moved.permute(1, 5, 2, 3, 0, 4).flatten(2, 3)[:, :, :height]
        result.unfold(3, columns, column_step).copy_(moved)

        seen = low[:, :, :, : width + more].unfold(3, columns + more, column_step)  # b c s z i j
        moved = self._move(seen.permute(2, 3, 0, 1, 4, 5), down, across)  # s z b r q c
        result.unfold(2, rows, row_step).unfold(3, columns, column_step).copy_(moved.permute(2, 5, 0, 1, 3, 4))

    def _move(self, seen: Tensor, down: _Blocks, across: _Blocks) -> Tensor:
        """From what blocks of positions see, (kinds..., blocks..., C, rows, columns), to (..., a, b, C) of these."""
        if (down, across) not in self._kernels:
            blocks = [self._block(*covers) for covers in itertools.product(down, across)]
            matrices = torch.stack([kernel for kernel, _ in blocks]).flatten(1, 3).flatten(2).mT
            self._kernels[down, across] = self._ready(matrices, torch.stack([bias for _, bias in blocks]))
        kernels, biases = self._kernels[down, across]
        patches = seen.reshape(len(kernels), -1, kernels.shape[1])
        return torch.baddbmm(biases.flatten(1)[:, None], patches, kernels).view(*seen.shape[:-3], *biases.shape[1:])

    def _ready(self, kernels: Tensor, biases: Tensor) -> tuple[Tensor, Tensor]:
        kernels, biases = (tensor.to(self._dtype).to(self._device).contiguous() for tensor in (kernels, biases))
        return kernels, biases

    def _block(self, down: _Covers, across: _Covers) -> tuple[Tensor, Tensor]:
        """Kernel (a, b, C, C, taps + a - 1, taps + b - 1) and bias (a, b, C) of a block of a x b positions."""
        channels = len(self._bias)
        size = self._taps + len(down) - 1, self._taps + len(across) - 1
        kernel = torch.zeros(len(down), len(across), channels, channels, *size, dtype=torch.float64)
        bias = torch.zeros(len(down), len(across), channels, dtype=torch.float64)
        for (i, rows), (j, columns) in itertools.product(enumerate(down), enumerate(across)):
            place = kernel[i, j, :, :, i : i + self._taps, j : j + self._taps]
            place[:], bias[i, j] = self._kernel(rows, columns)
        return kernel, bias

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
        transport_map: tells how the maps are fitted.
        patch_size: p, odd.
        target: statistics of the target.
        device: as `LatentTransport`.
        kernel_size: likewise.
        sigma: likewise.
    """

    def __init__(
        self,
        transport_map: TransportMap,
        patch_size: int,
        target: GaussianStatistics,
        device: torch.device | str = "cpu",
        kernel_size: int | None = None,
        sigma: float = math.inf,
    ) -> None:
        self._map, self._patch_size, self._target = transport_map, patch_size, target
        self._device, self._kernel_size, self._sigma = device, kernel_size, sigma

    def __call__(self, latents: Tensor, keys: list[str] | None = None) -> Tensor:
        """As `LatentTransport`.

        Raises:
            ImageError: if a latent holds fewer than two patches.
        """
        return torch.cat(
            [self._one(z[None], [key]) for z, key in zip(latents, keys or [""] * len(latents), strict=True)]
        )

    def _one(self, latent: Tensor, key: list[str]) -> Tensor:
        p = self._patch_size
        check_finite(latent)
        source = latent_statistics(latent[0], p)
        if source is None or source.count < 2:
            height, width = latent.shape[-2:]
            raise ImageError(
                Cause.TOO_SMALL, f"its latent is {height}x{width}; expected two patches of {p}x{p} or more"
            )
        own = TransportMap.fit(source, self._target, metric=self._map.metric, invariant=self._map.invariant)
        transport = LatentTransport(own, p, self._device, kernel_size=self._kernel_size, sigma=self._sigma)
        return transport(latent, key)


def _sides(size: int, radius: int) -> tuple[int, int, _Blocks]:
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
    return length, step, tuple(covers)


def blend(restored: Tensor, transported: Tensor, alpha: float) -> Tensor:
    """The same as `mixed`, rounded to 8 bits: uint8."""
    return eight_bits(mixed(restored, transported, alpha))


def eight_bits(unit: Tensor) -> Tensor:
    """uint8 of float32 in [0, 1]."""
    return unit.mul(255).round_().to(torch.uint8)


def mixed(restored: Tensor, transported: Tensor, alpha: float) -> Tensor:
    """x_alpha = alpha x_restored + (1 - alpha) x_transported (paper eq. 4), clamped to [0, 1].

    Args:
        restored: of any shape, float32 in [0, 1].
        transported: of the same shape and device, float32; nominally in [0, 1].
        alpha: 0 is full transport, 1 the restored image itself; other values extrapolate.

    Returns:
        float32 of that shape.
    """
    return (alpha * restored + (1 - alpha) * transported).clamp_(0, 1)


def _root(covariance: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """L with L L^T = covariance, which is singular by nature here, so by eigenvectors rather than Cholesky."""
    if covariance is None:
        return None
    values, vectors = np.linalg.eigh(covariance)
    keep = values > 1e-12 * max(float(values[-1]), 0.0)
    return vectors[:, keep] * np.sqrt(values[keep])
