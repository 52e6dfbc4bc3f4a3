"""Threads that use one core each leave the others theirs."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ot_core import engine
from ot_core.engine import threads_of_one_core, workers_of


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_of_one_core_leave_all_cores_to_threads_that_begin_later(two_cores):
    both = threading.Barrier(2)

    def cores(_: int) -> int:
        both.wait()  # so that both threads answer
        torch.rand(500, 500) @ torch.rand(500, 500)
        return torch.get_num_threads()

    with threads_of_one_core(2) as threads, ThreadPoolExecutor(1) as later:
        assert list(threads.map(cores, range(2))) == [1, 1]
        assert later.submit(torch.get_num_threads).result() == 2
        assert list(threads.map(cores, range(2))) == [1, 1]
    assert torch.get_num_threads() == 2


def test_threads_that_ask_at_once_get_the_same_workers(two_cores):
    engine._workers_of_cpu.cache_clear()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: workers_of("cpu"), range(8)))
        assert set(threads.map(lambda _: torch.get_num_threads(), range(8))) == {2}
    assert len(set(map(id, found))) == 1


_FORKED = """
import os, torch
from ot_core.engine import Engine
torch.set_num_threads(2)
def work(images, most): return images
def done(): return dict(Engine("cpu", 2**20).over_images([1, 2], lambda _: (8, 8), work))
assert done() == {1: 1, 2: 2}
child = os.fork()
if not child:
    os._exit(0 if done() == {1: 1, 2: 2} else 1)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_fork_has_workers_of_its_own():
    subprocess.run([sys.executable, "-c", _FORKED], check=True, timeout=600)
