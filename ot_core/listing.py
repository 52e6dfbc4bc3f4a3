"""From what a user names as an input to the images that it holds, listed through fsspec."""

from __future__ import annotations

import csv
import glob
import io
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from ot_core.errors import UserError
from ot_core.images import EXTENSIONS
from ot_core.storage import FileDetails, join, one_line, parent, to_url

_LISTS = (".txt", ".csv", ".jsonl", ".parquet")


class Listed(NamedTuple):
    """An image that an input names.

    Attributes:
        key: path below the input's root, without extension.
        uri: where it is.
        problem: what is wrong with the row of a list that should have named it, or "".
        details: its version and time, as far as listing tells them.
    """

    key: str
    uri: str
    problem: str = ""
    details: FileDetails = FileDetails()


def list_images(spec: str) -> Iterator[Listed]:
    """The images that an input spec names, one by one.

    A spec is a folder, a glob (`**` included), one image, or a list of URLs: `.txt` (one a line), `.csv`, `.jsonl`
    or `.parquet` (a column `uri`, and optionally `key`). Folders and globs give what is named like an image;
    lists and single URLs give what they name. Relative URLs of a list are relative to the list.

    Raises:
        UserError: if the spec's protocol isn't known, its root can't be listed, or a list can't be opened.
    """
    try:
        fs, path = url_to_fs(spec)
        if glob.has_magic(path) and not fs.exists(path):
            yield from _list_glob(fs, path)
        elif fs.isdir(path):
            yield from _list_folder(fs, path, path)
        elif path.lower().endswith(_LISTS):
            yield from _list_list(spec, fs, path)
        elif fs.exists(path):
            yield Listed(_without_extension(posixpath.basename(path)), spec)
    except UserError:
        raise
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"input {spec}: can't be listed ({one_line(error)})") from None


def list_folder(url: str) -> Iterator[Listed]:
    """The images below a folder; none where there is no such folder."""
    fs, path = url_to_fs(url)
    if fs.isdir(path):
        yield from _list_folder(fs, path, path)


def _list_folder(fs: Any, root: str, folder: str) -> Iterator[Listed]:
    """Walks a folder. A folder named like an image is given too, so that reading it accounts for it."""
    fs.invalidate_cache(folder)
    for current, folders, files in fs.walk(folder, detail=True):
        for name, info in sorted([*files.items(), *folders.items()]):
            if name and _like_image(name):
                yield _listed(fs, root, posixpath.join(current, name), info)


def _list_glob(fs: Any, path: str) -> Iterator[Listed]:
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
    root = fixed.rpartition("/")[0] or ("/" if fixed.startswith("/") else "")
    fs.invalidate_cache(root)
    for match, info in sorted(fs.glob(path, detail=True).items()):
        if _like_image(match):
            yield _listed(fs, root, match, info)


def _list_list(spec: str, fs: Any, path: str) -> Iterator[Listed]:
    """A row that can't be understood is given with its problem, so that it costs one failure and not the job."""
    folder = parent(spec)
    with fs.open(path, "rb") as file:
        for number, row in enumerate(_rows_of_list(path, file), start=1):
            uri, key = row if isinstance(row, tuple) else ("", None)
            if not uri:
                problem = f"row {number} of {spec}: " + (row if isinstance(row, str) else "empty uri")
                yield Listed("", spec, problem)
                continue
            if "://" not in uri and not uri.startswith("/"):
                key, uri = key or _without_extension(uri), join(folder, uri)
            yield Listed(key or _key_below(folder, uri), uri)


def _rows_of_list(path: str, file: Any) -> Iterator[tuple[str, str | None] | str]:
    """(uri, key) of each row, or what is wrong with it."""
    extension = posixpath.splitext(path)[1].lower()
    if extension == ".txt":
        for line in io.TextIOWrapper(file, "utf-8-sig"):
            if line.strip():
                yield line.strip(), None
    elif extension == ".csv":
        yield from map(_columns, csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline="")))
    elif extension == ".jsonl":
        for line in io.TextIOWrapper(file, "utf-8-sig"):
            if line.strip():
                try:
                    yield _columns(json.loads(line))
                except ValueError as error:
                    yield f"not JSON ({error})"
    else:
        parquet = pq.ParquetFile(file)
        found = parquet.schema_arrow.names
        # Other columns may hold whole images; where there is no uri, one column is enough to say so for each row.
        wanted = [name for name in ("uri", "key") if name in found] or found[:1]
        for batch in parquet.iter_batches(columns=wanted):
            yield from map(_columns, batch.to_pylist())


def _columns(row: Any) -> tuple[str, str | None] | str:
    """The columns uri and key of a row, or what is wrong with it."""
    if not isinstance(row, dict) or not isinstance(row.get("uri"), str):
        found = sorted(map(str, row)) if isinstance(row, dict) else type(row).__name__
        return f"expected a text column 'uri', found {found}"
    key = row.get("key")
    return row["uri"].strip(), key if isinstance(key, str) and key else None


def _listed(fs: Any, root: str, path: str, info: Mapping[str, Any]) -> Listed:
    relative = path[len(root) :].lstrip("/") if path.startswith(root) else path
    return Listed(_without_extension(relative), to_url(fs, path), details=FileDetails.of(info))


def _key_below(root: str, uri: str) -> str:
    """A key for a URL of a list: its path below the list's folder, else its whole path without the protocol."""
    path = uri.split("://", 1)[-1]
    base = root.split("://", 1)[-1].rstrip("/") + "/"
    return _without_extension(path.removeprefix(base).lstrip("/"))


def _like_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _without_extension(path: str) -> str:
    return posixpath.splitext(path)[0]
