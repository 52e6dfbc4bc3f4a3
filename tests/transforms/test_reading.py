"""Reading ahead of the model and writing behind it, bounded by bytes, with every metric counted."""

import io
import threading
import time

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to
from PIL import Image

from ot_core import DecodedImage, storage
from ot_core.layout import OutputLayout
from transforms import ImageRef, ReadImages, metrics, reading, writing
from transforms.elements import ImageRecord, LoadedImage, TransportedImage
from transforms.reading import _ReadImageDoFn
from transforms.writing import _WriteImageDoFn


@pytest.fixture
def refs(tmp_path):
    for index in range(40):
        buffer = io.BytesIO()
        Image.fromarray(np.full((20, 30 + index, 3), index, np.uint8)).save(buffer, "PNG")
        (tmp_path / f"{index:02d}.png").write_bytes(buffer.getvalue() if index % 10 else b"")
    return [ImageRef(f"{index:02d}", str(tmp_path / f"{index:02d}.png")) for index in range(40)]


def _values(dofn, elements):
    dofn.start_bundle()
    for element in elements:
        for output in dofn.process(element):
            yield getattr(output, "value", output)
    for output in dofn.finish_bundle():
        value = getattr(output, "value", output)
        yield getattr(value, "value", value)
    dofn.teardown()


def test_images_come_in_order_and_each_bad_one_is_one_failure(refs):
    outputs = list(_values(_ReadImageDoFn(10**6), refs))
    keys = [output.ref.key if isinstance(output, LoadedImage) else output.key for output in outputs]
    assert keys == [ref.key for ref in refs]
    assert [output.key for output in outputs if not isinstance(output, LoadedImage)] == ["00", "10", "20", "30"]


def test_reads_run_ahead_while_an_image_is_worked_on(refs, monkeypatch):
    started, whole = [], storage.read_bytes
    monkeypatch.setattr(reading.shards, "read_bytes", lambda url, **kwargs: started.append(url) or whole(url, **kwargs))
    outputs = _values(_ReadImageDoFn(10**6), refs)
    next(outputs)
    deadline = time.monotonic() + 5
    while len(started) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)  # this is the model at work
    list(outputs)
    assert len(started) == len(refs)


@pytest.mark.parametrize("budget", [1, 20 * 50 * 3 * 3])
def test_decoded_pixels_that_wait_stay_within_the_budget(refs, monkeypatch, budget):
    monkeypatch.setattr(reading, "_BYTES_AHEAD", budget)
    lock, decoded, taken, most = threading.Lock(), [0], [0], [0]
    decode = reading.decode_image

    def counted(data, max_pixels, reserve):
        image = decode(data, max_pixels, reserve)
        with lock:
            decoded[0] += image.nbytes
            most[0] = max(most[0], decoded[0] - taken[0])
        return image

    monkeypatch.setattr(reading, "decode_image", counted)
    for output in _values(_ReadImageDoFn(10**6), refs):
        time.sleep(0.002)
        if isinstance(output, LoadedImage):
            with lock:
                taken[0] += output.image.nbytes
    assert decoded == taken
    # The image that is being worked on was counted out at the end of the loop's body, a moment before it is given back.
    assert most[0] <= max(budget, 20 * 69 * 3) + 20 * 69 * 3


def test_a_bundle_that_fails_half_way_leaves_no_thread_waiting(refs, monkeypatch):
    monkeypatch.setattr(reading, "_BYTES_AHEAD", 1)
    dofn = _ReadImageDoFn(10**6)
    dofn.start_bundle()
    outputs = (output for ref in refs for output in dofn.process(ref))
    next(output for output in outputs if isinstance(output, LoadedImage))
    outputs.close()  # what an exception of a step that follows does
    before = threading.active_count()
    finished = threading.Thread(target=dofn.teardown, daemon=True)
    finished.start()
    finished.join(10)
    assert not finished.is_alive()
    assert threading.active_count() < before


def test_metrics_of_the_threads_reach_beam(refs):
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        images_, failures = pipeline | beam.Create(refs) | ReadImages()
        assert_that(images_ | "Images" >> beam.combiners.Count.Globally(), equal_to([36]))
        assert_that(failures | "Failed" >> beam.combiners.Count.Globally(), equal_to([4]), label="Failures")
    found = {metric.key.metric.name: metric.result for metric in pipeline.result.metrics().query()["counters"]}
    assert found[metrics.IMAGES_READ] == 40
    timed = {metric.key.metric.name: metric.result for metric in pipeline.result.metrics().query()["distributions"]}
    assert timed["read_milliseconds"].count == timed["decode_image_milliseconds"].count == 40


def _transported(count):
    for index in range(count):
        pixels = np.full((50, 50, 3), index, np.uint8)
        loaded = LoadedImage(ImageRef(f"{index}", "u"), DecodedImage(pixels), 0.0)
        yield TransportedImage(loaded, (pixels,), 0.0)


def test_writes_run_behind_and_within_their_budget(tmp_path, monkeypatch):
    size = 2 * 50 * 50 * 3
    monkeypatch.setattr(writing, "_BYTES_BEHIND", 3 * size)
    lock, now, most, write = threading.Lock(), [0], [0], storage.write_bytes

    def slow(url, data):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        write(url, data)
        with lock:
            now[0] -= 1

    monkeypatch.setattr(storage, "write_bytes", slow)
    outputs = list(_values(_WriteImageDoFn(OutputLayout.of(str(tmp_path), [0.0]), 95), _transported(30)))
    assert all(isinstance(output, ImageRecord) for output in outputs)
    assert [output.key for output in outputs] == [f"{index}" for index in range(30)]
    assert len(list((tmp_path / "images").iterdir())) == 30
    assert 1 < most[0] <= 3


def test_a_write_that_fails_is_one_failure(tmp_path, monkeypatch):
    write = storage.write_bytes

    def refuse(url, data):
        if url.endswith("/7.png"):
            raise PermissionError("not yours")
        write(url, data)

    monkeypatch.setattr(storage, "write_bytes", refuse)
    outputs = list(_values(_WriteImageDoFn(OutputLayout.of(str(tmp_path), [0.0]), 95), _transported(12)))
    assert [(o.key, o.error_type) for o in outputs if not isinstance(o, ImageRecord)] == [("7", "permission_denied")]
    assert len(outputs) == 12
