"""All access to storage, through fsspec; no other module opens or joins a URL.

A URL is anything fsspec understands (`gs://`, `s3://`, `file://`, `memory://`, ...) or a local path.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import json
import os
import posixpath
import re
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import fsspec
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ot_core.errors import Cause, ImageError, UserError
from ot_core.images import EXTENSIONS

#: Stores whose single PUT appears under its final name whole or not at all.
_ATOMIC_STORES = {"gs", "gcs", "s3", "s3a", "az", "abfs", "abfss", "adl", "oss", "memory"}
_LISTS = (".txt", ".csv", ".jsonl", ".parquet")


class Listed(NamedTuple):
    """An image that an input names.

    Attributes:
        key: path below the input's root, without extension.
        uri: where it is.
        problem: what is wrong with the row of a list that should have named it, or "".
    """

    key: str
    uri: str
    problem: str = ""


def read_bytes(url: str, max_bytes: int | None = None) -> bytes:
    """The whole content of a file.

    Raises:
        OSError: as fsspec does; FileNotFoundError, PermissionError, IsADirectoryError among them.
        ValueError: if it is larger than max_bytes.
    """
    fs, path = url_to_fs(url)
    if max_bytes is not None and (size := fs.size(path)) is not None and size > max_bytes:
        raise ValueError(f"{size} bytes, over the limit of {max_bytes}")
    data: bytes = fs.cat_file(path)
    return data


def write_bytes(url: str, data: bytes) -> None:
    """Writes a file so that its final name never shows a part of it."""
    with _whole_or_not_at_all(url) as (fs, path):
        fs.pipe_file(path, data)


def upload(local_path: str, url: str) -> None:
    """Copies a local file to a URL with the same guarantee as `write_bytes`."""
    with _whole_or_not_at_all(url) as (fs, path):
        fs.put_file(local_path, path)


def check_writable(url: str) -> None:
    """Writes and removes a small file below a folder.

    Raises:
        UserError: if that fails.
    """
    probe = join(url, f".write-check-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
    except Exception as error:  # each store has its own errors
        raise UserError(f"output {url}: not writable ({_one_line(error)})") from None
    with contextlib.suppress(Exception):  # the right to write doesn't always come with the right to delete
        fs, path = url_to_fs(probe)
        fs.rm_file(path)


def match(pattern: str) -> list[str]:
    """URLs of the files and folders that match a glob, sorted; none where there is nothing.

    Raises:
        UserError: if the protocol isn't known or the store can't be asked.
    """
    try:
        fs, path = url_to_fs(pattern)
        return [_to_url(fs, found) for found in sorted(fs.glob(path))]
    except FileNotFoundError:
        return []
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"input {pattern}: can't be listed ({_one_line(error)})") from None


def first_row(url: str, columns: list[str]) -> dict[str, Any] | None:
    """The first row of a Parquet file, without reading the rest; None where it is empty.

    Raises:
        UserError: if it isn't a Parquet file with these columns.
    """
    try:
        with fsspec.open(url, "rb") as file:
            batches = pq.ParquetFile(file).iter_batches(batch_size=1, columns=columns)
            return next((batch.select(columns).to_pylist()[0] for batch in batches if len(batch)), None)
    except (KeyError, ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
        raise UserError(f"input {url}: can't be read ({_one_line(error)})") from None


def join(root: str, *parts: str) -> str:
    """A URL below a root; protocols and chained options stay as they are."""
    return "/".join([root if root.endswith("://") else root.rstrip("/"), *parts])


def parent(url: str) -> str:
    """The folder that holds a URL."""
    head, _, _ = url.rpartition("/")
    if not head:
        return "/" if url.startswith("/") else "."
    return head if not head.endswith(":/") else url


def check_key(key: str) -> None:
    """Refuses keys that could leave the output root or can't be a file name.

    Raises:
        ImageError: BAD_KEY.
    """
    parts = key.split("/")
    odd = any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 or c == "\\" for c in key)
    odd = odd or "::" in key  # fsspec would read what follows as another store
    if odd or any(part in ("", ".", "..") for part in parts):
        raise ImageError(Cause.BAD_KEY, f"key {key[:200]!r} can't be a path below the output")


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
        raise UserError(f"input {spec}: can't be listed ({_one_line(error)})") from None


def _list_folder(fs: Any, root: str, folder: str) -> Iterator[Listed]:
    """Walks a folder. A folder named like an image is given too, so that reading it accounts for it."""
    for current, folders, files in fs.walk(folder):
        folders_like_images = [name for name in folders if _like_image(name)]
        for name in sorted([*files, *folders_like_images]):
            if name and _like_image(name):
                yield _listed(fs, root, posixpath.join(current, name))


def _list_glob(fs: Any, path: str) -> Iterator[Listed]:
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
    root = fixed.rpartition("/")[0] or ("/" if fixed.startswith("/") else "")
    for match in sorted(fs.glob(path)):
        if _like_image(match):
            yield _listed(fs, root, match)


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


def _listed(fs: Any, root: str, path: str) -> Listed:
    relative = path[len(root) :].lstrip("/") if path.startswith(root) else path
    return Listed(_without_extension(relative), _to_url(fs, path))


def _key_below(root: str, uri: str) -> str:
    """A key for a URL of a list: its path below the list's folder, else its whole path without the protocol."""
    path = uri.split("://", 1)[-1]
    base = root.split("://", 1)[-1].rstrip("/") + "/"
    return _without_extension(path.removeprefix(base).lstrip("/"))


def _to_url(fs: Any, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def _like_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _without_extension(path: str) -> str:
    return posixpath.splitext(path)[0]


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def _is_atomic(fs: Any) -> bool:
    return bool(_protocols(fs) & _ATOMIC_STORES)


@contextlib.contextmanager
def _whole_or_not_at_all(url: str) -> Iterator[tuple[Any, str]]:
    """Gives a name to write to: the final one where a PUT is atomic, else one that is renamed when all went well."""
    fs, path = url_to_fs(url)
    if _is_atomic(fs):
        yield fs, path
        return
    folder = posixpath.dirname(path)
    fs.makedirs(folder, exist_ok=True)
    # A name made from the final one would do, but two attempts at one bundle may run at the same time.
    temporary = posixpath.join(folder, f".{uuid.uuid4().hex}.tmp")
    try:
        yield fs, temporary
        if isinstance(fs, LocalFileSystem):
            os.replace(temporary, path)
        else:
            fs.mv(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):
            fs.rm_file(temporary)
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
