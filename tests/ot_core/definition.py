"""Transport as the method defines it, in loops that nobody would ship."""

import math

import numpy as np

from ot_core import TransportMap


def by_definition(
    transport_map: TransportMap, patch_size: int, latent: np.ndarray, kernel_size: int, sigma: float
) -> np.ndarray:
    """Patches by loops, y = T (x - ms) + mt, and the weighted average of what covers each position."""
    p, k = patch_size, kernel_size
    channels, height, width = latent.shape
    padded = np.pad(latent, ((0, 0), (p // 2,) * 2, (p // 2,) * 2), mode="edge")
    total, weights = np.zeros(latent.shape), np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            x = padded[:, i : i + p, j : j + p].ravel()
            y = transport_map.matrix @ (x - transport_map.source_mean) + transport_map.target_mean
            y = y.reshape(channels, p, p)
            for di in range(-(k // 2), k // 2 + 1):
                for dj in range(-(k // 2), k // 2 + 1):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        weight = math.exp(-(di**2 + dj**2) / (2 * sigma**2))
                        total[:, i + di, j + dj] += weight * y[:, p // 2 + di, p // 2 + dj]
                        weights[i + di, j + dj] += weight
    return total / weights
