"""Shards as output: images are written one by one to a staging folder, and then packed.

Pixels don't cross a shuffle for that, and a job that was killed has lost none of the images that it had finished.
Nothing is removed before the manifest names what replaces it.
"""

import hashlib
import logging
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations

from ot_core import Cause, ImageError, UserError, listing, shards, storage
from ot_core.errors import as_image_error, one_line
from ot_core.layout import OutputLayout
from ot_core.overlap import Share, prefetch
from transforms import metrics
from transforms.elements import Failure, ImageRecord, ImageRef
from transforms.threaded import ThreadedDoFn
from transforms.windows import check_windows

#: Alpha and number of a shard, and a row for it, or none: a shard may be without images.
_OfShard = tuple[tuple[float, int], ImageRecord | None]


class PackOutcome(NamedTuple):
    """Result of `PackShards`.

    Attributes:
        records: rows whose images are in shards now.
        failures: rows that could not be packed, and rows whose image is no longer in its shard.
        unneeded: URLs of files that nobody needs once the manifest of these records is written: staged images that are
            in a shard now, and shards without images.
    """

    records: beam.PCollection[ImageRecord]
    failures: beam.PCollection[Failure]
    unneeded: beam.PCollection[str]


@beam.typehints.with_input_types(ImageRecord)
class PackShards(beam.PTransform):
    """Packs images into `<output>/images/shard-00000-of-0000n.tar`, or `.parquet`: ImageRecord -> `PackOutcome`.

    An image's shard depends on its key alone, and shards are sorted by name: the same images give the same bytes,
    whenever and by whatever run each was made. A shard that gets new images is written anew, together with those of
    its images that are among the records; one without any news isn't touched. The new rows' `output_uri` is
    `<shard>#<member>`.

    A shard is only ever replaced by one that holds all images of the records that are in it. Where it can't be read, or
    the new one can't be written, its rows stay as they are and its new images are failures. Where it has lost images,
    they are failures, too. New images then stay where they were written, and the next run packs them.

    A worker holds the rows of one shard in memory, not its images, and needs disk space for two shards.

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
        pack = beam.ParDo(_PackShardDoFn(self._layout, self._num_shards))
        packed = (
            (
                records.pipeline | "EveryShard" >> beam.Create(every_shard).with_output_types(_OfShard),
                records | "AssignShard" >> beam.Map(_with_shard, self._num_shards).with_output_types(_OfShard),
            )
            | "Flatten" >> beam.Flatten()
            | "GroupByShard" >> beam.GroupByKey()
            | "PackShard" >> pack.with_outputs("failures", "unneeded", main="records")
        )
        return PackOutcome(packed.records, packed.failures, packed.unneeded)


def _with_shard(record: ImageRecord, num_shards: int) -> _OfShard:
    return (record.alpha, zlib.crc32(record.key.encode()) % num_shards), record


class _PackShardDoFn(beam.DoFn):
    def __init__(self, layout: OutputLayout, num_shards: int) -> None:
        self._layout, self._num_shards = layout, num_shards

    def process(self, element: tuple[tuple[float, int], Iterable[ImageRecord | None]]) -> Iterator[Any]:
        (alpha, index), rows = element
        url = self._layout.shard(alpha, index, self._num_shards)
        records = sorted((row for row in rows if row is not None), key=member_of)
        if not records:
            yield beam.pvalue.TaggedOutput("unneeded", url)
        elif all(_is_packed(record, url) for record in records):
            yield from records
        else:
            with metrics.timed("pack"):
                problems = _pack(records, url)
            for record in records:
                yield from _outputs(record, url, problems.get(record))


def _outputs(record: ImageRecord, url: str, problem: Exception | None) -> Iterator[Any]:
    if problem is not None:
        failure = Failure.of(ImageRef(record.key, record.source_uri), "write", problem)
        yield beam.pvalue.TaggedOutput("failures", failure)
    elif _is_packed(record, url):
        yield record
    else:
        yield record._replace(output_uri=f"{url}#{member_of(record)}")
        yield beam.pvalue.TaggedOutput("unneeded", record.output_uri)


def member_of(record: ImageRecord) -> str:
    """An image's name in its shard: its key with the extension of its file, staged or packed."""
    return record.key + "." + record.output_uri.rpartition(".")[2]


def _is_packed(record: ImageRecord, url: str) -> bool:
    return record.output_uri == f"{url}#{member_of(record)}"


def _pack(records: list[ImageRecord], url: str) -> dict[ImageRecord, Exception]:
    """Replaces a shard by one with these images, unless it would lose any; gives what is wrong with which of them."""
    extension = url[url.rindex(".") :]
    new = [record for record in records if not _is_packed(record, url)]
    with tempfile.TemporaryDirectory() as folder:
        present, anew = (os.path.join(folder, name + extension) for name in ("present", "anew"))
        try:
            problems = _write_anew(records, url, present, anew)
            lost = [record for record in problems if _is_packed(record, url)]
            if lost:
                said = f"not packed, for {url} has lost {len(lost)} images; the next run with --resume makes them again"
                waits = ImageError(Cause.DAMAGED, said)
                return {record: problems[record] if _is_packed(record, url) else waits for record in [*new, *lost]}
            if len(problems) < len(records):
                storage.upload(anew, url)
                metrics.count(metrics.SHARDS_WRITTEN)
        except Exception as error:  # whatever the store or the disk raised, the shard is what it was
            known = as_image_error(error)
            waits = ImageError(known.cause, f"not packed, for {url} could not be written anew: {known.message}")
            return dict.fromkeys(new, waits)
        return problems


def _write_anew(records: list[ImageRecord], url: str, present: str, anew: str) -> dict[ImageRecord, Exception]:
    """Fetches a shard, writes one with these images, and gives what is wrong with those that could not be had.

    The shard is fetched whole before it is read: what is wrong afterwards is wrong with the file.

    Raises:
        OSError: if it is there but can't be fetched.
    """
    problems: dict[ImageRecord, Exception] = {}

    def images() -> Iterator[tuple[str, bytes]]:
        for record, found in _images_of(records, url, present):
            if isinstance(found, bytes):
                yield member_of(record), found
            else:
                problems[record] = found

    try:
        storage.download(url, present)
    except FileNotFoundError:
        shards.write_shard(present, [])
    shards.write_shard(anew, images())
    return problems


def _images_of(records: list[ImageRecord], url: str, present: str) -> Iterator[tuple[ImageRecord, bytes | Exception]]:
    """The encoded image of each record, or why there is none.

    An image is taken from the present shard wherever it is there: the worker may be the second to do this.
    """
    staged = prefetch(_read_staged, (record for record in records if not _is_packed(record, url)))
    packed = _Members(present)
    for record in records:
        try:
            reading = None if _is_packed(record, url) else next(staged)
            found = packed.find(member_of(record))
            if not _is_of(record, found) and reading is not None:
                found = reading.result()
            if found is None:
                raise packed.problem or ImageError(Cause.DAMAGED, f"{record.output_uri} isn't there any more")
            if not _is_of(record, found):
                raise ImageError(Cause.DAMAGED, f"{record.output_uri} isn't what was written there")
        except Exception as error:  # one bad image costs one row, whatever the store raised
            yield record, error
        else:
            yield record, found


def _is_of(record: ImageRecord, data: bytes | None) -> bool:
    return data is not None and hashlib.sha256(data).hexdigest() == record.sha256


def _read_staged(record: ImageRecord) -> bytes:
    return storage.read_bytes(record.output_uri)


class _Members:
    """The images of a shard on this disk, to be asked for in the order of their names."""

    def __init__(self, path: str) -> None:
        self._images = shards.read_shard(path)
        self._name, self._data = "", b""
        self.problem: ImageError | None = None

    def find(self, name: str) -> bytes | None:
        """The image of that name; None where there is none, or where the shard is damaged before it."""
        try:
            while self._name < name:
                self._name, self._data = next(self._images, ("\U0010ffff", b""))
        except Exception as error:  # tarfile and pyarrow have many, and none is about anything but the file
            self.problem = ImageError(Cause.DAMAGED, f"its shard can't be read any further: {one_line(error)}")
            self._name = "\U0010ffff"
        return self._data if self._name == name else None


@beam.typehints.with_input_types(str)
class RemoveUnneeded(beam.PTransform):
    """Removes files that nobody needs once a manifest is written: str -> the number removed.

    What is staged and isn't in a shard stays, for a run that asks for it again. A file that can't be removed is told in
    the log only: all that was to be done is done.

    Args:
        layout: of the output.
        manifest: URLs of the files of the manifest, which is waited for; None where it is written already.
    """

    def __init__(self, layout: OutputLayout, manifest: beam.PCollection[str] | None = None) -> None:
        super().__init__()
        self._layout, self._manifest = layout, manifest

    @no_annotations
    def expand(self, urls: beam.PCollection[str]) -> beam.PCollection[int]:
        """Removed by all workers; the staging folder itself by one, where nothing is left in it."""
        check_windows(self, urls)
        written = []
        if self._manifest is not None:
            count = self._manifest | "CountWritten" >> beam.combiners.Count.Globally()
            written.append(beam.pvalue.AsSingleton(count))
        return (
            urls
            | "Spread" >> beam.Reshuffle()
            | "Remove" >> beam.ParDo(_RemoveDoFn(), *written)
            | "CountRemoved" >> beam.CombineGlobally(sum)
            | "RemoveStaging" >> beam.Map(_remove_staging, self._layout.staging)
        )


@beam.typehints.with_output_types(int)
class _RemoveDoFn(ThreadedDoFn):
    def process(self, element: str, written: int = 0) -> Iterator[int]:
        yield from super().process(element)

    def work(self, element: str, shares: Sequence[Share]) -> list[int]:
        try:
            storage.remove(element)
        except OSError as error:
            logging.getLogger(__name__).warning("%s: can't be removed (%s)", element, one_line(error))
            return [0]
        return [1]


def _remove_staging(removed: int, staging: str) -> int:
    try:
        if next(iter(listing.list_folder(staging)), None) is None:
            storage.remove_folder(staging)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: can't be removed (%s)", staging, one_line(error))
    return removed
