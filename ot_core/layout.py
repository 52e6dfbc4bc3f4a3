"""Where things are in an output of transport, and in a report: the one home of their files' names.

    job.json                                    what the images are made with, and where they are
    images/<key>.png                            of a single alpha
    images/alpha=0.50/<key>.png                 of several
    images-alpha=0.50/<key>.png                 of one that was added to a single one: `images/` may hold any key
    <any of these>/shard-00000-of-00016.tar     instead, of an output in shards
    .staging/<any of these>/<key>.png           of an output in shards, until they are packed
    manifest-00000-of-00001.parquet             a row for each image
    failures-00000-of-00001.parquet             a row for each image that could not be processed
    drift.json, drift.safetensors, drift/<group>.safetensors

and in a report:

    report.html, totals.json
    images-00000-of-00001.parquet               a row for each image compared
    failures-00000-of-00001.parquet

Files are found by listing a folder and matching the names: a URL that a user chose is never part of a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ot_core import shards, storage
from ot_core.encoding import OUTPUT_FORMATS, check_format
from ot_core.errors import UserError, one_line

IMAGES: Final = "images"
JOB: Final = "job.json"
MANIFEST: Final = "manifest"
FAILURES: Final = "failures"
#: A row for each image compared, in a report.
QUALITY: Final = "images"
PAGE: Final = "report.html"
TOTALS: Final = "totals.json"
_STAGING: Final = ".staging"
SHARD: Final = "shard"
_DRIFT: Final = "drift.json"
_STATISTICS: Final = "drift.safetensors"
_DRIFT_OF_GROUPS: Final = "drift"
#: Of job.json: the alphas, and the folder of each one's images; when the output was started, where that isn't when
#: job.json was written; and whose results are being removed.
ALPHA: Final = "alpha"
FOLDERS: Final = "folders"
STARTED: Final = "started"
REPLACES: Final = "replaces"
#: How results are kept: a file for each, or in shards.
FILES: Final = "files"
KINDS: Final = (FILES, *shards.EXTENSIONS)
#: The folders that an alpha's images may be in.
_FOLDER = re.compile(rf"{IMAGES}(?:[/-]alpha=-?\d+\.\d\d)?")
#: What else may be in an output.
_OTHERS = (_STAGING, _DRIFT, _STATISTICS, _DRIFT_OF_GROUPS)
_MAP_EXTENSION = ".safetensors"
_NUMBERED = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})(\.[a-z]+)")


def numbered(name: str, index: int, count: int, extension: str = ".parquet") -> str:
    """The name of one of several files that together are one thing, `name-00000-of-00001.parquet`."""
    return f"{name}-{index:05d}-of-{count:05d}{extension}"


def alpha_name(alpha: float) -> str:
    """What tells the results of an alpha from those of others."""
    return f"alpha={alpha:.2f}"


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
        raise UserError(f"{folder}: can't be listed ({one_line(error)})") from None
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
        check_format(format)
        if kind not in KINDS:
            raise UserError(f"output format {kind}: expected one of {', '.join(KINDS)}")
        if not alphas or len(set(map(alpha_name, alphas))) != len(alphas):
            raise UserError(f"alphas {list(alphas)}: expected at least one, all different to two decimals")
        if len(alphas) == 1:
            return cls(root, {alphas[0]: IMAGES}, format, kind)
        return cls(root, {alpha: f"{IMAGES}/{alpha_name(alpha)}" for alpha in alphas}, format, kind)

    @classmethod
    def of_job(cls, root: str, job: Mapping[str, Any]) -> OutputLayout:
        """The layout of an output with this `job.json`, which an earlier version may have written.

        Raises:
            UserError: if it makes no sense.
        """
        try:
            alphas = [float(alpha) for alpha in job[ALPHA]]
            layout = cls.of(root, alphas, job.get("format", "png"), job.get("output_format", FILES))
            folders = [str(folder) for folder in job.get(FOLDERS, layout.folders.values())]
            if len(set(folders)) != len(alphas) or not all(map(is_folder_of_images, folders)):
                raise ValueError(f"folders {folders}")
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{storage.join(root, JOB)}: isn't as we write it ({one_line(error)})") from None
        return layout._replace(folders=dict(zip(alphas, folders, strict=True)))

    def with_alphas(self, alphas: Sequence[float]) -> OutputLayout:
        """The layout with these alphas too; what is there stays where it is.

        Raises:
            UserError: if two alphas are the same to two decimals.
        """
        added = [alpha for alpha in alphas if alpha not in self.folders]
        self.of(self.root, [*self.folders, *added])
        between = "-" if IMAGES in self.folders.values() else "/"
        folders = {alpha: f"{IMAGES}{between}{alpha_name(alpha)}" for alpha in added}
        return self._replace(folders={**self.folders, **folders})

    def in_job(self) -> dict[str, Any]:
        """What `job.json` says of the alphas; of its other names, `format` and `output_format` are settings."""
        return {ALPHA: list(self.alphas), FOLDERS: list(self.folders.values())}

    @property
    def staging(self) -> str:
        """URL of the folder that images are in until they are packed."""
        return self.url(_STAGING)

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
        return [*dict.fromkeys(map(self.folder, self.alphas)), self.staging]

    def examples(self) -> list[str]:
        """URLs of files such as are written, in case a pattern names them."""
        if self.packed:
            images = [self.shard(alpha, 0, 16) for alpha in self.alphas]
        else:
            images = [self.image(alpha, key) for alpha in self.alphas for key in ("0", "0/0", "0/0/0")]
        return [*images, *(self.url(numbered(name, 0, 1)) for name in (MANIFEST, FAILURES))]

    def written_folder(self, alpha: float) -> str:
        """URL of the folder where an alpha's images are written at first: for shards, the staging folder."""
        return storage.join(self.staging, self.folders[alpha]) if self.packed else self.folder(alpha)

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


def drift_url(output: str) -> str:
    """URL of what is told of the drift of an output's images."""
    return storage.join(output, _DRIFT)


def statistics_url(output: str, group: str = "") -> str:
    """URL of the statistics of the images that were transported with a group's map; "" is where there are no groups."""
    if not group:
        return storage.join(output, _STATISTICS)
    return storage.join(output, _DRIFT_OF_GROUPS, f"{group}{_MAP_EXTENSION}")


def groups_with_statistics(output: str) -> list[str]:
    """The groups that there are such statistics of."""
    there = storage.children(storage.join(output, _DRIFT_OF_GROUPS))
    return [name.removesuffix(_MAP_EXTENSION) for name in there if name.endswith(_MAP_EXTENSION)]


def is_staged(path: str) -> bool:
    """Whether a file is a result of ours that waits to be packed, and no input."""
    return path.startswith(f"{_STAGING}/") or f"/{_STAGING}/" in path


def is_folder_of_images(name: str) -> bool:
    """Whether an alpha's images may be in a folder of that name below the root."""
    return bool(_FOLDER.fullmatch(name))


def is_shard(name: str) -> bool:
    """Whether a file of that name is a shard of images."""
    match = _NUMBERED.fullmatch(name)
    return match is not None and match[1] == SHARD


def is_of_output(name: str) -> bool:
    """Whether an output has files or folders of that name at its root, besides `job.json`."""
    match = _NUMBERED.fullmatch(name)
    return (
        name in _OTHERS
        or is_folder_of_images(name)
        or (match is not None and match[1] in (MANIFEST, FAILURES) and match[4] == ".parquet")
    )
