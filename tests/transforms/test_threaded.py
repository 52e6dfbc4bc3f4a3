"""A DoFn whose work overlaps: in order, counted once, and without an end for what a step that follows does."""

import io
import threading
import time

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to
from PIL import Image

from ot_core.overlap import AHEAD, ByteBudget, Threads
from transforms import ImageRef, metrics, read_images
from transforms.read_images import _ReadImageDoFn
from transforms.threaded import ThreadedDoFn


class _Tenfold(ThreadedDoFn):
    threads, budgets = Threads(4), (ByteBudget(10),)

    def nbytes(self, element):
        return 3

    def work(self, element, shares):
        time.sleep(0.002 if element % 5 == 0 else 0)
        metrics.count("worked")
        return [10 * element] * (element % 3)


def _expected(elements):
    return [10 * element for element in elements for _ in range(element % 3)]


def _values(dofn, elements):
    dofn.start_bundle()
    for element in elements:
        yield from dofn.process(element)
    yield from (output.value for output in dofn.finish_bundle())


def test_outputs_come_in_order_and_metrics_count_once():
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        outputs = pipeline | beam.Create(range(100), reshuffle=False) | beam.ParDo(_Tenfold())
        assert_that(outputs, equal_to(_expected(range(100))))
    counters = pipeline.result.metrics().query()["counters"]
    assert {metric.key.metric.name: metric.result for metric in counters}["worked"] == 100
    assert list(_values(_Tenfold(), range(100))) == _expected(range(100))


def test_an_error_of_the_work_fails_the_bundle_and_the_next_one_has_all_the_bytes():
    class Fails(_Tenfold):
        budgets = (ByteBudget(10),)

        def work(self, element, shares):
            if element == 7 and not failed:
                failed.append(element)
                raise ValueError("seven")
            return super().work(element, shares)

    failed, dofn = [], Fails()
    with pytest.raises(ValueError, match="seven"):
        list(_values(dofn, range(20)))
    assert list(_values(dofn, range(20))) == _expected(range(20))
    dofn.teardown()
    assert Fails.budgets[0]._held == 0


@pytest.mark.parametrize("held_by_results", [True, False])
def test_a_step_that_fails_takes_nothing_from_other_bundles(held_by_results):
    """Of one process, at once: half of the bundles are left by what takes their results."""

    class Slow(_Tenfold):
        threads, budgets = Threads(4), (ByteBudget(10),)

        def nbytes(self, element):
            return 0 if held_by_results else 3

        def work(self, element, shares):
            shares[0].take(3)
            return super().work(element, shares)

    def bundle(number):
        outputs = _values(Slow(), range(200))
        if number % 2:
            next(outputs)  # and forgets them
        else:
            results[number] = list(outputs)

    results = {}
    bundles = [threading.Thread(target=bundle, args=(number,), daemon=True) for number in range(6)]
    for thread in bundles:
        thread.start()
    for thread in bundles:
        thread.join()
    assert results == dict.fromkeys((0, 2, 4), _expected(range(200)))
    _wait_until(lambda: Slow.budgets[0]._held == 0)


def test_no_more_elements_wait_than_are_told():
    class Waits(ThreadedDoFn):
        threads = Threads(1)

        def work(self, element, shares):
            if element == 0:
                gate.wait()
            return [element]

    gate, given, dofn = threading.Event(), [], Waits()
    bundle = threading.Thread(target=lambda: given.extend(_values(dofn, elements)), daemon=True)
    taken = []
    elements = (taken.append(element) or element for element in range(2 * AHEAD))
    bundle.start()
    _wait_until(lambda: len(taken) > AHEAD)
    time.sleep(0.1)
    assert len(taken) == AHEAD + 1
    gate.set()
    bundle.join()
    assert given == list(range(2 * AHEAD))


@pytest.fixture
def slow_store(tmp_path, monkeypatch):
    """References to small images of which each takes 50 ms to read, and the keys that were read so far."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
    data, read = buffer.getvalue(), []

    def slow(url, *args, **kwargs):
        time.sleep(_SECONDS)
        read.append(url)
        return data

    monkeypatch.setattr(read_images.shards, "read_bytes", slow)
    return [ImageRef(f"{index}", f"{tmp_path}/{index}.png") for index in range(10 * _BATCH)], read


_SECONDS, _BATCH = 0.05, 64


def test_a_batch_is_read_while_the_model_works_on_another(slow_store):
    """However long that takes: so it is busy if it takes no less for a batch than reading it (benchmarks/stand_in)."""
    refs, read = slow_store
    outputs = _values(_ReadImageDoFn(10**6), refs)
    for taken in range(_BATCH, len(refs), _BATCH):
        assert len([next(outputs) for _ in range(_BATCH)]) == _BATCH
        _wait_until(lambda so_far=taken: len(read) >= so_far + _BATCH)
    assert len(list(outputs)) == _BATCH


def _wait_until(condition):
    """However long that takes on this machine; the tests' own limit of time is against one that never comes."""
    while not condition():
        time.sleep(0.005)
