"""A device's name, and what an error says of it: whether it lacks memory, or is lost to this process.

Some errors of an accelerator break its context: whatever the process asks of it afterwards fails, too. So they concern
no single image, and only a new process can go on.
"""

from __future__ import annotations

import functools
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_OF_DEVICE: Final = re.compile(
    r"(?<![a-z])(cuda|cudnn|cublas|cufft|cusolver|cusparse|nccl|nvrm|nvidia|gpu|hip|rocm|rocblas|miopen|mps|metal|xpu|sycl"
    r"|level_zero|ur_result)",
    re.IGNORECASE,
)
_NO_MEMORY: Final = re.compile(
    r"out of memory|can't allocate memory|alloc(ation)?_failed|out_of_(device|host)_memory|out_of_resources|bad_alloc"
    r"|not_initialized.*cublascreate|unable to find an engine to execute|failed to allocate",
    re.IGNORECASE,
)
#: After which a context answers nothing any more.
_STICKY: Final = re.compile(
    r"illegal.(memory.access|address|instruction)|device-side assert|misaligned.address|invalid.(pc|program.counter)"
    r"|launch.(failure|failed|timed.out|timeout)|invalid.address.space|hardware.stack.error|uncorrectable|ecc.error"
    r"|nvlink.error|device.(is.)?lost|gpu is lost|fallen off the bus|context.is.destroyed|\bxid\b"
    r"|command buffer (execution|exited|failed)|submissions? ?ignored",
    re.IGNORECASE,
)
#: Errors of libraries, after which it may or may not.
_OF_LIBRARY: Final = re.compile(
    r"status_(execution_failed|internal_error|mapping_error|not_initialized)|cufft_(exec_failed|internal_error)"
    r"|(cuda|hip|mps|xpu) error|failure \d+",
    re.IGNORECASE,
)

#: Where Linux tells the version of NVIDIA's driver.
_DRIVER: Final = Path("/sys/module/nvidia/version")


@functools.cache
def described(device: str) -> str:
    """A torch device in words, with a GPU's driver where the system tells it.

    For example `cpu (x86_64, 8 threads)` or `cuda (NVIDIA L4, driver 550.54, CUDA 12.8)`.
    """
    torch = sys.modules["torch"]
    if not device.startswith("cuda"):
        return f"{device} ({platform.machine()}, {torch.get_num_threads()} threads)" if device == "cpu" else device
    try:
        told = [torch.cuda.get_device_name(device)]
    except (RuntimeError, AssertionError):  # it isn't there, which what computes on it tells
        return device
    with suppress(OSError):
        told.append(f"driver {_DRIVER.read_text().strip()}")
    return f"{device} ({', '.join([*told, f'CUDA {torch.version.cuda}'])})"


class DeviceLostError(RuntimeError):
    """The accelerator doesn't work for this process any more; a new process may have more luck."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less at once might work."""
    return (
        isinstance(error, (MemoryError, *_torch_errors("OutOfMemoryError")))
        or _NO_MEMORY.search(str(error)) is not None
    )


def is_lost(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that the device is lost to this process."""
    return any(_says_lost(one) for one in _chain(error))


def raise_if_lost(error: BaseException) -> None:
    """To be called before an error is taken for one of a single image.

    Raises:
        DeviceLostError: from the error, if `is_lost`.
    """
    if isinstance(error, DeviceLostError):
        raise error
    if is_lost(error):
        said = next(" ".join(str(one).split())[:300] for one in _chain(error) if _says_lost(one))
        message = f"the device is lost to this process, and needs a new one: {type(error).__name__}: {said}"
        raise DeviceLostError(message) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and what was being handled meanwhile."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__context__, one.__cause__]


def _says_lost(error: BaseException) -> bool:
    if isinstance(error, DeviceLostError):
        return True
    if isinstance(error, OSError | UnicodeError) or is_out_of_memory(error):
        return False
    text = str(error)
    of_device = isinstance(error, _torch_errors("AcceleratorError"))
    if not of_device and not (isinstance(error, RuntimeError) or type(error).__module__.startswith(_RUNTIMES)):
        return False
    if _STICKY.search(text) and (of_device or _OF_DEVICE.search(text)):
        return True
    return (of_device or bool(_OF_LIBRARY.search(text) and _OF_DEVICE.search(text))) and not _answers()


#: Packages whose errors of a device aren't RuntimeErrors.
_RUNTIMES: Final = ("onnxruntime", "torch", "tensorflow", "jax", "cupy", "triton")


def _torch_errors(name: str) -> tuple[type[Exception], ...]:
    """An error's class, where torch was imported and has it; nothing here needs to wait for torch."""
    found = getattr(sys.modules.get("torch"), name, None)
    return (found,) if isinstance(found, type) else ()


def _answers() -> bool:
    """Whether there is an accelerator that still computes."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    try:
        if not torch.accelerator.is_available():
            return False
        used = [index for index in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(index)]
        # Those GPUs that this process computes on: of several, one that it doesn't would answer for a lost one.
        devices = [f"cuda:{index}" for index in used] or [torch.accelerator.current_accelerator()]
        return all(torch.ones(2, device=device).sum().item() == 2 for device in devices)
    except Exception as error:
        return is_out_of_memory(error)
