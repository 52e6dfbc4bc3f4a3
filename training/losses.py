"""What decoded images are compared with their originals by, in training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.pca_baseline import FACTOR

ROUNDING = (2 / 255) ** 2 / 12  # variance of rounding to 8 bits, pixels being in [-1, 1]


class RandomFeatures(nn.Module):
    """Responses of untrained convolutions at four scales, drawn anew by each ``draw``."""

    WIDTHS = (3, 24, 48, 96, 128)

    def __init__(self) -> None:
        super().__init__()
        pairs = zip(self.WIDTHS[:-1], self.WIDTHS[1:], strict=True)
        self.convs = [nn.Conv2d(a, b, 5 if a == 3 else 3, 1 if a == 3 else 2) for a, b in pairs]
        self.layers = nn.ModuleList(self.convs).requires_grad_(False)

    def draw(self) -> None:
        """New random filters."""
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)
            nn.init.normal_(conv.get_parameter("bias"), 0, 0.1)
        # Most of the first filters ignore flat areas: they see edges and grain, not colour.
        edges = self.convs[0].weight[:18]
        edges -= edges.mean((2, 3), keepdim=True)
        edges *= 4

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to one tensor (B, width, h, w) per scale."""
        features = []
        for conv in self.convs:
            images = F.relu(conv(images))
            features.append(images)
        return features


def texture_gap(features: Tensor, targets: Tensor) -> Tensor:
    """Difference of the features' means, over batch, image and neighbourhood, and of their log variances.

    Both (B, C, h, w). Means are measured in standard deviations of the targets, channel by channel.
    """
    first, second = features.float(), targets.float()
    variance = second.var((0, 2, 3), keepdim=True)
    variance = variance + 1e-3 * variance.mean()
    difference = (first - second) / variance.sqrt()
    neighbourhood = F.avg_pool2d(difference, max(1, difference.shape[-1] // 3))
    means = 2 * difference.mean((0, 2, 3)).square().mean()
    means = means + difference.mean((2, 3)).square().mean() + 0.5 * neighbourhood.square().mean()
    before, after = ((f.var((2, 3)) + 0.1 * variance[..., 0, 0]).log() for f in (first, second))
    return means + 0.1 * (before - after).square().mean()


def spectrum_gap(images: Tensor, originals: Tensor) -> Tensor:
    """Mean squared difference of log power spectra, ring by ring of frequencies; both (B, 3, S, S)."""
    size = images.shape[-1]
    window = torch.hann_window(size, periodic=False)
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    rings = ((rows.square() + columns.square()).sqrt() * size).long().clamp_max(size // 2)
    count = torch.zeros(size // 2 + 1).index_add(0, rings.flatten(), torch.ones(rings.numel()))

    def log_power(pixels: Tensor) -> Tensor:
        centred = (pixels - pixels.mean((2, 3), keepdim=True)) * window[:, None] * window
        power = torch.fft.rfft2(centred).abs().square().mean(1) / window.square().sum() ** 2
        sums = torch.zeros(len(power), len(count)).index_add(1, rings.flatten(), power.flatten(1))
        # Rounding to 8 bits adds as much: what lies below it is never seen.
        return (sums / count + ROUNDING).log()

    return (log_power(images) - log_power(originals))[:, 1:].square().mean()


def grid_share(error: Tensor, window: int = 32) -> Tensor:
    """How much of an error (B, 3, S, S) repeats every eight pixels: 1 for white noise, 16 for a pattern alone.

    Measured in windows of their own, so that a faint weave in a smooth sky counts as a strong one in grass.
    """
    windows = error.unfold(2, window, window // 2).unfold(3, window, window // 2)
    windows = windows - windows.mean((-2, -1), keepdim=True)
    repeats = window // FACTOR
    blocks = windows.reshape(*windows.shape[:-2], repeats, FACTOR, repeats, FACTOR)  # rows, 8, columns, 8
    pattern = blocks.mean((-4, -2))
    return (repeats**2 * pattern.square().mean((-2, -1)) / (windows.square().mean((-2, -1)) + ROUNDING)).mean()


def reconstruction_loss(images: Tensor, originals: Tensor) -> Tensor:
    """Mixture of absolute and squared error; both (B, 3, H, W)."""
    difference = images.float() - originals
    return difference.abs().mean() + 4 * difference.square().mean()


def content_loss(images: Tensor, originals: Tensor) -> Tensor:
    """Absolute error at a quarter of the resolution and, less, of fine detail; both (B, 3, H, W).

    Fine detail counts little because it can't be known from a restored image: asking for it pixel by
    pixel asks for blur. Nor do the means of 16 x 16 squares: which brightness and colour transport
    gives depends on what its few images happened to show, and the decoder shall not try to undo it.
    """
    difference = images.float() - originals
    means = F.interpolate(F.avg_pool2d(difference, 16), scale_factor=16)
    detail = 0.3 * difference.abs().mean() + (difference - means).abs().mean()
    return 0.3 * detail + 0.7 * F.avg_pool2d(difference, 4).abs().mean()
