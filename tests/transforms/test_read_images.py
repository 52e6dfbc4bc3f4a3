"""Reading ahead of the model and writing behind it, bounded by bytes, with every metric counted."""

import io
import os
import socket
import tarfile
import threading
import time
import tracemalloc

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to
from PIL import Image

from ot_core import DecodedImage, listing, storage
from ot_core.layout import OutputLayout
from ot_core.overlap import ByteBudget
from tests.web import web_server
from transforms import ImageRef, ReadImages, metrics, read_images
from transforms.elements import ImageRecord, LoadedImage, TransportedImage
from transforms.read_images import _ReadImageDoFn
from transforms.write_images import _WriteImageDoFn


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


def test_reads_run_ahead_of_the_image_that_is_worked_on(refs, monkeypatch):
    started, whole = [], storage.read_bytes

    def read(url, *args, **kwargs):
        started.append(url)
        while url == refs[1].uri and len(started) < 10:
            time.sleep(0.005)
        return whole(url, *args, **kwargs)

    monkeypatch.setattr(read_images.shards, "read_bytes", read)
    outputs = _values(_ReadImageDoFn(10**6), refs)
    taken = [next(outputs), next(outputs)]
    assert len(started) >= 10
    assert len([*taken, *outputs]) == len(refs) == len(started)


@pytest.mark.parametrize("budget", [1, 20 * 50 * 3 * 3])
def test_decoded_pixels_that_wait_stay_within_the_budget(refs, monkeypatch, budget):
    monkeypatch.setattr(_ReadImageDoFn, "budgets", (ByteBudget(budget), ByteBudget(2**28)))
    lock, decoded, taken, most = threading.Lock(), [0], [0], [0]
    decode = read_images.decode_image

    def counted(data, max_pixels, reserve):
        image = decode(data, max_pixels, reserve)
        with lock:
            decoded[0] += image.nbytes
            most[0] = max(most[0], decoded[0] - taken[0])
        return image

    monkeypatch.setattr(read_images, "decode_image", counted)
    for output in _values(_ReadImageDoFn(10**6), refs):
        time.sleep(0.002)
        if isinstance(output, LoadedImage):
            with lock:
                taken[0] += output.image.nbytes
    assert decoded == taken
    # The image that is being worked on was counted out at the end of the loop's body, a moment before it is given back.
    assert most[0] <= max(budget, 20 * 69 * 3) + 20 * 69 * 3


def test_a_bundle_that_fails_half_way_gives_back_all_and_leaves_no_call_waiting(refs, monkeypatch):
    pixels, called, read = ByteBudget(1), [], read_images.read_image
    monkeypatch.setattr(_ReadImageDoFn, "budgets", (pixels, ByteBudget(2**28)))
    monkeypatch.setattr(read_images, "read_image", lambda *args: called.append("begun") or read(*args))
    dofn = _ReadImageDoFn(10**6)
    outputs = _values(dofn, refs)
    next(output for output in outputs if isinstance(output, LoadedImage))
    outputs.close()  # what an exception of a step that follows does
    dofn.teardown()
    begun = len(called)
    other = pixels.line().share()
    other.take(10**9)  # waits for all of the budget
    other.give_back()
    assert len([output for output in _values(_ReadImageDoFn(10**6), refs) if isinstance(output, LoadedImage)]) == 36
    assert len(called) == begun + len(refs)


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
    monkeypatch.setattr(_WriteImageDoFn, "budgets", (ByteBudget(3 * size),))
    lock, now, most, write = threading.Lock(), [0], [0], storage.write_bytes
    together = threading.Barrier(2)

    def slow(url, data):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        if url.endswith(("/0.png", "/1.png")):
            together.wait()  # for the other of the two
        time.sleep(0.005)
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


class TestLargeFiles:
    """Encoded bytes are limited and counted, whatever they are read from."""

    LIMIT = 40 * 2**20

    def _sparse(self, folder, name, size):
        with open(folder / name, "wb") as file:
            file.truncate(size)
        return ImageRef(name, str(folder / name))

    def _outcomes(self, refs, limit=LIMIT):
        return list(_values(_ReadImageDoFn(10**6, limit), refs))

    def _check(self, outcomes):
        assert outcomes
        for outcome in outcomes:
            assert outcome.error_type == "too_large"
            assert "over the limit of" in outcome.message
            assert "--max_bytes raises it" in outcome.message

    def test_a_file_over_the_limit_is_a_failure_that_names_the_flag_and_takes_no_memory(self, tmp_path):
        refs = [self._sparse(tmp_path, f"{i}.png", 2**34) for i in range(3)]
        tracemalloc.start()
        outcomes = self._outcomes(refs)
        assert tracemalloc.get_traced_memory()[1] < self.LIMIT
        tracemalloc.stop()
        self._check(outcomes)

    def test_on_every_store(self, store):
        storage.write_bytes(f"{store}/a.png", bytes(3_000_000))
        self._check(self._outcomes([ImageRef("a", f"{store}/a.png")], limit=2_999_999))

    def test_an_endless_answer_of_a_web_server_ends_at_it(self):
        with web_server() as server:
            server.endless = {"/a.png"}
            self._check(self._outcomes([ImageRef("a", f"{server.url}/a.png")], limit=20_000_000))

    def test_a_member_of_a_tar_file_and_a_cell_of_a_parquet_file(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            member = tarfile.TarInfo("a.png")
            member.size = 3_000_000
            tar.addfile(member, io.BytesIO(bytes(3_000_000)))
        pq.write_table(pa.table({"image": [bytes(3_000_000)]}), tmp_path / "a.parquet")
        pq.write_table(pa.table({"image": [bytes(3_000_000), b"x"]}), tmp_path / "b.parquet")
        for name in ("a.tar", "a.parquet", "b.parquet"):
            listed = next(listing.list_images(str(tmp_path / name)))
            self._check(self._outcomes([ImageRef("a", listed.uri, member=listed.member)], limit=2_000_000))

    @pytest.mark.parametrize("budget", [1, 2**25])
    def test_large_files_in_memory_stay_within_a_budget_and_in_order(self, tmp_path, monkeypatch, budget):
        monkeypatch.setattr(_ReadImageDoFn, "budgets", (ByteBudget(2**28), ByteBudget(budget)))
        lock, held, most = threading.Lock(), [0], [0]

        def decode(data, max_pixels, reserve):
            with lock:
                held[0] += len(data)
                most[0] = max(most[0], held[0])
            reserve(10)
            time.sleep(0.001)
            with lock:
                held[0] -= len(data)
            raise ValueError("not an image")

        monkeypatch.setattr(read_images, "decode_image", decode)
        size = 2**24 + 1
        refs = [self._sparse(tmp_path, f"{i:02d}.png", size) for i in range(40)]
        assert [outcome.key for outcome in self._outcomes(refs)] == [ref.key for ref in refs]
        assert most[0] <= max(budget, size)


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_what_isnt_a_regular_file_is_a_failure_and_isnt_waited_for(tmp_path, kind):
    path = tmp_path / "x.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    [outcome] = _values(_ReadImageDoFn(10**6), [ImageRef("x", str(path))])
    assert outcome.error_type == "not_an_image"
    assert "not a regular file" in outcome.message
