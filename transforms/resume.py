"""Going on where an earlier run stopped: what the output already holds isn't done again.

What a run is about is written to `job.json` at the output's root before it starts. Everything written after that file
belongs to the same run or to one that resumed it; whatever is older is of another job and counts for nothing.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import fsspec
import pyarrow.parquet as pq
from apache_beam.typehints.decorators import no_annotations
from PIL import Image

from ot_core import UserError, listing, storage
from ot_core.images import OUTPUT_FORMATS
from transforms import metrics
from transforms.elements import ImageRecord, ImageRef
from transforms.images import folder_of
from transforms.records import schema_of

_JOB = "job.json"
_Row = tuple[tuple[Any, ...], float]
_File = tuple[float, str, float]


def start_job(output: str, settings: Mapping[str, Any], resume: bool) -> None:
    """Notes what the images of an output are made with; call it on the launching machine, before the job.

    Args:
        output: URL of the output's root.
        settings: what decides the images' bytes, as JSON has it.
        resume: whether to go on with what is there, which must have been made with the same settings.

    Raises:
        UserError: if it wasn't, or its manifest isn't one of ours.
    """
    url = storage.join(output, _JOB)
    if resume and storage.details(url) is not None:
        try:
            earlier = dict(json.loads(storage.read_bytes(url)))
        except ValueError:
            raise UserError(f"--resume: {url} isn't readable; leave --resume out to do everything again") from None
        for name, value in settings.items():
            if earlier.get(name) != value:
                raise UserError(
                    f"--resume: {output} was made with {name} {earlier.get(name)}, not {value}; "
                    "use another --output, or leave --resume out to do everything again"
                )
        for manifest in _manifests(output):
            storage.check_columns(manifest, schema_of(ImageRecord))
        storage.remove_temporary(output)
        return
    storage.write_bytes(url, json.dumps(settings, indent=1).encode())


def _manifests(output: str) -> list[str]:
    """URLs of the manifest of this job."""
    started = _modified(storage.join(output, _JOB))
    found = storage.match(storage.join(output, "manifest-*.parquet"))
    return [url for url in found if _modified(url) >= started]


def _modified(url: str) -> float:
    details = storage.details(url)
    return 0.0 if details is None or details.modified is None else details.modified


class Remaining(NamedTuple):
    """Result of `SkipDone`: the images still to be done, and the manifest's rows of the others."""

    images: beam.PCollection[ImageRef]
    records: beam.PCollection[ImageRecord]


@beam.typehints.with_input_types(ImageRef)
class SkipDone(beam.PTransform):
    """Leaves out the images that an output holds already: ImageRef -> ImageRef, ImageRecord.

    An image is done if its files are there and
    - the manifest has it, made from this version of its source (the counter `images_skipped`); or
    - the files are younger than its source and the manifest, as a killed job leaves them. Their rows are then made
      by reading them (the counters `images_skipped` and `images_recovered`).
    Rows of images that aren't among these inputs are kept while their files are there. The output is listed once; no
    request is made for an image that is in the manifest.

    Args:
        output, alphas, format: as in `TransportImages`; the output was started by `start_job`.
    """

    def __init__(self, output: str, alphas: Sequence[float], format: str) -> None:
        super().__init__()
        self._output, self._alphas, self._format = output, tuple(alphas), format

    @no_annotations
    def expand(self, refs: beam.PCollection[ImageRef]) -> Remaining:
        """References, rows and files meet by key."""
        rows = (
            refs.pipeline
            | "Once" >> beam.Create([self._output])
            | "Manifests" >> beam.FlatMap(_manifests)
            | "SpreadManifests" >> beam.Reshuffle()
            | "ReadManifests" >> beam.ParDo(_ReadManifestDoFn())
        )
        folders = [(alpha, folder_of(alpha, self._alphas)) for alpha in self._alphas]
        files = (
            refs.pipeline
            | "Folders" >> beam.Create(folders)
            | "ListOutput" >> beam.ParDo(_ListOutputDoFn(self._output, OUTPUT_FORMATS[self._format]))
        )
        sides = {"refs": refs | "KeyByKey" >> beam.Map(_by_key), "rows": rows, "files": files}
        decided = (
            sides
            | "GroupByKey" >> beam.CoGroupByKey()
            | "Decide" >> beam.ParDo(_DecideDoFn(self._alphas)).with_outputs("records", main="images")
        )
        return Remaining(decided.images, decided.records)


def _by_key(ref: ImageRef) -> tuple[str, tuple[Any, ...]]:
    return ref.key, tuple(ref)


class _ReadManifestDoFn(beam.DoFn):
    def process(self, element: str) -> Iterator[tuple[str, _Row]]:
        written = _modified(element)
        with fsspec.open(element, "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=1000, columns=list(ImageRecord._fields)):
                for row in batch.to_pylist():
                    yield row["key"], (tuple(ImageRecord(**row)), written)


class _ListOutputDoFn(beam.DoFn):
    def __init__(self, output: str, extension: str) -> None:
        self._output, self._extension = output, extension

    def process(self, element: tuple[float, str]) -> Iterator[tuple[str, _File]]:
        alpha, folder = element
        started = _modified(storage.join(self._output, _JOB))
        for listed in listing.list_folder(storage.join(self._output, folder)):
            modified = listed.details.modified
            if listed.uri.endswith(self._extension) and modified is not None and modified >= started:
                url = storage.join(self._output, folder, listed.key + self._extension)
                yield listed.key, (alpha, url, modified)


class _DecideDoFn(beam.DoFn):
    def __init__(self, alphas: tuple[float, ...]) -> None:
        self._alphas = alphas

    def process(self, element: tuple[str, Mapping[str, Iterable[Any]]]) -> Iterator[Any]:
        _, found = element
        files: dict[float, _File] = {file[0]: file for file in found["files"]}
        rows = {ImageRecord(*fields).alpha: (ImageRecord(*fields), written) for fields, written in found["rows"]}
        refs = [ImageRef(*fields) for fields in found["refs"]]
        kept = [record for alpha, (record, _) in sorted(rows.items()) if alpha in files]
        if not refs:
            yield from (beam.pvalue.TaggedOutput("records", record) for record in kept)
            return
        ref = refs[0]
        if set(files) >= set(self._alphas):
            if len(kept) == len(self._alphas) and all(_same(record.source_version, ref.version) for record in kept):
                metrics.count(metrics.IMAGES_SKIPPED)
                yield from (beam.pvalue.TaggedOutput("records", record) for record in kept)
                return
            latest = max([ref.modified or 0.0, *(written for _, written in rows.values())])
            # Some stores tell whole seconds: on a tie it is safer to do the image again.
            if all(file[2] > latest for file in files.values()) and (ref.modified is not None or not rows):
                recovered = [_record_of(ref, *files[alpha][:2]) for alpha in self._alphas]
                metrics.count(metrics.IMAGES_SKIPPED)
                metrics.count(metrics.IMAGES_RECOVERED)
                yield from (beam.pvalue.TaggedOutput("records", record) for record in recovered)
                return
        yield ref


def _same(version: str, other: str) -> bool:
    """Versions that the store doesn't tell can't differ."""
    return version == other or not version or not other


def _record_of(ref: ImageRef, alpha: float, url: str) -> ImageRecord:
    data = storage.read_bytes(url)
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    digest = hashlib.sha256(data).hexdigest()
    return ImageRecord(ref.key, ref.source_uri, url, alpha, width, height, len(data), digest, 0.0, ref.version)
