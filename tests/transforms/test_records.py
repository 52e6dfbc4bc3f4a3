"""Manifest and failures: stable names, one schema, nothing left over from an earlier run."""

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.testing.test_pipeline import TestPipeline

from ot_core import Cause
from transforms import Failure, ImageRecord, WriteFailures, WriteManifest


def _records(n):
    return [ImageRecord(f"k{i}", f"in/{i}", f"out/{i}", 0.5, 4, 3, 100, "ab" * 32, 0.1) for i in range(n)]


def _rows(folder, name):
    return [row for path in sorted(folder.glob(f"{name}-*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("shards", [1, 3])
def test_the_manifest_holds_every_record_in_the_promised_columns(tmp_path, shards):
    records = _records(50)
    with TestPipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | beam.Create(records) | WriteManifest(str(tmp_path), shards)
    names = [f"manifest-{i:05d}-of-{shards:05d}.parquet" for i in range(shards)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    rows = sorted(_rows(tmp_path, "manifest"), key=lambda row: row["key"])
    assert rows == sorted((record._asdict() for record in records), key=lambda row: row["key"])


def test_a_second_run_without_failures_leaves_none_of_the_first(tmp_path):
    failure = Failure("k", "u", "read", str(Cause.DAMAGED), "broken")
    for failures in ([failure], []):
        with TestPipeline(runner="FnApiRunner") as pipeline:
            _ = pipeline | beam.Create(failures) | WriteFailures(str(tmp_path))
        assert _rows(tmp_path, "failures") == [row._asdict() for row in failures]
    schema = pq.read_schema(tmp_path / "failures-00000-of-00001.parquet")
    assert schema.names == ["key", "source_uri", "stage", "error_type", "message"]


def test_failures_are_counted_by_cause(tmp_path):
    causes = [Cause.DAMAGED, Cause.DAMAGED, Cause.NOT_FOUND]
    pipeline = TestPipeline(runner="FnApiRunner")
    rows = [Failure(f"k{i}", "u", "read", str(cause), "m") for i, cause in enumerate(causes)]
    _ = pipeline | beam.Create(rows) | WriteFailures(str(tmp_path))
    result = pipeline.run()
    counters = result.metrics().query(MetricsFilter().with_namespace("dot"))["counters"]
    found = {counter.key.metric.name: counter.committed for counter in counters}
    assert found == {"failures": 3, "failures_damaged": 2, "failures_not_found": 1}
