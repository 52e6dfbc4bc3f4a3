"""Restorers as users may bring them, good and bad; each is a factory, named as `tests.pipelines.restorers:NAME`."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor, nn

Pixels = NDArray[np.uint8]


def _median(pixels: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.MedianFilter(3)))


def median():
    return _median


def refuses_grey():
    def restore(pixels: Pixels) -> Pixels:
        if pixels.shape[:2] != (64, 64) and (pixels[:, :, :1] == pixels).all():
            raise ValueError("too dull")
        return pixels

    return restore


class _Nearest(nn.Module):
    scale = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def wrong_scale():
    return _Nearest()


class _Blank(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, torch.nan)


def not_a_number():
    return _Blank()


def fails():
    def restore(pixels: Pixels) -> Pixels:
        raise RuntimeError("no image for me")

    return restore


def cuts():
    return lambda pixels: pixels[:-1]


def only_square():
    def restore(pixels: Pixels) -> Pixels:
        if pixels.shape[0] != pixels.shape[1]:
            raise ValueError("not square")
        return pixels

    return restore


def only_large():
    def restore(pixels: Pixels) -> Pixels:
        if max(pixels.shape) < 64:
            raise ValueError("too small for me")
        return pixels

    return restore
