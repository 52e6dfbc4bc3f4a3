"""Which device a process computes on, how much of what it takes at once, and in what arithmetic."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import platform
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from ot_core.choices import AUTO_DEVICE
from ot_core.errors import UserError

#: What torch computes float32 in: where a flag lets it be less, matrix products and convolutions lose 13 bits.
_IEEE: Final = "ieee"


def chosen_device(wanted: str | None = None) -> str:
    """The torch device of a name; the one place that asks which ones this process has.

    On a machine with several GPUs each process keeps to one of its own, as long as there are enough (`_own_gpu`).

    Args:
        wanted: of `ot_core.choices.DEVICES`, or another one of torch's, such as "cuda:1"; None is "auto".

    Raises:
        UserError: if this process has no such device.
    """
    if wanted is None or wanted == AUTO_DEVICE:
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    kind = wanted.partition(":")[0]
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not has.get(kind, True):
        raise UserError(
            f"device {wanted}: torch {torch.__version__} finds none on {platform.node() or 'this machine'}; give this "
            "worker one, with its driver, or choose another device"
        )
    if wanted != "cuda":
        return wanted
    with _choosing:  # the cache alone would let two threads take one each
        return _own_gpu(os.getpid())


_choosing = threading.Lock()


@functools.cache
def _own_gpu(process: int) -> str:
    """The GPU of a process, which is this one: a fork must not go on with its parent's."""
    count = torch.cuda.device_count()
    if count < 2:
        return "cuda"
    names = [str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]
    return f"cuda:{taken_index(names)}"


def taken_index(names: Sequence[str], folder: Path | None = None) -> int:
    """Takes the first thing that no other process of this machine has taken, until this process ends.

    With more processes than things each is shared by as many others, give or take one.

    Args:
        names: of the things, the same in every process.
        folder: of the lock files; default one of this user's in the folder for temporary files.

    Returns:
        Which one.
    """
    import fcntl  # noqa: PLC0415 - not there on Windows, where nothing else is amiss

    folder = folder or Path(tempfile.gettempdir()) / f"dot-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for shared in itertools.count():
        for index, name in enumerate(names):
            lock = os.open(folder / f"{name}.{shared}", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                return index  # the system lets the lock go when the process ends, however it does
    raise AssertionError("counting doesn't end")


def default_precision(device: str) -> str:
    """bfloat16 where the device computes in it by itself; float16 on GPUs whose tensor cores have that alone."""
    if device.startswith("cuda"):
        generation, _ = torch.cuda.get_device_capability(device)
        return "bfloat16" if generation >= 8 else "float16" if generation >= 7 else "float32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bfloat16" if device == "cpu" and native() else "float32"


def default_tile_pixels(device: str) -> int:
    """Pixels beyond which an image is done in tiles: what fits in 2 GB on a CPU, and in a few on a GPU."""
    return 2**20 if device == "cpu" else 2**22


def default_batch_pixels(device: str) -> int:
    """Pixels in a batch: what a GPU works on at once, or what the cores of a CPU take one by one."""
    return 2**21 if device == "cpu" else 2**22


@contextlib.contextmanager
def computing_on(device: torch.device | str) -> Iterator[None]:
    """A turn on a device: what is computed in this block has an accelerator to itself, and float32 means float32.

    A thread may begin a turn within its own. The cores of a CPU are shared out by threads, and need no turns.
    Outside of such blocks torch's arithmetic stays as the process has it: by default it lets NVIDIA's convolutions, but
    not its matrix products, round float32 to ten bits.
    """
    device = torch.device(device)
    turn = contextlib.nullcontext() if device.type == "cpu" else _turn(device.type, device.index or 0)
    with turn, _ieee_float32:
        yield


@functools.cache
def _turn(kind: str, index: int) -> threading.RLock:
    """The same for "cuda" and "cuda:0"."""
    return threading.RLock()


class _IeeeFloat32:
    """IEEE arithmetic in float32 as long as any thread is in such a block; the flags belong to the process."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, list[str]()
        self._older: tuple[bool, str] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = [backend.fp32_precision for backend in _backends()]
                self._older = _older_settings()
                if self._older is not None:  # where they contradict the newer ones, reading them is an error
                    _set_older(False, "highest")
                for backend in _backends():
                    backend.fp32_precision = _IEEE
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                if self._older is not None:
                    _set_older(*self._older)
                for backend, before in zip(_backends(), self._before, strict=True):
                    backend.fp32_precision = before


def _older_settings() -> tuple[bool, str] | None:
    """Torch's older switches for the same; None where the process has set both kinds, and they can't be read."""
    try:
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _set_older(convolutions: bool, products: str) -> None:
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)


def _backends() -> tuple[Any, ...]:
    backends: Any = torch.backends  # whose types lack some of them
    return (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
    )


_ieee_float32 = _IeeeFloat32()
