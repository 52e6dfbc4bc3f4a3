"""Shards as output: images are written one by one to a staging folder, and then packed.

Pixels don't cross a shuffle for that, and a job that was killed has lost none of the images that it had finished.
"""

import hashlib
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.typehints.decorators import no_annotations

from ot_core import Cause, ImageError, UserError, folders, listing, shards, storage
from ot_core.layout import STAGING, OutputLayout
from ot_core.overlap import prefetch
from transforms import metrics
from transforms.elements import Failure, ImageRecord, ImageRef
from transforms.windows import check_windows

#: Files that one worker removes before the next takes its share.
_AT_ONCE = 500


class PackOutcome(NamedTuple):
    """Result of `PackShards`: rows whose images are in shards now, and those that could not be packed."""

    records: beam.PCollection[ImageRecord]
    failures: beam.PCollection[Failure]


@beam.typehints.with_input_types(ImageRecord)
class PackShards(beam.PTransform):
    """Packs images into `<output>/images/shard-00000-of-0000n.tar`, or `.parquet`: ImageRecord -> ImageRecord, Failure.

    An image's shard depends on its key alone, and shards are sorted by name: the same images give the same bytes,
    whenever and by whatever run each was made. A shard that gets new images is written anew, together with those of
    its images that are among the records; one without any news isn't touched, and one without images is removed. The
    new rows' `output_uri` is `<shard>#<member>`.

    A worker holds the rows of one shard in memory, not its images, and needs disk space for one shard.

    Args:
        layout: of the output, as in `TransportImages`; its kind is webdataset (tar) or parquet.
        num_shards: for each alpha.

    Raises:
        UserError: if it is of files.
    """

    def __init__(self, layout: OutputLayout, num_shards: int = 16) -> None:
        super().__init__()
        if not layout.packed:
            raise UserError(f"output format {layout.kind}: expected one of {', '.join(shards.EXTENSIONS)}")
        self._layout, self._num_shards = layout, num_shards

    @no_annotations
    def expand(self, records: beam.PCollection[ImageRecord]) -> PackOutcome:
        """Rows are grouped by shard; images stay in storage until their shard is written."""
        check_windows(self, records)
        every_shard = [((alpha, index), None) for alpha in self._layout.alphas for index in range(self._num_shards)]
        packed = (
            (
                records.pipeline | "EveryShard" >> beam.Create(every_shard),
                records | "AssignShard" >> beam.Map(_with_shard, self._num_shards),
            )
            | "Flatten" >> beam.Flatten()
            | "GroupByShard" >> beam.GroupByKey()
            | "PackShard"
            >> beam.ParDo(_PackShardDoFn(self._layout, self._num_shards)).with_outputs("failures", main="records")
        )
        return PackOutcome(packed.records, packed.failures)


def _with_shard(record: ImageRecord, num_shards: int) -> tuple[tuple[float, int], tuple[Any, ...]]:
    return (record.alpha, zlib.crc32(record.key.encode()) % num_shards), tuple(record)


class _PackShardDoFn(beam.DoFn):
    def __init__(self, layout: OutputLayout, num_shards: int) -> None:
        self._layout, self._num_shards = layout, num_shards

    def process(self, element: tuple[tuple[float, int], Iterable[tuple[Any, ...] | None]]) -> Iterator[Any]:
        (alpha, index), rows = element
        url = self._layout.shard(alpha, index, self._num_shards)
        records = sorted((ImageRecord(*row) for row in rows if row is not None), key=member_of)
        if not records:
            storage.remove(url)
        elif all(_is_packed(record, url) for record in records):
            yield from records
        else:
            yield from self._pack(records, url)

    def _pack(self, records: list[ImageRecord], url: str) -> Iterator[Any]:
        packed: list[ImageRecord] = []
        failures: list[Failure] = []

        def images() -> Iterator[tuple[str, bytes]]:
            for record, data in _images_of(records, url):
                name = member_of(record)
                if isinstance(data, bytes):
                    packed.append(record._replace(output_uri=f"{url}#{name}"))
                    yield name, data
                else:
                    failures.append(Failure.of(ImageRef(record.key, record.source_uri), "write", data))

        with metrics.timed("pack"), tempfile.NamedTemporaryFile(suffix=shards.EXTENSIONS[self._layout.kind]) as file:
            shards.write_shard(file.name, images())
            storage.upload(file.name, url)
        metrics.count(metrics.SHARDS_WRITTEN)
        yield from packed
        yield from (beam.pvalue.TaggedOutput("failures", failure) for failure in failures)


def member_of(record: ImageRecord) -> str:
    """An image's name in its shard: its key with the extension of its file, staged or packed."""
    return record.key + "." + record.output_uri.rpartition(".")[2]


def _is_packed(record: ImageRecord, url: str) -> bool:
    return record.output_uri == f"{url}#{member_of(record)}"


def _images_of(records: list[ImageRecord], url: str) -> Iterator[tuple[ImageRecord, bytes | Exception]]:
    """The encoded image of each record, from its staged file or the present shard, or why there is none."""
    staged = prefetch(_read_staged, [record for record in records if not _is_packed(record, url)])
    present = shards.read_shard(url)
    name, data = "", b""
    for record in records:
        try:
            if _is_packed(record, url):
                while name < member_of(record):  # both are sorted by name
                    name, data = next(present)
                found = data if name == member_of(record) else b""
            else:
                found = next(staged).result()
            if hashlib.sha256(found).hexdigest() != record.sha256:
                raise ImageError(Cause.DAMAGED, f"{record.output_uri} isn't what was written there")
        except StopIteration:
            yield record, ImageError(Cause.DAMAGED, f"{record.output_uri} isn't there any more")
        except (tarfile.TarError, pa.ArrowException) as error:
            yield record, ImageError(Cause.DAMAGED, f"{url} can't be read: {storage.one_line(error)}")
        except Exception as error:  # one bad image costs one row, whatever the store raised
            yield record, error
        else:
            yield record, found


def _read_staged(record: ImageRecord) -> bytes:
    return storage.read_bytes(record.output_uri)


@beam.typehints.with_input_types(str)
class RemoveStaging(beam.PTransform):
    """Removes what a job with shards needed only until they were all written, and shards of another number.

    To be applied to the URLs of the manifest (str -> int, the number of files removed): it waits for all of them.

    Args:
        layout, num_shards: as in `PackShards`.
    """

    def __init__(self, layout: OutputLayout, num_shards: int = 16) -> None:
        super().__init__()
        self._layout, self._num_shards = layout, num_shards

    @no_annotations
    def expand(self, manifest: beam.PCollection[str]) -> beam.PCollection[int]:
        """Listed by one worker, removed by all."""
        check_windows(self, manifest)
        return (
            manifest
            | "AllWritten" >> beam.combiners.Count.Globally()
            | "ListStaging" >> beam.FlatMap(_leftovers, self._layout, self._num_shards)
            | "Spread" >> beam.Reshuffle()
            | "Remove" >> beam.Map(_remove_all)
        )


def _leftovers(written: int, layout: OutputLayout, num_shards: int) -> Iterator[list[str]]:
    staging = layout.url(STAGING)
    batch: list[str] = []
    for listed in listing.list_folder(staging) if folders.is_flat(staging) else ():
        batch.append(listed.uri)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    storage.remove_folder(staging)
    for alpha in layout.alphas:
        wanted = {layout.shard(alpha, index, num_shards) for index in range(num_shards)}
        batch += [file.url for file in layout.find_shards(alpha) if file.url not in wanted]
    yield batch


def _remove_all(urls: list[str]) -> int:
    return sum(1 for future in prefetch(storage.remove, urls) if future.result() is None)
