"""Transports pairs that were kept back, and measures what comes of it: see `ot_core.check`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ot_core.autoencoder import Autoencoder, to_tensor
from ot_core.check import ALPHAS, MapCheck, Measured, Pair, Pixels
from ot_core.features import PixelFeatures
from ot_core.latent_transport import blend
from ot_core.naturalness import grid_power, log_spectral_distance
from ot_core.quality import mean_squared_error, psnr_of
from ot_core.statistics import GaussianStatistics
from ot_core.transfer import unit_pixels
from ot_core.transport_map import gelbrich_distance_squared

#: What is added back must lower the squared error by this share, since it costs another decoding.
_WORTH_ADDING = 0.01
#: Share of the weight of least squares.
_CAUTION = 0.5
#: Mean square of rounding to 8 bits: an autoencoder that loses less loses nothing.
_ROUNDING = 1 / 255**2 / 12


def check_map(
    pairs: Sequence[Pair],
    autoencoder: Autoencoder,
    transport: Callable[[Tensor], Tensor],
    residual: float | None = None,
) -> tuple[float, MapCheck]:
    """Transports the restored images of pairs, and measures the results against the originals.

    Args:
        pairs: at least one; such as `middle` gives.
        autoencoder: encodes and decodes.
        transport: maps latents.
        residual: the weight; default the best one.

    Returns:
        The residual weight (`ot_core.pixel_transport`), and what was found with it. With restored images x, their round
        trips D(z), results y and originals o, the weight is half that of least squares,
        sum (x - D(z)) (o - y) / sum (x - D(z))^2, in [0, 0.5]; 0 where it would lower the error by less than a
        hundredth. Half of it has three quarters of the gain, and takes less of the texture that the map has drawn.
    """
    restored = [_unit(pair.restored) for pair in pairs]
    moved, lost = [], []
    for x, pair in zip(restored, pairs, strict=True):
        latents = autoencoder.encode(to_tensor([pair.restored], autoencoder))
        with torch.inference_mode():
            transported = transport(latents)
        y, round_trip = (_like(autoencoder.decode(z), x) for z in (transported, latents))
        moved.append(y)
        lost.append(x - round_trip)
    weight = residual
    if weight is None:
        weight = _residual([_unit(pair.original) for pair in pairs], moved, lost)
    originals = [_bytes(_unit(pair.original)) for pair in pairs]
    results = tuple(
        (
            alpha,
            measured(
                [blend(x, y + weight * r, alpha).numpy() for x, y, r in zip(restored, moved, lost, strict=True)],
                originals,
            ),
        )
        for alpha in ALPHAS
    )
    return weight, MapCheck(len(pairs), measured([_bytes(x) for x in restored], originals), results)


def measured(images: Sequence[NDArray[np.uint8]], originals: Sequence[NDArray[np.uint8]]) -> Measured:
    """Measures images (H, W, 3) beside their originals."""
    errors = [mean_squared_error(image, original) for image, original in zip(images, originals, strict=True)]
    return Measured(
        psnr=float(np.mean([psnr_of(max(error, 1e-10)) for error in errors])),
        distance=gelbrich_distance_squared(_squares(images), _squares(originals)),
        spectrum=float(log_spectral_distance(images, originals)),
        grid=float(grid_power(images)),
    )


def _residual(originals: Sequence[Tensor], moved: Sequence[Tensor], lost: Sequence[Tensor]) -> float:
    errors = [o - y for o, y in zip(originals, moved, strict=True)]
    product = sum(float((r.double() * e).sum()) for r, e in zip(lost, errors, strict=True))
    power = sum(float(r.double().square().sum()) for r in lost)
    error = sum(float(e.double().square().sum()) for e in errors)
    if product <= 0 or power <= _ROUNDING * sum(r.numel() for r in lost):
        return 0.0
    weight = _CAUTION * min(product / power, 1.0)
    gain = (2 * weight * product - weight**2 * power) / error
    return weight if gain >= _WORTH_ADDING else 0.0


def _unit(pixels: Pixels) -> Tensor:
    """(H, W, 3) float32 in [0, 1]."""
    return unit_pixels(pixels, torch.device("cpu"))[0].permute(1, 2, 0)


def _like(decoded: Tensor, x: Tensor) -> Tensor:
    return decoded[0, :, : x.shape[0], : x.shape[1]].permute(1, 2, 0).cpu()


def _bytes(x: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = (x * 255).round().to(torch.uint8).numpy()
    return found


def _squares(images: Sequence[NDArray[np.uint8]]) -> GaussianStatistics:
    found = PixelFeatures().statistics(images, None)
    return GaussianStatistics.total([one for one in found if isinstance(one, GaussianStatistics)])
