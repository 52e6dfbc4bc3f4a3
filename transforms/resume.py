"""Going on where an earlier run stopped: what the output already holds isn't done again.

A manifest is of the job that `job.json` tells of (`transforms.starting` removes those of others), and so is what it
names, however old: a copied output may have lost its files' times. Of the files that no manifest names, those belong to
the job that were written since it was started.
"""

import hashlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow.parquet as pq
from apache_beam.typehints.decorators import no_annotations
from PIL import Image

from ot_core import listing, storage
from ot_core.errors import one_line
from ot_core.layout import FOLDERS, STARTED, OutputLayout
from ot_core.results import read_job, started
from transforms import metrics
from transforms.elements import ImageRecord, ImageRef
from transforms.packing import member_of
from transforms.windows import check_windows

# Plain tuples of what a row or a reference holds: Beam would pickle rows of several kinds that meet by key.
_Row = tuple[tuple[Any, ...], float, bool | None]
_File = tuple[float, str, float]
_Shard = tuple[float, str]


def _manifests(layout: OutputLayout) -> dict[str, float]:
    """URLs of the manifest of this job, and when they were written."""
    job = read_job(layout.root)
    # Earlier versions, which didn't tell of folders, left manifests of other jobs there.
    since = 0.0 if job and FOLDERS in job and STARTED not in job else started(layout.root, job)
    times = {file.url: file.details.modified or 0.0 for file in layout.find_manifests()}
    return {url: modified for url, modified in times.items() if modified >= since}


class Remaining(NamedTuple):
    """Result of `SkipDone`.

    Attributes:
        images: those still to be done.
        records: the manifest's rows of the others.
        outdated: the manifest's rows of those still to be done whose files are there, made from another version.
        unneeded: URLs of staged images that the manifest has in a shard; a job leaves them that is killed at its end.
    """

    images: beam.PCollection[ImageRef]
    records: beam.PCollection[ImageRecord]
    outdated: beam.PCollection[ImageRecord]
    unneeded: beam.PCollection[str]


@beam.typehints.with_input_types(ImageRef)
class SkipDone(beam.PTransform):
    """Leaves out the images that an output holds already: ImageRef -> `Remaining`.

    An image is done if for each alpha
    - its file or shard is there and the manifest has it, made from this version of its source (the counter
      `images_skipped`); or
    - its file is younger than its source, and than the manifest where that has another version of it, as a killed job
      leaves it. Its row is then made by reading it (the counters `images_skipped` and `images_recovered`); where that
      fails, it is done again.
    The others are counted in `images_new`, or in `images_changed` where the manifest has them, but of another version
    of their source, without their file, or not of all alphas: an image that failed is new each time. Of an image that
    lacks some alphas, these alone are made.
    Rows of images that aren't among these inputs, or that can't be made anew (`ReplaceOutdated`), are kept while their
    files are there. The output is listed once; no request is made for an image that is in the manifest. Where the
    output can't be listed, or a file of the manifest can't be read, the job fails: what isn't seen would count as not
    done, and its rows be lost.

    Args:
        layout: of the output, which was started by `starting.start_job`.
    """

    def __init__(self, layout: OutputLayout) -> None:
        super().__init__()
        self._layout = layout

    @no_annotations
    def expand(self, refs: beam.PCollection[ImageRef]) -> Remaining:
        """References, rows and files meet by key."""
        check_windows(self, refs)
        rows = (
            refs.pipeline
            | "Once" >> beam.Create([self._layout])
            | "Manifests" >> beam.FlatMap(_manifests_with_shards)
            | "SpreadManifests" >> beam.Reshuffle()
            | "ReadManifests" >> beam.FlatMap(_read_manifest)
        )
        files = (
            refs.pipeline
            | "Alphas" >> beam.Create(self._layout.alphas)
            | "ListOutput" >> beam.FlatMap(_list_output, self._layout)
        )
        sides = {"refs": refs | "KeyByKey" >> beam.Map(_by_key), "rows": rows, "files": files}
        decided = (
            sides
            | "GroupByKey" >> beam.CoGroupByKey()
            | "Decide"
            >> beam.ParDo(_DecideDoFn(self._layout.alphas)).with_outputs(
                "records", "outdated", "unneeded", main="images"
            )
        )
        return Remaining(decided.images, decided.records, decided.outdated, decided.unneeded)


@beam.typehints.with_input_types(ImageRecord)
@beam.typehints.with_output_types(ImageRecord)
class ReplaceOutdated(beam.PTransform):
    """Adds the outdated rows that weren't made anew: ImageRecord -> ImageRecord.

    The result of a former version of an image is kept until there is a newer one: making that may fail.

    Args:
        outdated: as `SkipDone` gives them.
    """

    def __init__(self, outdated: beam.PCollection[ImageRecord]) -> None:
        super().__init__()
        self._outdated = outdated

    @no_annotations
    def expand(self, records: beam.PCollection[ImageRecord]) -> beam.PCollection[ImageRecord]:
        """Rows meet by key and alpha."""
        check_windows(self, records)
        sides = {
            "made": records | "KeyMade" >> beam.Map(_by_key_and_alpha),
            "outdated": self._outdated | "KeyOutdated" >> beam.Map(_by_key_and_alpha),
        }
        return sides | "GroupByKeyAndAlpha" >> beam.CoGroupByKey() | "Replace" >> beam.FlatMap(_latest)


def _by_key_and_alpha(record: ImageRecord) -> tuple[tuple[str, float], ImageRecord]:
    return (record.key, record.alpha), record


def _latest(element: tuple[tuple[str, float], Mapping[str, Iterable[ImageRecord]]]) -> Iterator[ImageRecord]:
    _, found = element
    yield from list(found["made"]) or found["outdated"]


def _by_key(ref: ImageRef) -> tuple[str, tuple[Any, ...]]:
    return ref.key, tuple(ref)


def _manifests_with_shards(layout: OutputLayout) -> Iterator[tuple[str, float, dict[_Shard, str]]]:
    """URL and time of each manifest, and the URL of each shard that is there."""
    present: dict[_Shard, str] = {}
    for alpha in layout.alphas:
        for shard in layout.find_shards(alpha):
            present[alpha, shard.name] = shard.url
    for url, written in _manifests(layout).items():
        yield url, written, present


def _read_manifest(manifest: tuple[str, float, Mapping[_Shard, str]]) -> Iterator[tuple[str, _Row]]:
    """Rows with the time of the manifest and, where their image is in a shard, whether that is there."""
    url, written, present = manifest
    with storage.open_file(url) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1000, columns=list(ImageRecord._fields)):
            for row in batch.to_pylist():
                record, packed = ImageRecord(**row), None
                member = "#" + member_of(record)
                if record.output_uri.endswith(member):
                    shard = record.output_uri.removesuffix(member).rpartition("/")[2]
                    # The output may be called by another name now: relative, or copied to another place.
                    shard_url = present.get((record.alpha, shard))
                    packed = shard_url is not None
                    record = record._replace(output_uri=f"{shard_url}{member}")
                yield record.key, (tuple(record), written, packed)


def _list_output(alpha: float, layout: OutputLayout) -> Iterator[tuple[str, _File]]:
    """Images that are there, and when they were written; 0 for one that counts only where a manifest names it."""
    since = started(layout.root, read_job(layout.root))
    for listed in listing.list_folder(layout.written_folder(alpha)):
        modified = listed.details.modified or 0.0
        if listed.uri.endswith(layout.extension):
            written = modified if modified >= since else 0.0
            yield listed.key, (alpha, layout.written_image(alpha, listed.key), written)


class _Kept(NamedTuple):
    """A row of the manifest whose image is there, and when the manifest was written."""

    written: float
    record: ImageRecord
    packed: bool


class _DecideDoFn(beam.DoFn):
    def __init__(self, alphas: tuple[float, ...]) -> None:
        self._alphas = alphas

    def process(self, element: tuple[str, Mapping[str, Iterable[Any]]]) -> Iterator[Any]:
        _, found = element
        files: dict[float, _File] = {file[0]: file for file in found["files"]}
        rows = [(ImageRecord(*fields), written, packed) for fields, written, packed in found["rows"]]
        kept = _kept(rows, files)
        refs = [ImageRef(*fields) for fields in found["refs"]]
        if not refs:
            yield from _done(kept.values(), files)
            return
        ref = refs[0]
        # A file that is older than a row of another version may be of that version. Some stores tell whole seconds: on
        # a tie it is safer to do the image again.
        others = [written for record, written, _ in rows if not ref.version or record.source_version != ref.version]
        latest = max([ref.modified or 0.0, *others])
        timed = ref.modified is not None or not rows
        done: list[_Kept] = []
        missing: list[float] = []
        recovered = False
        for alpha in self._alphas:
            if alpha in kept and _same(kept[alpha].record.source_version, ref.version):
                done.append(kept[alpha])
                continue
            timely = timed and alpha in files and files[alpha][2] > latest
            record = _record_of(ref, *files[alpha][:2]) if timely else None
            if record is None:
                missing.append(alpha)
            else:
                done.append(_Kept(files[alpha][2], record, packed=False))
                recovered = True
        if missing:
            metrics.count(metrics.IMAGES_CHANGED if rows else metrics.IMAGES_NEW)
            for alpha in missing:
                if alpha in kept:
                    yield beam.pvalue.TaggedOutput("outdated", kept[alpha].record)
            yield ref._replace(alphas=tuple(missing) if done else ())
        else:
            metrics.count(metrics.IMAGES_SKIPPED)
            metrics.count(metrics.IMAGES_RECOVERED, int(recovered))
        yield from _done(done, files)


def _kept(rows: Iterable[tuple[ImageRecord, float, bool | None]], files: Mapping[float, _File]) -> dict[float, _Kept]:
    """The latest row of each alpha whose image is there; a killed job may leave two manifests of other numbers."""
    kept: dict[float, _Kept] = {}
    for record, written, packed in rows:
        if packed is None and record.alpha in files:
            row = _Kept(written, record._replace(output_uri=files[record.alpha][1]), packed=False)
        elif packed:
            row = _Kept(written, record, packed=True)
        else:
            continue
        if record.alpha not in kept or kept[record.alpha].written < written:
            kept[record.alpha] = row
    return kept


def _done(rows: Iterable[_Kept], files: Mapping[float, _File]) -> Iterator[beam.pvalue.TaggedOutput]:
    """Rows that stay, and staged files that they make unneeded."""
    for written, record, packed in rows:
        yield beam.pvalue.TaggedOutput("records", record)
        if packed and record.alpha in files and files[record.alpha][2] <= written:
            yield beam.pvalue.TaggedOutput("unneeded", files[record.alpha][1])


def _same(version: str, other: str) -> bool:
    """Versions that the store doesn't tell can't differ."""
    return version == other or not version or not other


def _record_of(ref: ImageRef, alpha: float, url: str) -> ImageRecord | None:
    """The row of an image that an earlier run wrote; None where it can't be read."""
    try:
        data = storage.read_bytes(url)
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Exception as error:  # whatever the store or Pillow raised, doing the image again puts it right
        logging.getLogger(__name__).warning("%s: done again, for it can't be read (%s)", url, one_line(error))
        return None
    digest = hashlib.sha256(data).hexdigest()
    size = width, height, len(data)
    return ImageRecord(ref.key, ref.source_uri, url, alpha, *size, digest, 0.0, ref.version, ref.group)
