"""Errors that break an accelerator for a whole process are told from those of one image."""

from __future__ import annotations

import pytest
import torch

from ot_core import Cause, ImageError, UserError
from ot_core.device import DeviceLostError, is_lost, is_out_of_memory, raise_if_lost
from ot_core.engine import Engine
from ot_core.errors import as_image_error
from ot_core.tiles import SMALLEST_TILE_PIXELS

LOST = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: misaligned address"),
    RuntimeError("CUDA error: an illegal instruction was encountered"),
    RuntimeError("CUDA error: the launch timed out and was terminated"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: hardware stack error"),
    RuntimeError("CUDA error: unknown error"),
    RuntimeError("CUDA driver error: context is destroyed"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasCreate(handle)`"),
    RuntimeError("cuFFT error: CUFFT_EXEC_FAILED"),
    RuntimeError("NVRM: Xid (PCI:0000:00:04): 79, GPU has fallen off the bus"),
    RuntimeError("HIP error: an illegal memory access was encountered"),
    RuntimeError("INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"),
    RuntimeError("level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)"),
    RuntimeError("MPS backend: command buffer exited with error status"),
    torch.AcceleratorError("something that no list has"),
    DeviceLostError("told before"),
]
NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]
ORDINARY = [
    *NO_MEMORY,
    RuntimeError("shape '[2, 3]' is invalid for input of size 5"),
    RuntimeError("Given groups=1, weight of size [4, 3, 3, 3], expected input[1, 4, 9, 9] to have 3 channels"),
    ValueError("CUDA error: an illegal memory access was encountered"),  # nobody's but a user's own
    FileNotFoundError("/photos/cuda error: device-side assert/xid.png"),
    ImageError(Cause.DAMAGED, "CUDA error: device-side assert triggered"),
]


def raised(error: Exception, suppressed: bool) -> Exception:
    """A UserError, raised while an ImageError was handled that came from the error."""
    try:
        try:
            try:
                raise error
            except Exception as inner:
                raise ImageError(Cause.UNSUPPORTED, "inner") from inner
        except ImageError as middle:
            if suppressed:
                raise UserError("vae x: can't be loaded") from None
            raise UserError("vae x: can't be loaded") from middle
    except UserError as outer:
        return outer


@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[:60])
class TestLost:
    def test_is_told(self, error: Exception):
        assert is_lost(error)
        with pytest.raises(DeviceLostError):
            raise_if_lost(error)

    @pytest.mark.parametrize("suppressed", [False, True])
    def test_is_told_through_the_errors_that_it_was_wrapped_in(self, error: Exception, suppressed: bool):
        wrapped = raised(error, suppressed)
        assert isinstance(wrapped, UserError)
        assert is_lost(wrapped)

    def test_becomes_no_row_of_the_failures(self, error: Exception):
        with pytest.raises(DeviceLostError):
            as_image_error(error)

    def test_ends_a_batch_at_once_instead_of_being_met_with_each_image(self, error: Exception):
        calls = []

        def fails(images: list[int], max_pixels: int) -> list[int]:
            calls.append(len(images))
            raise error

        with pytest.raises(DeviceLostError):
            list(Engine("meta", 4096).over_images([1, 2, 3, 4], lambda _: (16, 16), fails))
        assert calls == [4]


@pytest.mark.parametrize("error", ORDINARY, ids=lambda error: f"{type(error).__name__} {error}"[:60])
def test_ordinary_errors_stay_those_of_one_image(error: Exception):
    assert not is_lost(error)
    raise_if_lost(error)
    assert isinstance(as_image_error(error), ImageError)

    def fails(images: list[int], max_pixels: int) -> list[int]:
        if 3 in images:
            raise error
        return images

    outcomes = dict(Engine("meta", 4096).over_images([1, 2, 3, 4], lambda _: (16, 16), fails))
    assert [outcomes[image] for image in (1, 2, 4)] == [1, 2, 4]
    assert isinstance(outcomes[3], Exception)


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_lack_of_memory_is_met_with_less_at_once(error: Exception):
    assert is_out_of_memory(error)
    tried = []

    def fails(images: list[int], max_pixels: int) -> list[int]:
        tried.append(max_pixels)
        if max_pixels > SMALLEST_TILE_PIXELS:
            raise error
        return images

    engine = Engine("meta", 2**22)
    assert list(engine.over_images([1], lambda _: (1024, 1024), fails)) == [(1, 1)]
    assert len(tried) > 1
    assert list(engine.over_images([2], lambda _: (1024, 1024), fails)) == [(2, 2)]
    assert tried[-1] == tried[-2] == SMALLEST_TILE_PIXELS, "what was too much was tried again"


@pytest.mark.parametrize(("poisonous", "together"), [(40, 16), (3, 8)])
def test_one_image_that_lacks_memory_says_nothing_of_those_of_which_more_has_worked(poisonous: int, together: int):
    sizes = []

    def fails(images: list[int], max_pixels: int) -> list[int]:
        sizes.append(len(images))
        if poisonous in images:
            raise torch.OutOfMemoryError("no")
        return images

    engine = Engine("meta", 2**20)
    for start in (0, 32):  # batches of 16 images of 256 x 256
        found = dict(engine.over_images(list(range(start, start + 32)), lambda _: (256, 256), fails))
        assert {image for image, result in found.items() if isinstance(result, Exception)} <= {poisonous}
    sizes.clear()
    assert len(dict(engine.over_images(list(range(64, 96)), lambda _: (256, 256), fails))) == 32
    assert sizes == [together] * (32 // together)


def test_an_error_of_a_library_is_no_loss_where_the_device_still_answers(monkeypatch: pytest.MonkeyPatch):
    """Here the CPU stands in for the accelerator."""
    error = RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")
    assert is_lost(error)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
    assert not is_lost(error)
    assert is_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_what_a_user_is_told_names_the_error_in_one_line():
    with pytest.raises(DeviceLostError, match=r"^the device is lost .*illegal memory access[^\n]*$"):
        raise_if_lost(raised(LOST[0], suppressed=True))
