"""Rows of results as Parquet files, whose names don't depend on how the work was bundled."""

import glob
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.typehints.decorators import no_annotations

from ot_core import storage
from transforms import metrics
from transforms.elements import Failure, ImageQuality, ImageRecord

_PYARROW_TYPES: Final = {str: pa.string(), int: pa.int64(), float: pa.float64(), float | None: pa.float64()}
#: Rows held in memory, and in a row group.
_ROWS_PER_GROUP: Final = 50_000


def schema_of(row_type: Any) -> pa.Schema:
    """The Parquet schema of a row class."""
    return pa.schema([(name, _PYARROW_TYPES[kind]) for name, kind in row_type.__annotations__.items()])


class _WriteRows(beam.PTransform):
    """Writes rows to `<output>/<name>-00000-of-0000n.parquet` and gives the URLs.

    A row's shard depends on its key alone, and every shard is written even when empty: a second run or a retry
    replaces the files of the first instead of adding to them.
    """

    def __init__(self, output: str, name: str, row_type: Any, num_shards: int) -> None:
        super().__init__()
        self._output, self._name, self._row_type, self._num_shards = output, name, row_type, num_shards

    @no_annotations
    def expand(self, rows: beam.PCollection[Any]) -> beam.PCollection[str]:
        every_shard = rows.pipeline | "EveryShard" >> beam.Create([(i, None) for i in range(self._num_shards)])
        sharded = rows | "AssignShard" >> beam.Map(_with_shard, self._num_shards)
        urls = (
            (every_shard, sharded)
            | "FlattenShards" >> beam.Flatten()
            | "GroupByShard" >> beam.GroupByKey()
            | "WriteParquet"
            >> beam.ParDo(_WriteParquetDoFn(self._output, self._name, self._row_type, self._num_shards))
        )
        _ = (
            urls
            | "AllWritten" >> beam.combiners.Count.Globally()
            | "RemoveOthers" >> beam.Map(_remove_others, self._output, self._name, self._num_shards)
        )
        return urls


def _remove_others(written: int, output: str, name: str, num_shards: int) -> None:
    """Removes the files of an earlier run that spread its rows over another number of them."""
    pattern = re.compile(rf"{re.escape(name)}-\d{{5}}-of-(\d{{5}})\.parquet")
    for url in storage.match(storage.join(output, f"{glob.escape(name)}-*-of-*.parquet")):
        found = pattern.fullmatch(url.rpartition("/")[2])
        if found and int(found[1]) != num_shards:
            storage.remove(url)


def _with_shard(row: Any, num_shards: int) -> tuple[int, tuple[Any, ...]]:
    return zlib.crc32(row.key.encode()) % num_shards, tuple(row)


class _WriteParquetDoFn(beam.DoFn):
    def __init__(self, output: str, name: str, row_type: Any, num_shards: int) -> None:
        self._output, self._name, self._row_type, self._num_shards = output, name, row_type, num_shards

    def process(self, element: tuple[int, Iterable[tuple[Any, ...] | None]]) -> Iterator[str]:
        shard, rows = element
        schema = schema_of(self._row_type)
        url = storage.join(self._output, f"{self._name}-{shard:05d}-of-{self._num_shards:05d}.parquet")
        with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
            with pq.ParquetWriter(file.name, schema) as writer:
                for group in _chunks(rows):
                    columns = list(zip(*sorted(group), strict=True)) or [()] * len(schema)
                    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
                    writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            storage.upload(file.name, url)
        yield url


def _chunks(rows: Iterable[tuple[Any, ...] | None]) -> Iterator[list[tuple[Any, ...]]]:
    group: list[tuple[Any, ...]] = []
    for row in rows:
        if row is not None:
            group.append(row)
        if len(group) == _ROWS_PER_GROUP:
            yield group
            group = []
    yield group


@beam.typehints.with_input_types(ImageRecord)
@beam.typehints.with_output_types(str)
class WriteManifest(_WriteRows):
    """ImageRecord -> URLs of `manifest-*.parquet`, a row for each image written.

    Args:
        output: URL of the folder.
        num_shards: number of files; a million rows in one take seconds.
    """

    def __init__(self, output: str, num_shards: int = 1) -> None:
        super().__init__(output, "manifest", ImageRecord, num_shards)


@beam.typehints.with_input_types(ImageQuality)
@beam.typehints.with_output_types(str)
class WriteQuality(_WriteRows):
    """ImageQuality -> URLs of `images-*.parquet`, a row for each image compared.

    Args:
        output: URL of the folder.
        num_shards: number of files.
    """

    def __init__(self, output: str, num_shards: int = 1) -> None:
        super().__init__(output, "images", ImageQuality, num_shards)


@beam.typehints.with_input_types(Failure)
@beam.typehints.with_output_types(str)
class WriteFailures(_WriteRows):
    """Failure -> URLs of `failures-*.parquet`, a row for each image that could not be processed; counts them by cause.

    Args:
        output: URL of the folder.
        num_shards: number of files.
        name: what the files' names begin with.
    """

    def __init__(self, output: str, num_shards: int = 1, name: str = "failures") -> None:
        super().__init__(output, name, Failure, num_shards)

    @no_annotations
    def expand(self, failures: beam.PCollection[Failure]) -> beam.PCollection[str]:
        """Count, then write."""
        return super().expand(failures | "CountFailures" >> beam.Map(counted))


def counted(failure: Failure) -> Failure:
    """The failure, once it is counted by its cause."""
    metrics.count(metrics.FAILURES)
    metrics.count(f"{metrics.FAILURES}_{failure.error_type}")
    return failure
