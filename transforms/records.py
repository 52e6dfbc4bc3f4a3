"""Rows of results as Parquet files, whose names don't depend on how the work was bundled."""

import json
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.typehints.decorators import no_annotations

from ot_core import storage
from ot_core.layout import FAILURES, MANIFEST, QUALITY, find_numbered, numbered
from transforms import metrics
from transforms.elements import Failure, ImageQuality, ImageRecord
from transforms.windows import check_windows, in_global_window

_PYARROW_TYPES: Final = {str: pa.string(), int: pa.int64(), float: pa.float64(), float | None: pa.float64()}
#: Rows that cross a shuffle together, some kilobytes; and those that are sorted and make a row group.
ROWS_PACKED: Final = 64
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
        check_windows(self, rows)
        every_shard = rows.pipeline | "EveryShard" >> beam.Create([(i, pack_rows([])) for i in range(self._num_shards)])
        packed = rows | "PackRows" >> beam.ParDo(_PackRowsDoFn(self._num_shards))
        urls = (
            (every_shard, packed)
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
    for file in find_numbered(output, name):
        if file.total != num_shards:
            storage.remove(file.url)


@beam.typehints.with_output_types(tuple[int, bytes])
class _PackRowsDoFn(beam.DoFn):
    """Row -> (shard, some rows as compressed JSON): less for the shuffle, and for a runner that holds a whole shard."""

    def __init__(self, num_shards: int) -> None:
        self._num_shards = num_shards

    def start_bundle(self) -> None:
        self._waiting: dict[int, list[Any]] = {}

    def process(self, element: Any) -> Iterator[Any]:
        shard = zlib.crc32(element.key.encode()) % self._num_shards
        rows = self._waiting.setdefault(shard, [])
        rows.append(element)
        if len(rows) == ROWS_PACKED:
            yield shard, pack_rows(self._waiting.pop(shard))

    def finish_bundle(self) -> Iterator[Any]:
        for shard, rows in self._waiting.items():
            yield in_global_window((shard, pack_rows(rows)))
        self._waiting = {}


def pack_rows(rows: Sequence[Any]) -> bytes:
    """Named tuples of one kind, for the shuffle."""
    return zlib.compress(json.dumps(rows).encode())


class _WriteParquetDoFn(beam.DoFn):
    def __init__(self, output: str, name: str, row_type: Any, num_shards: int) -> None:
        self._output, self._name, self._row_type, self._num_shards = output, name, row_type, num_shards

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[str]:
        shard, packs = element
        schema = schema_of(self._row_type)
        url = storage.join(self._output, numbered(self._name, shard, self._num_shards))
        with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
            with pq.ParquetWriter(file.name, schema) as writer:
                for group in _groups(packs, schema):
                    writer.write_table(group.sort_by([(name, "ascending") for name in schema.names]))
            storage.upload(file.name, url)
        yield url


def _groups(packs: Iterable[bytes], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of many rows each, which are Python's objects only a few at a time."""
    tables: list[pa.Table] = []
    for pack in packs:
        columns = list(zip(*json.loads(zlib.decompress(pack)), strict=True)) or [()] * len(schema)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
        tables.append(pa.Table.from_arrays(arrays, schema=schema))
        if sum(map(len, tables)) >= _ROWS_PER_GROUP:
            yield pa.concat_tables(tables)
            tables = []
    yield pa.concat_tables(tables or [schema.empty_table()])


@beam.typehints.with_input_types(ImageRecord)
@beam.typehints.with_output_types(str)
class WriteManifest(_WriteRows):
    """ImageRecord -> URLs of `manifest-*.parquet`, a row for each image written.

    Args:
        output: URL of the folder.
        num_shards: number of files; a million rows in one take seconds.
    """

    def __init__(self, output: str, num_shards: int = 1) -> None:
        super().__init__(output, MANIFEST, ImageRecord, num_shards)


@beam.typehints.with_input_types(ImageQuality)
@beam.typehints.with_output_types(str)
class WriteQuality(_WriteRows):
    """ImageQuality -> URLs of `images-*.parquet`, a row for each image compared.

    Args:
        output: URL of the folder.
        num_shards: number of files.
    """

    def __init__(self, output: str, num_shards: int = 1) -> None:
        super().__init__(output, QUALITY, ImageQuality, num_shards)


@beam.typehints.with_input_types(Failure)
@beam.typehints.with_output_types(str)
class WriteFailures(_WriteRows):
    """Failure -> URLs of `failures-*.parquet`, a row for each image that could not be processed; counts them by cause.

    Args:
        output: URL of the folder.
        num_shards: number of files.
        name: what the files' names begin with.
    """

    def __init__(self, output: str, num_shards: int = 1, name: str = FAILURES) -> None:
        super().__init__(output, name, Failure, num_shards)

    @no_annotations
    def expand(self, failures: beam.PCollection[Failure]) -> beam.PCollection[str]:
        """Count, then write."""
        check_windows(self, failures)
        return super().expand(failures | "CountFailures" >> beam.Map(counted))


def counted(failure: Failure) -> Failure:
    """The failure, once it is counted by its cause."""
    metrics.count(metrics.FAILURES)
    metrics.count(f"{metrics.FAILURES}_{failure.error_type}")
    return failure
