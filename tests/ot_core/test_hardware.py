"""What a process computes on is its own, and float32 means float32 while it computes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ot_core import hardware
from ot_core.hardware import chosen_device, computing_on, taken_index

_TAKE = """
import sys
from pathlib import Path
from ot_core.hardware import taken_index
print(taken_index(["one", "two", "three"], Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


class _Worker:
    """A process that takes one of three things, and keeps it until it is told to end."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", _TAKE, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.taken = int(self.process.stdout.readline())

    def end(self, *, killed: bool = False) -> None:
        if killed:
            self.process.kill()
        self.process.communicate("")


def test_each_process_takes_a_device_of_its_own_and_loses_it_when_it_ends(tmp_path):
    workers = [_Worker(tmp_path) for _ in range(3)]
    try:
        assert [worker.taken for worker in workers] == [0, 1, 2]
        workers[1].end(killed=True)
        workers[1] = _Worker(tmp_path)
        assert workers[1].taken == 1
        more = [_Worker(tmp_path) for _ in range(3)]  # than there are devices: each is shared by two
        workers += more
        assert [worker.taken for worker in more] == [0, 1, 2]
    finally:
        for worker in workers:
            worker.end()
    assert taken_index(["one", "two", "three"], tmp_path) == 0


@pytest.fixture
def rough_products() -> Iterator[None]:
    """The process lets products of float32 matrices be rounded to bfloat16, where the CPU can."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


def test_float32_is_exact_inside_and_as_the_process_has_it_outside(rough_products):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    true = (a.double() @ b.double()).float()
    outside = a @ b
    with computing_on("cpu"):
        inside = a @ b
        with computing_on("cpu"):
            assert torch.equal(a @ b, inside)
        assert torch.equal(a @ b, inside)
    torch.testing.assert_close(inside, true, rtol=1e-5, atol=1e-4)
    assert torch.equal(a @ b, outside)
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    if torch.equal(outside, inside):
        pytest.skip("this CPU multiplies float32 exactly whatever it is allowed")


def test_float32_stays_exact_until_the_last_thread_is_done(rough_products):
    inside, may_end = threading.Barrier(2), threading.Event()

    def work() -> None:
        with computing_on("cpu"):
            inside.wait()
            may_end.wait()

    thread = threading.Thread(target=work)
    thread.start()
    with computing_on("cpu"):
        inside.wait()
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    may_end.set()
    thread.join()
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"


def test_what_reads_torchs_older_switches_inside_gets_an_answer_and_finds_them_again_afterwards():
    cudnn, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with computing_on("cpu"):
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cudnn.allow_tf32 == cudnn
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision(products)


def test_threads_of_a_process_share_its_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Of two, whose names stand in for them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def properties(index: int) -> SimpleNamespace:
        time.sleep(0.01)  # lets the other thread come in
        return SimpleNamespace(uuid=f"{tmp_path.name}-{index}")

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    hardware._own_gpu.cache_clear()
    try:
        with ThreadPoolExecutor(4) as threads:
            chosen = list(threads.map(lambda _: chosen_device("cuda"), range(4)))
    finally:
        hardware._own_gpu.cache_clear()
    assert chosen == ["cuda:0"] * 4
    assert len(list(tmp_path.rglob("*.0"))) == 1


def test_an_accelerator_takes_one_thread_at_a_time():
    """torch's device without data stands in for one."""
    most, now, lock, start = [0], [0], threading.Lock(), threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(50):
            with computing_on("meta"), computing_on("meta:0"):
                with lock:
                    now[0] += 1
                    most[0] = max(most[0], now[0])
                with lock:
                    now[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
