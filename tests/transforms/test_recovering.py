"""What counts as done when a run is resumed, whatever state an earlier one left."""

import hashlib
import io

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from PIL import Image

from ot_core import storage
from ot_core.layout import OutputLayout
from transforms import ImageRecord, ImageRef, SkipDone, WriteManifest
from transforms.resume import _DecideDoFn, _list_output, _read_manifest


def _png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _write(layout: OutputLayout, key: str, alpha: float = 0.0, value: int = 7) -> ImageRecord:
    url, data = layout.written_image(alpha, key), _png(value)
    storage.write_bytes(url, data)
    return ImageRecord(key, f"in/{key}.png", url, alpha, 5, 4, len(data), hashlib.sha256(data).hexdigest(), 0.0, "v1")


def _ref(key: str, version: str = "v1") -> ImageRef:
    return ImageRef(key, f"in/{key}.png", version=version, modified=1.0)


def _decide(alphas, refs, rows=(), files=()):
    """Keys to be done, rows of those that are, and files that these make unneeded."""
    found = {"refs": [tuple(ref) for ref in refs], "rows": rows, "files": files}
    todo, records, unneeded = [], [], []
    for output in _DecideDoFn(tuple(alphas)).process(("key", found)):
        if isinstance(output, ImageRef):
            todo.append(output.key)
        elif output.tag != "outdated":
            (records if output.tag == "records" else unneeded).append(output.value)
    return todo, records, unneeded


def test_an_unreadable_result_of_an_earlier_run_is_done_again_and_costs_no_other(tmp_path):
    layout = OutputLayout.of(str(tmp_path), [0.0])
    for index, key in enumerate("abcde"):
        _write(layout, key, value=index)
    (tmp_path / "images/b.png").write_bytes(b"not an image")
    (tmp_path / "images/c.png").write_bytes(b"")
    (tmp_path / "images/d.png").unlink()
    (tmp_path / "images/d.png").mkdir()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        done = pipeline | beam.Create([_ref(key) for key in "abcde"], reshuffle=False) | SkipDone(layout)
        assert_that(done.images | beam.Map(lambda ref: ref.key), equal_to(list("bcd")), label="todo")
        assert_that(done.records | beam.Map(lambda record: record.key), equal_to(list("ae")), label="done")


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_manifest_that_can_not_be_read_ends_the_job_and_counts_for_nothing_less(tmp_path, damage):
    layout = OutputLayout.of(str(tmp_path), [0.0])
    with TestPipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | beam.Create([_write(layout, "a")], reshuffle=False) | WriteManifest(layout.root)
    url = f"{tmp_path}/manifest-00000-of-00001.parquet"
    data = storage.read_bytes(url)
    storage.write_bytes(url, data[: len(data) // 2] if damage is None else damage)
    with pytest.raises(Exception, match=r"(?i)parquet"):
        list(_read_manifest((url, 1.0, {})))


def test_an_output_that_can_not_be_listed_ends_the_job(tmp_path, monkeypatch):
    layout = OutputLayout.of(str(tmp_path), [0.0])
    _write(layout, "deep/a")

    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr("os.scandir", refuse)  # tests may run as root, who may list everything
    with pytest.raises(PermissionError):
        list(_list_output(0.0, layout))
    with pytest.raises(Exception, match="deep|images|" + tmp_path.name):
        layout.find_manifests()


def test_a_staged_image_whose_other_alpha_is_packed_is_recovered(tmp_path):
    layout = OutputLayout.of(str(tmp_path), [0.0, 0.5], kind="webdataset")
    staged = _write(layout, "k", 0.5)
    row = _write(layout, "k", 0.0)._replace(output_uri="shard#k.png")
    file = (0.5, staged.output_uri, 2.0)
    for version, redone in (("v1", []), ("v2", ["k"]), ("", ["k"])):
        rows = [(tuple(row._replace(source_version=version)), 3.0, True)]
        todo, records, _ = _decide([0.0, 0.5], [_ref("k")], rows, [file])
        assert todo == redone
        assert len(records) == {"v1": 2, "v2": 0, "": 1}[version]  # one whose version isn't told may be kept


def test_of_two_rows_of_an_image_the_later_is_taken(tmp_path):
    row = ImageRecord("k", "in/k.png", "shard#k.png", 0.0, 1, 1, 1, "old", 0.0, "v1")
    rows = [(tuple(row._replace(sha256="new")), 3.0, True), (tuple(row), 2.0, True)]
    for order in (rows, rows[::-1]):
        for refs in ([], [_ref("k")]):
            assert [record.sha256 for record in _decide([0.0], refs, order)[1]] == ["new"]


def test_what_is_staged_is_unneeded_once_the_manifest_has_it_in_a_shard():
    row = ImageRecord("k", "in/k.png", "shard#k.png", 0.0, 1, 1, 1, "digest", 0.0, "v1")
    for written, unneeded in ((3.0, ["staged"]), (1.0, [])):
        for refs in ([], [_ref("k")]):
            found = _decide([0.0], refs, [(tuple(row), written, True)], [(0.0, "staged", 2.0)])
            assert found == ([], [row], unneeded)
    # A file is an image's own where there are no shards.
    assert _decide([0.0], [_ref("k")], [(tuple(row), 3.0, None)], [(0.0, "own", 2.0)])[2] == []
