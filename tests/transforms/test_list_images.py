"""Listing: every image once, every oddity accounted for."""

import hashlib

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from tests.ot_core.image_files import encoded, noise
from transforms import ImageRef, ListImages, ReadImages


def _touch(folder, *names, data=b""):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _without_details(ref: ImageRef) -> ImageRef:
    assert ref.version
    assert ref.modified
    return ref._replace(version="", modified=None)


def test_each_image_of_each_group_is_listed_once(tmp_path):
    _touch(tmp_path, "a/1.png", "a/deep/2.JPG", "a/notes.txt", "b/1.png")
    with TestPipeline(runner="FnApiRunner") as pipeline:
        images, failures = pipeline | ListImages({"source": str(tmp_path / "a"), "target": [str(tmp_path / "b")]})
        expected = [
            ImageRef("1", str(tmp_path / "a/1.png"), "source"),
            ImageRef("deep/2", str(tmp_path / "a/deep/2.JPG"), "source"),
            ImageRef("1", str(tmp_path / "b/1.png"), "target"),
        ]
        assert_that(images | beam.Map(_without_details), equal_to(expected))
        assert_that(failures, equal_to([]), label="NoFailures")


def test_every_image_is_counted(tmp_path):
    _touch(tmp_path, *(f"a/{i}.png" for i in range(1001)), "b/x.png")
    pipeline = TestPipeline(runner="FnApiRunner")
    images, _failures = pipeline | ListImages([str(tmp_path / "a"), str(tmp_path / "b")])
    assert_that(images | beam.combiners.Count.Globally(), equal_to([1002]))
    listed = pipeline.run().metrics().query(MetricsFilter().with_name("images_listed"))["counters"]
    assert [counter.committed for counter in listed] == [1002]


def test_of_images_with_one_key_the_first_by_url_that_can_be_read_is_given_and_the_others_are_failures(tmp_path):
    _touch(tmp_path, "x/1.jpg", data=b"no image")
    _touch(tmp_path, "x/1.png", "x/1.tif", "y/1.png", data=encoded(noise(8, 8)))
    with TestPipeline(runner="FnApiRunner") as pipeline:
        images, failures = pipeline | ListImages([str(tmp_path / "y"), str(tmp_path / "x")])
        assert_that(images | beam.Map(_without_details), equal_to([ImageRef("1", str(tmp_path / "x/1.png"))]))
        rows = failures | beam.Map(lambda row: (row.source_uri, row.stage, row.error_type, "x/1.png" in row.message))
        expected = [
            (str(tmp_path / "x/1.jpg"), "read", "not_an_image", False),
            (str(tmp_path / "x/1.tif"), "list", "duplicate_key", True),
            (str(tmp_path / "y/1.png"), "list", "duplicate_key", True),
        ]
        assert_that(rows, equal_to(expected), label="Failures")


def test_of_images_with_one_key_none_is_given_where_none_can_be_read(tmp_path):
    _touch(tmp_path, "1.jpg", data=b"no image")
    _touch(tmp_path, "1.png", data=encoded(noise(8, 8)))
    with TestPipeline(runner="FnApiRunner") as pipeline:
        images, failures = pipeline | ListImages(str(tmp_path), max_pixels=63)
        assert_that(images, equal_to([]))
        rows = failures | beam.Map(lambda row: row.error_type)
        assert_that(rows, equal_to(["not_an_image", "too_large"]), label="Failures")


def test_what_isnt_taken_is_counted_by_extension(tmp_path):
    _touch(tmp_path, "a/1.png", "a/2.psd", "a/3.PSD", "a/4", "b/5.gif", *(f"b/x.e{i}" for i in range(100)))
    pipeline = TestPipeline(runner="FnApiRunner")
    _ = pipeline | ListImages([str(tmp_path / "a"), str(tmp_path / "b")])
    counted = pipeline.run().metrics().query(MetricsFilter().with_namespace("dot"))["counters"]
    found = {c.key.metric.name: c.committed for c in counted if c.key.metric.name.startswith("files_ignored")}
    assert found["files_ignored"] == sum(n for name, n in found.items() if name != "files_ignored") == 104
    assert found["files_ignored_.psd"] == 2
    assert found["files_ignored_without_extension"] == 1
    assert len(found) < 20


def test_an_input_that_cant_be_listed_is_a_failure_and_the_others_are_done(tmp_path):
    _touch(tmp_path, "a/1.png")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really")
    with TestPipeline(runner="FnApiRunner") as pipeline:
        images, failures = pipeline | ListImages([str(tmp_path / "b.parquet"), str(tmp_path / "a"), "nosuch://x/"])
        assert_that(images | beam.Map(lambda ref: ref.key), equal_to(["1"]))
        rows = failures | beam.Map(lambda row: (row.source_uri, row.stage, row.error_type))
        expected = [(str(tmp_path / "b.parquet"), "list", "bad_list"), ("nosuch://x/", "list", "bad_list")]
        assert_that(rows, equal_to(expected), label="Failures")


def test_a_key_that_would_leave_the_output_is_a_failure(tmp_path):
    listing = tmp_path / "list.jsonl"
    listing.write_text('{"uri": "a.png", "key": "../../etc/x"}\n{"uri": "b.png"}\n')
    with TestPipeline(runner="FnApiRunner") as pipeline:
        images, failures = pipeline | ListImages(str(listing))
        assert_that(images | beam.Map(lambda ref: ref.key), equal_to(["b"]))
        assert_that(failures | beam.Map(lambda row: row.error_type), equal_to(["bad_key"]), label="Failures")


def test_a_limit_takes_the_same_images_of_each_group_in_every_run(tmp_path):
    names = [f"{i}" for i in range(20)]
    _touch(tmp_path, *(f"a/{name}.png" for name in names), *(f"b/{i}.png" for i in range(3)))
    lowest = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:5]
    expected = [("source", name) for name in lowest] + [("target", f"{i}") for i in range(3)]
    for _ in range(2):
        with TestPipeline(runner="FnApiRunner") as pipeline:
            inputs = {"source": str(tmp_path / "a"), "target": str(tmp_path / "b")}
            images, _failures = pipeline | ListImages(inputs, max_images=5)
            assert_that(images | beam.Map(lambda ref: (ref.side, ref.key)), equal_to(expected))


def test_an_image_that_cannot_be_read_costs_one_row(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    refs = [ImageRef("gone", str(tmp_path / "gone.png")), ImageRef("text", str(tmp_path / "text.jpg"))]
    with TestPipeline(runner="FnApiRunner") as pipeline:
        images, failures = pipeline | beam.Create(refs) | ReadImages()
        assert_that(images, equal_to([]))
        rows = failures | beam.Map(lambda row: (row.key, row.stage, row.error_type))
        assert_that(rows, equal_to([("gone", "read", "not_found"), ("text", "read", "not_an_image")]), label="Rows")


def test_pairs_are_the_keys_that_every_group_has(tmp_path):
    names = ["a/1.png", "a/2.png", "a/2.jpg", "a/3.png", "b/2.jpg", "b/3.jpg", "b/4.jpg"]
    _touch(tmp_path, *names, data=encoded(noise(8, 8)))
    inputs = {"source": str(tmp_path / "a"), "target": str(tmp_path / "b")}
    with TestPipeline(runner="FnApiRunner") as pipeline:
        images, failures = pipeline | ListImages(inputs, paired=True)
        both = [(group, key) for group in inputs for key in ("2", "3")]
        assert_that(images | beam.Map(lambda ref: (ref.side, ref.key)), equal_to(both))
        assert_that(failures | beam.Map(lambda row: row.error_type), equal_to(["duplicate_key"]), label="Failures")


def test_a_limit_keeps_pairs_together(tmp_path):
    _touch(tmp_path, *(f"a/{i}.png" for i in range(20)), *(f"b/{i}.png" for i in range(10, 30)))
    inputs = {"source": str(tmp_path / "a"), "target": str(tmp_path / "b")}
    with TestPipeline(runner="FnApiRunner") as pipeline:
        images, _failures = pipeline | ListImages(inputs, max_images=4, paired=True)
        groups = images | beam.Map(lambda ref: (ref.key, ref.side)) | beam.GroupByKey()
        assert_that(groups | beam.Map(lambda pair: len(set(pair[1]))), equal_to([2, 2, 2, 2]))
