"""Shards as output: images are written one by one to a staging folder, and then packed.

Pixels don't cross a shuffle for that, and a job that was killed has lost none of the images that it had finished.
"""

import glob
import hashlib
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.typehints.decorators import no_annotations

from ot_core import Cause, ImageError, UserError, listing, shards, storage
from ot_core.overlap import prefetch
from transforms import metrics
from transforms.elements import Failure, ImageRecord, ImageRef
from transforms.images import IMAGES, folder_of

_STAGING_ROOT = ".staging"
#: Where images wait below an output until they are packed.
STAGING = f"{_STAGING_ROOT}/{IMAGES}"
_SHARD = re.compile(r"shard-\d{5}-of-\d{5}\.(tar|parquet)")
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
        output: URL of the output's root.
        kind: webdataset (tar) or parquet.
        num_shards: for each alpha.
        alphas: as in `TransportImages`.

    Raises:
        UserError: if the kind isn't known.
    """

    def __init__(self, output: str, kind: str, num_shards: int = 16, alphas: Sequence[float] = (0.0,)) -> None:
        super().__init__()
        self._num_shards, self._alphas = num_shards, tuple(alphas)
        self._pack = _PackShardDoFn(output, kind, num_shards, alphas)

    @no_annotations
    def expand(self, records: beam.PCollection[ImageRecord]) -> PackOutcome:
        """Rows are grouped by shard; images stay in storage until their shard is written."""
        every_shard = [((alpha, index), None) for alpha in self._alphas for index in range(self._num_shards)]
        packed = (
            (
                records.pipeline | "EveryShard" >> beam.Create(every_shard),
                records | "AssignShard" >> beam.Map(_with_shard, self._num_shards),
            )
            | "Flatten" >> beam.Flatten()
            | "GroupByShard" >> beam.GroupByKey()
            | "PackShard" >> beam.ParDo(self._pack).with_outputs("failures", main="records")
        )
        return PackOutcome(packed.records, packed.failures)


def _with_shard(record: ImageRecord, num_shards: int) -> tuple[tuple[float, int], tuple[Any, ...]]:
    return (record.alpha, zlib.crc32(record.key.encode()) % num_shards), tuple(record)


class _PackShardDoFn(beam.DoFn):
    def __init__(self, output: str, kind: str, num_shards: int, alphas: Sequence[float]) -> None:
        if kind not in shards.EXTENSIONS:
            raise UserError(f"output format {kind}: expected one of {', '.join(shards.EXTENSIONS)}")
        self._folders = {alpha: storage.join(output, folder_of(alpha, alphas)) for alpha in alphas}
        self._extension, self._num_shards = shards.EXTENSIONS[kind], num_shards

    def process(self, element: tuple[tuple[float, int], Iterable[tuple[Any, ...] | None]]) -> Iterator[Any]:
        (alpha, index), rows = element
        url = storage.join(self._folders[alpha], f"shard-{index:05d}-of-{self._num_shards:05d}{self._extension}")
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

        with metrics.timed("pack"), tempfile.NamedTemporaryFile(suffix=self._extension) as file:
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
        output, kind, num_shards, alphas: as in `PackShards`.
    """

    def __init__(self, output: str, kind: str, num_shards: int = 16, alphas: Sequence[float] = (0.0,)) -> None:
        super().__init__()
        self._output, self._kind, self._num_shards, self._alphas = output, kind, num_shards, tuple(alphas)

    @no_annotations
    def expand(self, manifest: beam.PCollection[str]) -> beam.PCollection[int]:
        """Listed by one worker, removed by all."""
        folders = [storage.join(self._output, folder_of(alpha, self._alphas)) for alpha in self._alphas]
        keep = f"-of-{self._num_shards:05d}{shards.EXTENSIONS[self._kind]}"
        return (
            manifest
            | "AllWritten" >> beam.combiners.Count.Globally()
            | "ListStaging" >> beam.FlatMap(_leftovers, storage.join(self._output, _STAGING_ROOT), folders, keep)
            | "Spread" >> beam.Reshuffle()
            | "Remove" >> beam.Map(_remove_all)
        )


def _leftovers(written: int, staging: str, folders: Sequence[str], keep: str) -> Iterator[list[str]]:
    batch: list[str] = []
    for listed in listing.list_folder(staging) if listing.is_flat(staging) else ():
        batch.append(listed.uri)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    storage.remove_folder(staging)
    for folder in folders:
        found = storage.match(storage.join(glob.escape(folder), "shard-*-of-*"))
        batch += [url for url in found if _SHARD.fullmatch(url.rpartition("/")[2]) and not url.endswith(keep)]
    yield batch


def _remove_all(urls: list[str]) -> int:
    return sum(1 for future in prefetch(storage.remove, urls) if future.result() is None)
