"""Packing: a shard is only replaced by one that holds all that was in it, whatever the store or the disk does."""

import hashlib
import shutil
from collections.abc import Mapping
from typing import NamedTuple

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline

from ot_core import shards, storage
from ot_core.layout import OutputLayout
from tests.faults import faulty_store
from transforms import ImageRecord, PackShards, RemoveUnneeded, WriteFailures, WriteManifest
from transforms.packing import _PackShardDoFn

KINDS = sorted(shards.EXTENSIONS)
#: Of what gcsfs sends to write a file: its name, before its content.
_HEAD = 300


def _data(name: str) -> bytes:
    return name.encode() * 1000


def _stage(layout: OutputLayout, names: str, alpha: float = 0.0) -> list[ImageRecord]:
    records = []
    for name in names:
        url, data = layout.written_image(alpha, name), _data(name)
        storage.write_bytes(url, data)
        digest = hashlib.sha256(data).hexdigest()
        records.append(ImageRecord(name, f"in/{name}.png", url, alpha, 1, 1, len(data), digest, 0.0))
    return records


class _Result(NamedTuple):
    rows: list[ImageRecord]
    failures: Mapping[str, str]


def _rows(output: str, name: str) -> list[dict]:
    with storage.open_file(f"{output}/{name}-00000-of-00001.parquet") as file:
        return pq.read_table(file).to_pylist()


def _pack(layout: OutputLayout, records: list[ImageRecord]) -> _Result:
    """What the pipeline below does for one shard, without Beam's seconds."""
    rows, failures, unneeded = [], {}, []
    for output in _PackShardDoFn(layout, 1).process(((0.0, 0), [None, *records])):
        if isinstance(output, ImageRecord):
            rows.append(output)
        elif output.tag == "failures":
            failures[output.value.key] = output.value.error_type
        else:
            unneeded.append(output.value)
    for url in unneeded:
        storage.remove(url)
    return _Result(rows, failures)


def _pack_in_pipeline(layout: OutputLayout, records: list[ImageRecord], num_shards: int = 1) -> _Result:
    with TestPipeline(runner="FnApiRunner") as pipeline:
        packed = pipeline | beam.Create(records, reshuffle=False) | PackShards(layout, num_shards)
        manifest = packed.records | WriteManifest(layout.root)
        _ = packed.failures | WriteFailures(layout.root)
        _ = packed.unneeded | RemoveUnneeded(layout, manifest)
    rows = sorted((ImageRecord(**row) for row in _rows(layout.root, "manifest")), key=lambda row: row.key)
    return _Result(rows, {row["key"]: row["error_type"] for row in _rows(layout.root, "failures")})


def _staged(layout: OutputLayout) -> set[str]:
    folder = layout.written_folder(layout.alphas[0])
    return {name.removesuffix(".png") for name in storage.children(folder)}


def _shard(layout: OutputLayout) -> str:
    return layout.shard(0.0, 0, 1)


def _fresh(layout: OutputLayout, tmp_path, names: str) -> bytes:
    """The shard that a single undisturbed run makes."""
    fresh = layout._replace(root=str(tmp_path / "fresh"))
    shutil.rmtree(fresh.root, ignore_errors=True)
    assert not _pack(fresh, _stage(fresh, names)).failures
    return storage.read_bytes(_shard(fresh))


@pytest.fixture(params=KINDS)
def layout(request, gcs, tmp_path) -> OutputLayout:
    return OutputLayout.of(f"{gcs}/{tmp_path.name}", [0.0], kind=request.param)


def _reads(layout: OutputLayout, command: str, path: str) -> bool:
    return command == "GET" and "shard-00000" in path


def test_a_read_that_breaks_off_is_tried_again(layout, tmp_path):
    first = _pack(layout, _stage(layout, "abcdef"))
    broken = []

    def once(command: str, path: str, body: bytes) -> str | None:
        if _reads(layout, command, path) and "alt=media" in path and not broken:
            broken.append(path)
            return "truncate"
        return None

    with faulty_store(layout.root, override=once):
        second = _pack(layout, [*first.rows, *_stage(layout, "cg"[1:])])
    assert broken
    assert not second.failures
    assert [row.key for row in second.rows] == list("abcdefg")
    assert storage.read_bytes(_shard(layout)) == _fresh(layout, tmp_path, "abcdefg")


@pytest.mark.parametrize("refused", ["reading", "writing"])
def test_a_shard_that_can_not_be_read_or_written_stays_and_its_new_images_wait(layout, tmp_path, refused):
    first = _pack(layout, _stage(layout, "bdf"))
    before = storage.read_bytes(_shard(layout))
    new = _stage(layout, "aeg")

    def refuse(command: str, path: str, body: bytes) -> str | None:
        writes = command in ("POST", "PUT") and b"shard-00000" in body[:_HEAD]
        return "403" if (_reads(layout, command, path) if refused == "reading" else writes) else None

    with faulty_store(layout.root, override=refuse) as proxy:
        second = _pack(layout, [*first.rows, *new])
    assert proxy.faults
    assert second.rows == first.rows
    assert second.failures == dict.fromkeys("aeg", "permission_denied")
    assert storage.read_bytes(_shard(layout)) == before
    assert _staged(layout) == set("aeg")
    third = _pack(layout, [*second.rows, *new])
    assert not third.failures
    assert storage.read_bytes(_shard(layout)) == _fresh(layout, tmp_path, "abdefg")
    assert not _staged(layout)


def _cut(data: bytes) -> bytes:
    return data[: data.index(_data("d")) + 10]


def _flip(data: bytes) -> bytes:
    """One image is another one, which no reader of tar or Parquet can see."""
    return data.replace(_data("d"), b"D" + _data("d")[1:])


def _scramble(data: bytes) -> bytes:
    """What says what comes next is damaged in the middle, and in Parquet at the end."""
    middle = data.index(_data("d")) - 512
    return data[:middle] + bytes(512) + data[middle + 512 : -8] + b"x" * 8


@pytest.mark.parametrize("damage", [_cut, _flip, _scramble, lambda data: b"", None])
def test_a_shard_that_lost_images_is_replaced_only_when_they_are_there_again(layout, tmp_path, damage):
    first = _pack(layout, _stage(layout, "bdf"))
    damaged = b"" if damage is None else damage(storage.read_bytes(_shard(layout)))
    if damage is None:
        storage.remove(_shard(layout))
    else:
        storage.write_bytes(_shard(layout), damaged)
    new = _stage(layout, "ceg")
    second = _pack(layout, [*first.rows, *new])
    assert set(second.failures.values()) == {"damaged"}
    lost = set(second.failures) - set("ceg")
    assert "d" in lost
    assert set("ceg") < set(second.failures)
    assert second.rows == [row for row in first.rows if row.key not in lost]
    if damage is None:
        assert not storage.exists(_shard(layout))
    else:
        assert storage.read_bytes(_shard(layout)) == damaged
    assert _staged(layout) == set("ceg")
    again = _stage(layout, "".join(lost))
    third = _pack(layout, [*second.rows, *new, *again])
    assert not third.failures
    assert storage.read_bytes(_shard(layout)) == _fresh(layout, tmp_path, "bcdefg")


def test_a_staged_image_that_is_gone_or_damaged_costs_itself_alone(layout):
    records = _stage(layout, "abcd")
    storage.remove(records[0].output_uri)
    storage.write_bytes(records[2].output_uri, b"something else")
    result = _pack(layout, records)
    assert result.failures == {"a": "not_found", "c": "damaged"}
    assert [row.key for row in result.rows] == ["b", "d"]
    assert dict(shards.read_shard(_shard(layout))) == {f"{name}.png": _data(name) for name in "bd"}
    assert _staged(layout) == {"c"}


def test_a_worker_that_packs_a_second_time_takes_from_the_shard_what_is_no_longer_staged(layout, tmp_path):
    records = _stage(layout, "abc")
    _pack(layout, records)
    assert not _staged(layout)
    again = _pack(layout, [*records, *_stage(layout, "d")])
    assert not again.failures
    assert storage.read_bytes(_shard(layout)) == _fresh(layout, tmp_path, "abcd")


def test_what_is_staged_and_is_not_in_a_shard_stays(layout):
    _stage(layout, "xyz")
    result = _pack_in_pipeline(layout, _stage(layout, "ab"), num_shards=2)
    assert [row.key for row in result.rows] == ["a", "b"]
    assert _staged(layout) == set("xyz")
    for name in "xyz":
        storage.remove(layout.written_image(0.0, name))
    _pack_in_pipeline(layout, [*result.rows, *_stage(layout, "c")], num_shards=2)
    assert not storage.exists(layout.staging)


def test_no_shard_is_removed_before_the_manifest_is_written(layout):
    first = _pack(layout, _stage(layout, "abc"))
    _pack_in_pipeline(layout, first.rows)
    before = {
        url: storage.read_bytes(url) for url in (_shard(layout), f"{layout.root}/manifest-00000-of-00001.parquet")
    }

    def refuse(command: str, path: str, body: bytes) -> str | None:
        return "403" if command in ("POST", "PUT") and b"manifest-0" in body[:_HEAD] else None

    with faulty_store(layout.root, override=refuse), pytest.raises(Exception, match="Forbidden"):
        _pack_in_pipeline(layout, [])
    assert {url: storage.read_bytes(url) for url in before} == before
    with faulty_store(layout.root, override=refuse), pytest.raises(Exception, match="Forbidden"):
        _pack_in_pipeline(layout, [*first.rows, *_stage(layout, "d")])
    assert _staged(layout) == {"d"}
    assert not _pack_in_pipeline(layout, []).rows
    assert not storage.exists(_shard(layout))
