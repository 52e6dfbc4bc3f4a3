"""Patches of a latent, and their weighted fold: the definition that faster forms are tested against."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ot_core.statistics import GaussianStatistics

#: How many patch values are held at a time while gathering statistics: 32 MiB of float64.
_BAND_VALUES = 2**22


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


def latent_statistics(latent: Tensor, patch_size: int) -> GaussianStatistics | None:
    """Statistics of all patches inside one latent, gathered band by band so that memory stays bounded.

    Args:
        latent: (C, H, W), any float dtype; products are float64.
        patch_size: p.

    Returns:
        Statistics of dimension C p^2, or None where not even one patch fits.
    """
    channels, height, width = latent.shape
    if height < patch_size or width < patch_size:
        return None
    total: GaussianStatistics | None = None
    rows_per_band = max(1, _BAND_VALUES // (channels * patch_size**2 * width))
    latent = latent.to("cpu", torch.float64)
    for top in range(0, height - patch_size + 1, rows_per_band):
        band = latent[None, :, top : top + rows_per_band + patch_size - 1]
        part = GaussianStatistics.of(unfold(band, patch_size).flatten(2)[0].T.numpy())
        total = part if total is None else total + part
    return total
