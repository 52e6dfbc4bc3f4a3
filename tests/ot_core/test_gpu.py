"""What only a GPU can show: the same results as the CPU's, in every precision, and errors that it really raises."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ot_core import GaussianStatistics, LatentTransport, TransportMap, load_autoencoder
from ot_core.device import is_lost, is_out_of_memory
from ot_core.engine import Engine
from ot_core.hardware import chosen_device, computing_on, default_precision
from ot_core.pixel_transport import transport_pixels
from ot_core.transfer import fetched, sent, stacked, unit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]
ALPHAS = (0.0, 0.5)


@pytest.fixture(scope="module")
def transport_map() -> TransportMap:
    rng = np.random.default_rng(0)
    source, target = (GaussianStatistics.of(scale * rng.standard_normal((4000, 32 * 9))) for scale in (1.0, 1.3))
    return TransportMap.fit(source, target)


def _transported(
    images: list[NDArray[np.uint8]], transport_map: TransportMap, device: str, precision: str, compiled: bool = False
) -> NDArray[np.uint8]:
    autoencoder = load_autoencoder(None, device, precision, compiled).with_margin(8)
    transport = LatentTransport(transport_map, 3, device)
    done = transport_pixels(images, autoencoder, transport, ALPHAS, 2**22, residuals=[0.25] * len(images))
    return np.stack([np.stack(result) for result in done.results])


@pytest.fixture
def images(photo) -> list[NDArray[np.uint8]]:
    return [photo(120, 88, seed=seed) for seed in range(4)]


def test_float32_agrees_with_the_cpu(images, transport_map):
    here, there = (_transported(images, transport_map, device, "float32") for device in ("cpu", chosen_device("cuda")))
    difference = np.abs(here.astype(int) - there)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_less_than_float32_is_near_it(images, transport_map, precision):
    device = chosen_device("cuda")
    exact, rough = (_transported(images, transport_map, device, one) for one in ("float32", precision))
    error = np.square((exact.astype(float) - rough) / 255).mean()
    assert 0 < error < 10**-3.5  # 35 dB


def test_float32_is_ieee_although_the_process_lets_convolutions_be_less(transport_map):
    """The map's interior is a convolution, its border products of matrices: both are as exact."""
    device = chosen_device("cuda")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 32, 24, 20, generator=generator)
    exact = LatentTransport(transport_map, 3, "cpu", torch.float64)(latents.double())
    moved = LatentTransport(transport_map, 3, device)(latents.to(device)).cpu().double()
    error = (moved - exact).abs() / exact.std()
    border = torch.ones(24, 20, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert error[..., border].max() < 1e-5
    assert error[..., ~border].max() < 1e-5


def test_the_default_precision_is_one_that_the_device_computes_in():
    device = chosen_device("cuda")
    precision = default_precision(device)
    assert precision == "bfloat16" or not torch.cuda.is_bf16_supported(including_emulation=False)


def test_compiling_changes_nothing_that_is_seen_and_loads_the_model_once(images, transport_map):
    device = chosen_device("cuda")
    eager, compiled = (_transported(images, transport_map, device, "float32", flag) for flag in (False, True))
    assert np.abs(eager.astype(int) - compiled).max() <= 1
    one, other = (load_autoencoder(None, device, "float32", flag) for flag in (False, True))
    assert one._module is other._module


def test_a_batch_that_does_not_fit_is_done_in_parts():
    device = torch.device(chosen_device("cuda"))
    free, _ = torch.cuda.mem_get_info(device)
    tried = []

    def hungry(images: list[int], most_pixels: int) -> list[int]:
        tried.append(len(images))
        with computing_on(device):
            return torch.zeros(len(images) * (free // 3), dtype=torch.uint8, device=device)[: len(images)].tolist()

    engine = Engine(device, 2**22)
    found = dict(engine.over_images(list(range(8)), lambda _: (512, 512), hungry))
    assert found == dict.fromkeys(range(8), 0)
    assert max(tried) == 8
    tried.clear()
    assert len(dict(engine.over_images(list(range(8)), lambda _: (512, 512), hungry))) == 8
    assert max(tried) < 8, "what was too much was tried again"


def test_pixels_come_back_as_they_went(photo):
    device = torch.device(chosen_device("cuda"))
    images = [photo(64, 48, seed=seed) for seed in range(5)]
    there = sent(stacked(images, 64, 48), device)
    assert there.device.type == "cuda"
    assert np.array_equal(fetched(there)(), np.stack(images))
    assert torch.equal(unit(there).cpu(), unit(stacked(images, 64, 48)))


_ASSERT_ON_DEVICE = """
import torch
from ot_core.device import is_lost, is_out_of_memory
try:
    torch.zeros(3, device="cuda")[torch.tensor([7], device="cuda")].cpu()
except Exception as error:
    assert is_lost(error), error
    assert not is_out_of_memory(error)
    print("lost")
"""


def test_an_error_that_breaks_the_context_is_told():
    done = subprocess.run([sys.executable, "-c", _ASSERT_ON_DEVICE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "lost"


def test_lack_of_memory_is_told():
    with pytest.raises(torch.OutOfMemoryError) as raised:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(raised.value)
    assert not is_lost(raised.value)
