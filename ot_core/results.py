"""What is in an output of transport that was written already, or in a folder of one."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from ot_core import shards, storage
from ot_core.errors import UserError, one_line
from ot_core.layout import (
    ALPHA,
    IMAGES,
    JOB,
    MANIFEST,
    REPLACES,
    SHARD,
    STARTED,
    OutputLayout,
    find_numbered,
    is_folder_of_images,
    is_shard,
)

#: The name of an alpha's folder, which a pipeline with our transforms may also write in another number of digits.
_ALPHA_FOLDER = re.compile(r"alpha=(-?\d+(?:\.\d+)?)")


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
        raise UserError(f"{url}: can't be read ({one_line(error)})") from None


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
        raise UserError(f"{storage.join(root, JOB)}: can't be read ({one_line(error)})") from error
    return job if isinstance(job, dict) and "map_sha256" in job and isinstance(job.get(ALPHA), list) else None


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
                if row.alpha == self.alpha and is_shard(shard):
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
    if is_folder_of_images(last):
        yield above, last
    elif above.rpartition("/")[2] == IMAGES and is_folder_of_images(f"{IMAGES}/{last}"):
        yield storage.parent(above), f"{IMAGES}/{last}"


def images_without_job(url: str) -> dict[float, str]:
    """Inputs of each alpha's images of a folder that no job of ours has written, but perhaps a pipeline with our
    transforms: it is an alpha's by its name, or holds such folders, or a manifest; none where it is no such folder.

    Raises:
        OSError: if it can't be listed.
        UserError: likewise.
    """
    last = _ALPHA_FOLDER.fullmatch(url.rstrip("/").rpartition("/")[2])
    if last:
        return {float(last[1]): url}
    images = storage.join(url, IMAGES)
    found = {float(alpha[1]): name for name in storage.children(images) if (alpha := _ALPHA_FOLDER.fullmatch(name))}
    if found:
        return {alpha: _input_of(storage.join(images, name)) for alpha, name in found.items()}
    rows = (next(rows_of_manifest(manifest.url), None) for manifest in find_numbered(url, MANIFEST))
    row = next(filter(None, rows), None)
    return {} if row is None else {row.alpha: _input_of(images)}


def _input_of(folder: str) -> str:
    """The input that the images of an alpha are: the folder, or the shards in it."""
    for extension in shards.EXTENSIONS.values():
        if find_numbered(folder, SHARD, [extension]):
            return storage.join(glob.escape(folder), f"{SHARD}-*-of-*{extension}")
    return folder
