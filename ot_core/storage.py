"""All access to storage, through fsspec; no other module opens or joins a URL.

A URL is anything fsspec understands (`gs://`, `s3://`, `file://`, `memory://`, ...) or a local path.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import posixpath
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ot_core.errors import Cause, ImageError, UserError
from ot_core.retry import retried

#: Stores whose single PUT appears under its final name whole or not at all.
_ATOMIC_STORES = {"gs", "gcs", "s3", "s3a", "az", "abfs", "abfss", "adl", "oss", "memory"}
#: File systems allow 255 bytes for a name and stores 1024 for a path; the rest is for the folder and the extension.
_LONGEST_PART, _LONGEST_KEY = 240, 800
#: Control characters, lone surrogates, backslashes; what fsspec would read as another store; parts "", "." and "..".
_ODD_KEY = re.compile(r"[\x00-\x1f\ud800-\udfff\\]|::|(?:^|/)\.{0,2}(?:/|$)")
#: Where stores tell when a file was written: local, s3fs, gcsfs, adlfs, memory.
_TIMES = ("mtime", "LastModified", "updated", "last_modified", "created")
#: Names that a killed job may leave behind on stores without an atomic PUT.
_TEMPORARY = re.compile(r"\.([0-9a-f]{32}\.tmp|write-check-[0-9a-f]{32})")


class FileDetails(NamedTuple):
    """What a store tells of a file without reading it.

    Attributes:
        version: changes whenever the file does: its etag, else size and time; "" if the store tells neither.
        modified: when it was last written, in seconds since 1970 by the store's clock; None if unknown.
    """

    version: str = ""
    modified: float | None = None

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> FileDetails:
        """From fsspec's description of a file, whose names differ between stores."""
        found = next((info[name] for name in _TIMES if info.get(name)), None)
        if isinstance(found, str):
            found = datetime.datetime.fromisoformat(found)
        modified = found.timestamp() if isinstance(found, datetime.datetime) else found
        etag = next((info[name] for name in ("etag", "ETag") if info.get(name)), None)
        if etag is None and modified is not None:
            etag = f"{info.get('size')}-{modified!r}"
        return cls(str(etag or "").strip('"'), modified)


@retried
def details(url: str) -> FileDetails | None:
    """Details of a file; None where there is none."""
    fs, path = url_to_fs(url)
    try:
        return FileDetails.of(fs.info(path, refresh=True) if "s3" in _protocols(fs) else fs.info(path))
    except FileNotFoundError:
        return None


@retried
def remove(url: str) -> None:
    """Removes a file, if it is there."""
    fs, path = url_to_fs(url)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def remove_folder(url: str) -> None:
    """Removes a folder and all that is in it, if it is there."""
    fs, path = url_to_fs(url)
    with contextlib.suppress(FileNotFoundError):
        if fs.isdir(path):
            fs.rm(path, recursive=True)


@retried
def read_bytes(url: str, max_bytes: int | None = None, start: int | None = None, end: int | None = None) -> bytes:
    """The whole content of a file, or its bytes from start to end; errors that may pass are tried again, here and in
    all that writes.

    Raises:
        UnavailableError: if they don't pass (`ot_core.retry`).
        OSError: as fsspec does; FileNotFoundError, PermissionError, IsADirectoryError among them.
        ValueError: if it is larger than max_bytes.
    """
    fs, path = url_to_fs(url)
    if max_bytes is not None and (size := fs.size(path)) is not None and size > max_bytes:
        raise ValueError(f"{size} bytes, over the limit of {max_bytes}")
    data: bytes = fs.cat_file(path, start=start, end=end)
    return data


@retried
def write_bytes(url: str, data: bytes) -> None:
    """Writes a file so that its final name never shows a part of it."""
    with _whole_or_not_at_all(url) as (fs, path):
        fs.pipe_file(path, data)


@retried
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
        raise UserError(f"output {url}: not writable ({one_line(error)})") from None
    with contextlib.suppress(Exception):  # the right to write doesn't always come with the right to delete
        fs, path = url_to_fs(probe)
        fs.rm_file(path)


def match(pattern: str) -> dict[str, FileDetails]:
    """URLs of the files and folders that match a glob, sorted, with their details; none where there is nothing.

    Raises:
        UserError: if the protocol isn't known or the store can't be asked.
    """
    try:
        fs, path = url_to_fs(pattern)
        fs.invalidate_cache()
        found = retried(fs.glob)(path, detail=True)
        return {to_url(fs, name): FileDetails.of(info) for name, info in sorted(found.items())}
    except FileNotFoundError:
        return {}
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"input {pattern}: can't be listed ({one_line(error)})") from None


def remove_temporary(folder: str) -> None:
    """Removes what killed jobs left half written below a folder; no job may be writing there."""
    fs, path = url_to_fs(folder)
    if _is_atomic(fs) or not fs.isdir(path):
        return
    for current, _, files in fs.walk(path):
        for name in files:
            if _TEMPORARY.fullmatch(name):
                fs.rm_file(posixpath.join(current, name))


def check_columns(url: str, expected: pa.Schema) -> None:
    """Checks that a Parquet file has columns of these names and types.

    Raises:
        UserError: naming the first that it hasn't.
    """
    try:
        with fsspec.open(url, "rb") as file:
            found = pq.read_schema(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{url}: can't be read ({one_line(error)})") from None
    for field in expected:
        kind = found.field(field.name).type if field.name in found.names else "no such column"
        if kind != field.type:
            raise UserError(f"{url}: column {field.name}: expected {field.type}, found {kind}")


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
        raise UserError(f"input {url}: can't be read ({one_line(error)})") from None


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
    if _ODD_KEY.search(key):
        raise ImageError(Cause.BAD_KEY, f"key {key[:200]!r} can't be a path below the output")
    size = len(key.encode())
    # Most keys are short, and millions of them are checked.
    longest = size if size <= _LONGEST_PART else max(len(part.encode()) for part in key.split("/"))
    if size > _LONGEST_KEY or longest > _LONGEST_PART:
        limits = f"at most {_LONGEST_KEY} bytes, {_LONGEST_PART} between slashes"
        raise ImageError(Cause.BAD_KEY, f"key {key[:200]!r} has {size} bytes; expected {limits}")


def to_url(fs: Any, path: str) -> str:
    """The URL of a path of a file system; local paths stay paths."""
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


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


def one_line(error: BaseException) -> str:
    """What an exception says, as one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__
