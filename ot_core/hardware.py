"""Which device a process computes on, and how much of what it takes at once."""

from __future__ import annotations

import platform

import torch

from ot_core.choices import AUTO_DEVICE
from ot_core.errors import UserError


def chosen_device(wanted: str | None = None) -> str:
    """The torch device of a name; the one place that asks which ones this process has.

    Args:
        wanted: of `ot_core.choices.DEVICES`, or another one of torch's, such as "cuda:1"; None is "auto".

    Raises:
        UserError: if this process has no such device.
    """
    if wanted is None or wanted == AUTO_DEVICE:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = wanted.partition(":")[0]
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not has.get(kind, True):
        raise UserError(
            f"device {wanted}: torch {torch.__version__} finds none on {platform.node() or 'this machine'}; give this "
            "worker one, with its driver, or choose another device"
        )
    return wanted


def default_precision(device: str) -> str:
    """bfloat16 where the device computes in it by itself, else float32."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bfloat16" if device == "cpu" and native() else "float32"


def default_tile_pixels(device: str) -> int:
    """Pixels beyond which an image is done in tiles: what fits in 2 GB on a CPU, and in a few on a GPU."""
    return 2**20 if device == "cpu" else 2**22


def default_batch_pixels(device: str) -> int:
    """Pixels in a batch: what a GPU works on at once, or what the cores of a CPU take one by one."""
    return 2**21 if device == "cpu" else 2**22
