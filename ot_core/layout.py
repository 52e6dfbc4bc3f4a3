"""Where things are in an output of transport: the one home of its files' names.

    job.json                                    what the images are made with, and where they are
    images/<key>.png                            of a single alpha
    images/alpha=0.50/<key>.png                 of several
    images-alpha=0.50/<key>.png                 of one that was added to a single one: `images/` may hold any key
    <any of these>/shard-00000-of-00016.tar     instead, of an output in shards
    .staging/<any of these>/<key>.png           of an output in shards, until they are packed
    manifest-00000-of-00001.parquet             a row for each image
    failures-00000-of-00001.parquet             a row for each image that could not be processed
    drift.json, drift.safetensors, drift/<group>.safetensors

Files are found by listing a folder and matching the names: a URL that a user chose is never part of a pattern.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import pyarrow.parquet as pq

from ot_core import shards, storage
from ot_core.errors import UserError
from ot_core.images import OUTPUT_FORMATS

IMAGES: Final = "images"
STAGING: Final = ".staging"
JOB: Final = "job.json"
MANIFEST: Final = "manifest"
FAILURES: Final = "failures"
#: A row for each image compared, in a report.
QUALITY: Final = "images"
SHARD: Final = "shard"
DRIFT: Final = "drift.json"
STATISTICS: Final = "drift.safetensors"
DRIFT_OF_GROUPS: Final = "drift"
#: Of job.json: the folder of each alpha's images; when the output was started, where that isn't when job.json was
#: written; and whose results are being removed.
FOLDERS: Final = "folders"
STARTED: Final = "started"
REPLACES: Final = "replaces"
#: How results are kept: a file for each, or in shards.
FILES: Final = "files"
KINDS: Final = (FILES, *shards.EXTENSIONS)
#: The folders that an alpha's images may be in.
_FOLDER = re.compile(rf"{IMAGES}(?:[/-]alpha=-?\d+\.\d\d)?")
#: What else may be in an output.
_OTHERS = (STAGING, DRIFT, STATISTICS, DRIFT_OF_GROUPS)
_NUMBERED = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})(\.[a-z]+)")


def numbered(name: str, index: int, count: int, extension: str = ".parquet") -> str:
    """The name of one of several files that together are one thing, `name-00000-of-00001.parquet`."""
    return f"{name}-{index:05d}-of-{count:05d}{extension}"


class NumberedFile(NamedTuple):
    """One of several files that together are one thing.

    Attributes:
        url: where it is.
        number, total: which one of how many.
        details: as the store tells them.
    """

    url: str
    number: int
    total: int
    details: storage.FileDetails

    @property
    def name(self) -> str:
        """The last part of its URL."""
        return self.url.rpartition("/")[2]


def find_numbered(folder: str, name: str, extensions: Collection[str] = (".parquet",)) -> list[NumberedFile]:
    """The files of that name in a folder, whatever their count, in the order of their names.

    Raises:
        UserError: if the store can't be asked.
    """
    try:
        children = storage.children(folder)
    except OSError as error:
        raise UserError(f"{folder}: can't be listed ({storage.one_line(error)})") from None
    found = []
    for child, details in children.items():
        match = _NUMBERED.fullmatch(child)
        if match and match[1] == name and match[4] in extensions:
            found.append(NumberedFile(storage.join(folder, child), int(match[2]), int(match[3]), details))
    return found


class OutputLayout(NamedTuple):
    """Where an output's images and records are.

    Attributes:
        root: URL of the output.
        folders: of the images of each alpha, below the root.
        format: of the images, a name in `OUTPUT_FORMATS`.
        kind: one of `KINDS`.
    """

    root: str
    folders: Mapping[float, str]
    format: str = "png"
    kind: str = FILES

    @classmethod
    def of(cls, root: str, alphas: Sequence[float], format: str = "png", kind: str = FILES) -> OutputLayout:
        """The layout of a new output.

        Raises:
            UserError: if the format or kind isn't known, there is no alpha, or two are the same to two decimals.
        """
        if format not in OUTPUT_FORMATS:
            raise UserError(f"format {format}: expected one of {', '.join(OUTPUT_FORMATS)}")
        if kind not in KINDS:
            raise UserError(f"output format {kind}: expected one of {', '.join(KINDS)}")
        if not alphas or len({f"{alpha:.2f}" for alpha in alphas}) != len(alphas):
            raise UserError(f"alphas {list(alphas)}: expected at least one, all different to two decimals")
        if len(alphas) == 1:
            return cls(root, {alphas[0]: IMAGES}, format, kind)
        return cls(root, {alpha: f"{IMAGES}/alpha={alpha:.2f}" for alpha in alphas}, format, kind)

    @classmethod
    def of_job(cls, root: str, job: Mapping[str, Any]) -> OutputLayout:
        """The layout of an output with this `job.json`, which an earlier version may have written.

        Raises:
            UserError: if it makes no sense.
        """
        try:
            alphas = [float(alpha) for alpha in job["alpha"]]
            layout = cls.of(root, alphas, job.get("format", "png"), job.get("output_format", FILES))
            folders = [str(folder) for folder in job.get(FOLDERS, layout.folders.values())]
            if len(set(folders)) != len(alphas) or not all(map(_FOLDER.fullmatch, folders)):
                raise ValueError(f"folders {folders}")
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{storage.join(root, JOB)}: isn't as we write it ({storage.one_line(error)})") from None
        return layout._replace(folders=dict(zip(alphas, folders, strict=True)))

    def with_alphas(self, alphas: Sequence[float]) -> OutputLayout:
        """The layout with these alphas too; what is there stays where it is.

        Raises:
            UserError: if two alphas are the same to two decimals.
        """
        added = [alpha for alpha in alphas if alpha not in self.folders]
        self.of(self.root, [*self.folders, *added])
        between = "-" if IMAGES in self.folders.values() else "/"
        folders = {alpha: f"{IMAGES}{between}alpha={alpha:.2f}" for alpha in added}
        return self._replace(folders={**self.folders, **folders})

    @property
    def alphas(self) -> tuple[float, ...]:
        """Those that the output holds."""
        return tuple(self.folders)

    @property
    def packed(self) -> bool:
        """Whether the images are in shards."""
        return self.kind != FILES

    @property
    def extension(self) -> str:
        """Of an image's file, with the dot."""
        return OUTPUT_FORMATS[self.format]

    def url(self, *parts: str) -> str:
        """A URL below the output."""
        return storage.join(self.root, *parts)

    def folder(self, alpha: float) -> str:
        """URL of the folder of an alpha's images, or of its shards."""
        return self.url(self.folders[alpha])

    def places(self) -> list[str]:
        """URLs of the folders that images are written to."""
        return [*dict.fromkeys(map(self.folder, self.alphas)), self.url(STAGING)]

    def examples(self) -> list[str]:
        """URLs of files such as are written, in case a pattern names them."""
        if self.packed:
            images = [self.shard(alpha, 0, 16) for alpha in self.alphas]
        else:
            images = [self.image(alpha, key) for alpha in self.alphas for key in ("0", "0/0", "0/0/0")]
        return [*images, *(self.url(numbered(name, 0, 1)) for name in (MANIFEST, FAILURES))]

    def written_folder(self, alpha: float) -> str:
        """URL of the folder where an alpha's images are written at first: for shards, the staging folder."""
        return self.url(STAGING, self.folders[alpha]) if self.packed else self.folder(alpha)

    def written_image(self, alpha: float, key: str) -> str:
        """URL of the file that an image is written to at first."""
        return storage.join(self.written_folder(alpha), key + self.extension)

    def image(self, alpha: float, key: str) -> str:
        """URL of an image's file, of an output without shards."""
        return storage.join(self.folder(alpha), key + self.extension)

    def shard(self, alpha: float, index: int, count: int) -> str:
        """URL of a shard."""
        return storage.join(self.folder(alpha), numbered(SHARD, index, count, shards.EXTENSIONS[self.kind]))

    def find_shards(self, alpha: float) -> list[NumberedFile]:
        """The shards of an alpha that are there, of whatever count and kind."""
        return find_numbered(self.folder(alpha), SHARD, shards.EXTENSIONS.values())

    def find_manifests(self) -> list[NumberedFile]:
        """The files of the manifest that are there."""
        return find_numbered(self.root, MANIFEST)

    def find_failures(self) -> list[NumberedFile]:
        """The files of the failures that are there."""
        return find_numbered(self.root, FAILURES)


def statistics_of_group(output: str, group: str) -> str:
    """URL of the statistics of the images that were transported with a group's map; "" is where there are no groups."""
    return storage.join(output, DRIFT_OF_GROUPS, f"{group}.safetensors") if group else storage.join(output, STATISTICS)


def is_of_output(name: str) -> bool:
    """Whether an output has files or folders of that name at its root, besides `job.json`."""
    match = _NUMBERED.fullmatch(name)
    return (
        name in _OTHERS
        or bool(_FOLDER.fullmatch(name))
        or (match is not None and match[1] in (MANIFEST, FAILURES) and match[4] == ".parquet")
    )


class ManifestRow(NamedTuple):
    """Of a row of the manifest, what tells where its image is."""

    key: str
    alpha: float
    output_uri: str


def rows_of_manifest(url: str) -> Iterator[ManifestRow]:
    """The rows of a file of the manifest, some at a time in memory.

    Raises:
        UserError: if it can't be read, or isn't a manifest.
    """
    try:
        with storage.open_file(url) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=1000, columns=list(ManifestRow._fields)):
                for row in batch.to_pylist():
                    yield ManifestRow(**row)
    except (TypeError, ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
        raise UserError(f"{url}: can't be read ({storage.one_line(error)})") from None


def read_job(root: str) -> dict[str, Any] | None:
    """What `job.json` of an output says; None where there is none, or one that isn't ours.

    Raises:
        UserError: if the store can't be asked.
    """
    if root.startswith(("http://", "https://")):
        return None  # nobody writes there
    try:
        job = json.loads(storage.read_bytes(storage.join(root, JOB), max_bytes=2**20))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    except OSError as error:
        raise UserError(f"{storage.join(root, JOB)}: can't be read ({storage.one_line(error)})") from error
    return job if isinstance(job, dict) and "map_sha256" in job and isinstance(job.get("alpha"), list) else None


def started(root: str, job: Mapping[str, Any] | None) -> float:
    """When the job of an output was started, in seconds since 1970 by the store's clock; 0 where nothing tells it."""
    if job and isinstance(job.get(STARTED), int | float):
        return float(job[STARTED])
    details = storage.details(storage.join(root, JOB))
    return 0.0 if details is None or details.modified is None else details.modified


class Results(NamedTuple):
    """The images of one alpha of an output."""

    layout: OutputLayout
    alpha: float

    def images(self) -> Iterator[tuple[str, str]]:
        """Key and URL of each, of an output of files: those of the manifest, whatever else lies there."""
        for manifest in self.layout.find_manifests():
            for row in rows_of_manifest(manifest.url):
                if row.alpha == self.alpha:
                    yield row.key, self.layout.image(self.alpha, row.key)

    def shards(self) -> list[str]:
        """URLs of the shards that the manifest names."""
        names: set[str] = set()
        for manifest in self.layout.find_manifests():
            for row in rows_of_manifest(manifest.url):
                shard = row.output_uri.removesuffix(f"#{row.key}{self.layout.extension}").rpartition("/")[2]
                match = _NUMBERED.fullmatch(shard)
                if row.alpha == self.alpha and match and match[1] == SHARD:
                    names.add(shard)
        return [storage.join(self.layout.folder(self.alpha), name) for name in sorted(names)]


def results_in(folder: str) -> Results | None:
    """What a folder holds of the job whose output it is, or whose images it is for; None where it is no such folder.

    Raises:
        UserError: if the job hasn't ended, or the folder is of several alphas, or of none of that job.
    """
    for root, below in roots_of(folder):
        job = read_job(root)
        if job is None:
            continue
        layout = OutputLayout.of_job(root, job)
        if REPLACES in job or not layout.find_manifests():
            raise UserError(
                f"{root}: its job hasn't ended, so it has no manifest; run the same dot-transport again, with --resume"
            )
        alphas = [alpha for alpha, name in layout.folders.items() if below in ("", name)]
        if len(alphas) == 1:
            return Results(layout, alphas[0])
        folders = ", ".join(map(layout.folder, layout.alphas))
        if below:
            raise UserError(f"{folder}: isn't of the job that {root} belongs to; expected one of {folders}")
        raise UserError(f"{root}: holds results of several alphas; expected one of {folders}")
    return None


def roots_of(folder: str) -> Iterator[tuple[str, str]]:
    """What a folder would be of an output: roots and the folder below each, "" for the root itself."""
    folder = folder.rstrip("/") or folder
    yield folder, ""
    above, last = storage.parent(folder), folder.rpartition("/")[2]
    if _FOLDER.fullmatch(last):
        yield above, last
    elif above.rpartition("/")[2] == IMAGES and _FOLDER.fullmatch(f"{IMAGES}/{last}"):
        yield storage.parent(above), f"{IMAGES}/{last}"
