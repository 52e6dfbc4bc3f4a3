"""Threads that use one core each leave the others theirs."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ot_core.engine import threads_of_one_core


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
