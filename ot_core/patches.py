"""Patches of a latent, and their weighted fold: the definition that faster forms are tested against."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ot_core.errors import Cause, ImageError
from ot_core.statistics import Array, GaussianStatistics

#: What a network gave, and what helps.
NOT_FINITE: Final = "NaN or infinity; --precision float32 has the widest range"

#: How many patch values are held at a time while gathering statistics: 32 MiB of float64.
_BAND_VALUES = 2**22
#: Of frequency, in `spectrum`; and the least energy there, as a share of the mean.
_BANDS, _LEAST_ENERGY = 3, 1e-6


def unfold(latent: Tensor, patch_size: int) -> Tensor:
    """All patches at stride 1 that lie inside the latent.

    Args:
        latent: (B, C, H, W).
        patch_size: p.

    Returns:
        (B, D, H - p + 1, W - p + 1), D = C p^2 in channel-major order (C, rows, columns).
    """
    batch, _, height, width = latent.shape
    columns = F.unfold(latent, patch_size)
    return columns.view(batch, -1, height - patch_size + 1, width - patch_size + 1)


def folding_weights(kernel_size: int, sigma: float = math.inf) -> Tensor:
    """(k, k) float64 weights of a patch's centre: uniform, or a Gaussian of the given standard deviation."""
    offsets = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
    profile = torch.exp(-(offsets**2) / (2 * sigma**2)) if math.isfinite(sigma) else torch.ones_like(offsets)
    return torch.outer(profile, profile)


def fold(patches: Tensor, patch_size: int, kernel_size: int | None = None, sigma: float = math.inf) -> Tensor:
    """Weighted average of patches centred at every position of a latent.

    Args:
        patches: (B, D, H, W), the patch centred at each position; parts outside the latent are ignored.
        patch_size: p, odd.
        kernel_size: k <= p, odd: only the central k x k of each patch takes part. Default p.
        sigma: standard deviation of Gaussian folding weights, in latent pixels; infinite means uniform.

    Returns:
        (B, C, H, W).
    """
    k = patch_size if kernel_size is None else kernel_size
    batch, _, height, width = patches.shape
    margin = (patch_size - k) // 2
    centres = patches.view(batch, -1, patch_size, patch_size, height, width)
    centres = centres[:, :, margin : margin + k, margin : margin + k]
    weights = folding_weights(k, sigma).to(patches).view(1, 1, k, k, 1, 1)

    def overlap_add(values: Tensor) -> Tensor:
        columns = values.reshape(values.shape[0], -1, height * width)
        return F.fold(columns, (height, width), k, padding=k // 2)

    return overlap_add(centres * weights) / overlap_add(weights.expand(1, 1, k, k, height, width))


def check_finite(latent: Tensor) -> None:
    """Raises ImageError, NOT_FINITE, where an image was encoded to NaN or infinity."""
    if not latent.isfinite().all():
        raise ImageError(Cause.NOT_FINITE, f"the autoencoder encoded {NOT_FINITE}")


def latent_statistics(latent: Tensor, patch_size: int) -> GaussianStatistics | None:
    """Statistics of all patches inside one latent: those of `unfold`, without ever holding a patch.

    The products of two rows of a patch are products of two rows of the latent, which all patches above and below share.
    So one product of matrices for each distance between rows does for the whole scatter; only the outer rows of the
    latent, which not every row of a patch reaches, are accounted for apart. Computed on the latent's device in float64,
    about the mean of each channel, so that no digits are lost.

    Args:
        latent: (C, H, W), any float dtype and device.
        patch_size: p.

    Returns:
        Statistics of dimension C p^2, of one image, or None where not even one patch fits.

    Raises:
        ValueError: if the latent isn't finite.
    """
    channels, height, width = latent.shape
    if height < patch_size or width < patch_size:
        return None
    latent = (latent.cpu() if latent.device.type == "mps" else latent).double()  # which has no float64
    centre = latent.mean((1, 2), keepdim=True)
    if not centre.isfinite().all():
        raise ValueError("latent: expected finite values, got NaN or infinity")
    total: GaussianStatistics | None = None
    rows_per_band = max(1, _BAND_VALUES // (channels * patch_size * width))
    for top in range(0, height - patch_size + 1, rows_per_band):
        part = _band_statistics(latent[:, top : top + rows_per_band + patch_size - 1] - centre, patch_size)
        total = part if total is None else total + part
    assert total is not None
    mean = total.mean + centre.flatten().repeat_interleave(patch_size**2).cpu().numpy()
    return replace(total, mean=mean, images=GaussianStatistics.single(spectrum(total, patch_size)))


def spectrum(statistics: GaussianStatistics, patch_size: int) -> Array:
    """What tells the work of one restorer from that of another in a single image, whatever the image shows.

    Logarithms of the energies of each latent channel in up to three bands of frequency (of a patch's discrete cosine
    transform: constant, first order, higher), less their mean: contrast, which is content, is taken out.

    Args:
        statistics: of the patches of an image, of dimension C p^2.
        patch_size: p.

    Returns:
        (C min(p, 3),) float64.
    """
    orders = np.arange(patch_size)
    cosines = np.cos(np.pi / patch_size * np.outer(orders, orders + 0.5))
    cosines /= np.linalg.norm(cosines, axis=1, keepdims=True)
    transform = np.kron(cosines, cosines)
    bands = np.minimum(np.add.outer(orders, orders).ravel(), _BANDS - 1)
    channels = statistics.dimension // patch_size**2
    blocks = statistics.scatter.reshape(channels, patch_size**2, channels, patch_size**2)
    own = blocks[np.arange(channels), :, np.arange(channels)]
    energies = np.einsum("fx,cxy,fy->cf", transform, own, transform)
    by_band = np.stack([energies[:, bands == band].mean(1) for band in np.unique(bands)], axis=1).ravel()
    mean = by_band.mean()
    if mean <= 0:  # nothing varies
        return np.zeros_like(by_band)
    logarithms: Array = np.log(np.maximum(by_band / mean, _LEAST_ENERGY))
    return logarithms - logarithms.mean()


def _band_statistics(latent: Tensor, patch_size: int) -> GaussianStatistics:
    """Of a latent whose mean is near zero; see `latent_statistics`."""
    (channels, height, width), p = latent.shape, patch_size
    rows, columns = height - p + 1, width - p + 1
    # (row, column) x (channel, column of the patch): rows of the latent are contiguous.
    strips = latent.unfold(2, p, 1).permute(1, 2, 0, 3).reshape(height * columns, channels * p)

    def products(start: int, stop: int, distance: int) -> Tensor:
        upper, lower = strips[start * columns : stop * columns], strips[(start + distance) * columns :]
        return upper.T @ lower[: len(upper)]

    outer = torch.empty(channels, p, p, channels, p, p, dtype=torch.float64, device=latent.device)
    for distance in range(p):
        reach = p - 1 - distance  # patches' upper rows, by the row of the patch, begin at 0 to `reach`
        if rows > reach:
            common = products(reach, rows, distance)
            above = [products(row, row + 1, distance) for row in range(reach)]
            below = [products(row, row + 1, distance) for row in range(rows, rows + reach)]
            each = [sum([*above[row:], *below[:row]], common) for row in range(reach + 1)]
        else:
            each = [products(row, row + rows, distance) for row in range(reach + 1)]
        for row, found in enumerate(each):
            block = found.view(channels, p, channels, p)
            outer[:, row, :, :, row + distance] = block if distance else (block + block.permute(2, 3, 0, 1)) / 2
            if distance:
                outer[:, row + distance, :, :, row] = block.permute(2, 3, 0, 1)
    of_rows = strips.view(height, columns, channels, p).sum(1)
    sums = torch.stack([of_rows[row : row + rows].sum(0) for row in range(p)], dim=1).flatten()

    count = rows * columns
    root = sums / count**0.5
    scatter = outer.view(len(sums), len(sums)).addr_(root, root, alpha=-1)
    return GaussianStatistics(count, (sums / count).cpu().numpy(), scatter.cpu().numpy())
