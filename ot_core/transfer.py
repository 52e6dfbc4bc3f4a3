"""Pixels on their way to a device and back: (H, W, 3) arrays here, tensors there.

A GPU takes them beside what it computes: through pinned memory, on a stream of their own. They travel as they are,
three bytes a pixel where they are uint8, and are converted where they arrive.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.generic]


def stacked(images: Sequence[Pixels], height: int, width: int) -> Tensor:
    """(B, height, width, 3), uint8 or float32, of images whose right and bottom edges are replicated up to that size.

    Args:
        images: (H, W, 3), uint8 or float32 in [0, 1]; where both occur, the result is float32 in [0, 1].
        height: at least that of each.
        width: likewise.
    """
    shape = (height, width, 3)
    if len(images) == 1 and images[0].shape == shape:
        return torch.from_numpy(np.require(images[0], requirements=["C", "W"]))[None]  # torch wants it so
    exact = any(pixels.dtype != np.uint8 for pixels in images)
    batch = torch.empty((len(images), *shape), dtype=torch.float32 if exact else torch.uint8)
    for place, pixels in zip(batch.numpy(), images, strict=True):
        rows, columns = pixels.shape[:2]
        place[:rows, :columns] = unit_array(pixels) if exact else pixels
        place[:rows, columns:] = place[:rows, columns - 1 : columns]
        place[rows:] = place[rows - 1]
    return batch


def sent(batch: Tensor, device: torch.device) -> Tensor:
    """The same on a device, for whatever computes there from now on."""
    if device.type != "cuda":
        return batch.to(device)
    stream = _own_stream(device, threading.get_ident())
    with torch.cuda.stream(stream):
        there = batch.pin_memory().to(device, non_blocking=True)
    torch.cuda.current_stream(device).wait_stream(stream)
    there.record_stream(torch.cuda.current_stream(device))
    return there


def fetched(tensor: Tensor) -> Callable[[], NDArray[np.generic]]:
    """Begins to fetch a tensor; what is returned waits for it, and gives it as an array.

    Until then the device goes on with other work.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu().numpy
    tensor = tensor.contiguous()
    here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    stream = _own_stream(tensor.device, threading.get_ident())
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        here.copy_(tensor, non_blocking=True)
        arrived = stream.record_event()
    tensor.record_stream(stream)

    def wait() -> NDArray[np.generic]:
        arrived.synchronize()
        return here.numpy()

    return wait


def unit(batch: Tensor) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1] of (B, H, W, 3)."""
    planes = batch.permute(0, 3, 1, 2).float()
    return planes / 255 if batch.dtype == torch.uint8 else planes


def unit_array(pixels: Pixels) -> NDArray[np.float32]:
    """float32 in [0, 1] of the same shape."""
    exact = pixels.astype(np.float32, copy=False)
    return exact / np.float32(255) if pixels.dtype == np.uint8 else exact


def unit_pixels(pixels: Pixels, device: torch.device) -> Tensor:
    """(1, 3, H, W) float32 in [0, 1] on a device, of one image (H, W, 3)."""
    return unit(sent(stacked([pixels], *pixels.shape[:2]), device))


@functools.lru_cache(maxsize=64)
def _own_stream(device: torch.device, thread: int) -> torch.cuda.Stream:
    """A thread's stream: two threads' copies don't wait for each other."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
