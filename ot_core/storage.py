"""All access to storage, through fsspec; no other module opens or joins a URL.

A URL is anything fsspec understands (`gs://`, `s3://`, `file://`, `memory://`, ...) or a local path.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import functools
import io
import os
import posixpath
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import available_protocols
from fsspec.spec import AbstractFileSystem

from ot_core import web
from ot_core.errors import (
    BadUrlError,
    Cause,
    ImageError,
    NotAFileError,
    StoreError,
    TooManyBytesError,
    UserError,
    one_line,
)
from ot_core.overlap import prefetch
from ot_core.ranges import Ranges, all_of
from ot_core.retry import at_store, http_status

#: Stores whose single PUT appears under its final name whole or not at all.
_ATOMIC_STORES = {"gs", "gcs", "s3", "s3a", "az", "abfs", "abfss", "oss", "memory"}
#: File systems allow 255 bytes for a name and stores 1024 for a path; the rest is for the folder and the extension.
_LONGEST_PART, _LONGEST_KEY = 240, 800
#: What s3fs and adlfs cut off a path, and read as an older version of the file that the rest names.
_OF_VERSION = "?versionid="
#: Control characters, lone surrogates, backslashes; what fsspec would read as another store, or cut off; parts "", "."
#: and "..".
_ODD_KEY = re.compile(r"[\x00-\x1f\ud800-\udfff\\]|::|\?version[Ii]d=|(?:^|/)\.{0,2}(?:/|$)")
#: Where stores tell when a file was written: local, s3fs, gcsfs, adlfs, memory.
_TIMES = ("mtime", "LastModified", "updated", "last_modified", "Last-Modified", "created")
#: The extra that brings the package of a protocol.
_EXTRAS = {
    **dict.fromkeys(("gs", "gcs"), "gcp"),
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("az", "abfs", "abfss"), "azure"),
    **dict.fromkeys(("http", "https"), "http"),
}
#: Bytes that an open file reads ahead, those that a file may hold before it counts against a budget, and the most that
#: are ever read into memory unless the caller says otherwise.
_BLOCK, _UNRESERVED, _MAX_BYTES = 1 << 22, 1 << 24, 1 << 32
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
            found = _time_of(found)
        modified = found.timestamp() if isinstance(found, datetime.datetime) else found
        etag = next((info[name] for name in ("etag", "ETag") if info.get(name)), None)
        if etag is None and modified is not None:
            etag = f"{info.get('size')}-{modified!r}"
        elif etag is None and info.get("type") == "file" and info.get("size") is not None:
            etag = f"{info['size']}"
        return cls(str(etag or "").strip('"'), modified)


def _time_of(text: str) -> datetime.datetime | None:
    """A time as JSON or HTTP has it."""
    for parse in (datetime.datetime.fromisoformat, email.utils.parsedate_to_datetime):
        with contextlib.suppress(ValueError):
            return parse(text)
    return None


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it, taken literally.

    Raises:
        BadUrlError: if the protocol isn't known or its package isn't installed.
        OSError: what else the store has against it; no credentials, say.
    """
    try:
        protocol, _, path = url.partition("://")
        if protocol in _EXTRAS and not _is_http(protocol) and "::" not in url:
            if _OF_VERSION in path.lower():
                raise BadUrlError(
                    f"expected no {_OF_VERSION} in a URL: its file is read as it is now, and under its name"
                )
            # A name may hold "#1" or "?generation=1", which gcsfs would take for an older version of another file.
            fs, _ = at_store(url_to_fs)(f"{protocol}://{path.partition('/')[0]}")
            check_literal(fs, path)
            return fs, fs._strip_protocol(url)
        return at_store(url_to_fs)(url)
    except BadUrlError:
        if "://" in url and protocol not in available_protocols():
            raise BadUrlError(f"no store is known for {protocol}://") from None
        raise
    except StoreError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        extra = _EXTRAS.get(protocol)
        hint = f"pip install 'dot-beam[{extra}]'" if extra else one_line(error.__cause__)
        raise BadUrlError(f"{protocol}:// needs a package that isn't installed: {hint}") from None


def check_literal(fs: Any, path: str) -> None:
    """Checks that the store's library takes a path for itself: adlfs cuts off "?" and "#" at the end, and swaps parts.

    Raises:
        BadUrlError: if it takes it for another.
    """
    inside = path.partition("/")[2].strip("/")
    if ("?" in inside or "#" in inside) and not fs._strip_protocol(path).rstrip("/").endswith("/" + inside):
        raise BadUrlError(f"{path}: expected no ? or # at the end, nor both, in a path on this store")


def _is_http(protocol: str) -> bool:
    return protocol in ("http", "https")


def open_file(url: str) -> io.BufferedReader:
    """Opens a file for reading; it can seek, and whatever is read of it is tried again as in `read_bytes`.

    Raises:
        OSError: as `read_bytes`, here and when it is read.
    """
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return at_store(_open_local)(path)
    if _is_web(fs):
        read, size = at_store(web.open_file)(fs, path)
    else:
        info = _info(fs, path)
        if info.get("type") == "directory":
            raise IsADirectoryError(url)
        size, read = info["size"], functools.partial(_cat_range, fs, path)
    return io.BufferedReader(Ranges(read, size), _BLOCK)


def _open_local(path: str) -> io.BufferedReader:
    """Opens a regular file; a FIFO would wait for a writer, for ever where there is none."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise NotAFileError(f"{path}: not a regular file, but a FIFO, socket or device")
    return open(path, "rb")


def _cat_range(fs: Any, path: str, start: int, end: int) -> bytes:
    """Bytes of a file; fewer where it ends before."""
    if _is_web(fs):
        return web.read_range(fs, path, start, end)
    try:
        data: bytes = fs.cat_file(path, start=start, end=end)
    except Exception as error:  # each store has its own
        if 416 in (http_status(error), error.__cause__ and http_status(error.__cause__)):
            return b""  # nothing there, as in an empty file
        raise
    return data


def _info(fs: Any, path: str) -> dict[str, Any]:
    """What the store tells of a file or folder now, whatever it told before."""
    if _is_web(fs):
        found = at_store(web.info)(fs, path)
        kind = "directory" if path.endswith("/") else "file"
        return {"name": path, "size": found.size, "type": kind, **found.headers}
    fs.invalidate_cache(path)
    info: dict[str, Any] = at_store(fs.info)(path)
    return info


def _info_or_none(url: str) -> dict[str, Any] | None:
    fs, path = filesystem(url)
    try:
        return _info(fs, path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def details(url: str) -> FileDetails | None:
    """Details of a file or folder; None where there is none."""
    info = _info_or_none(url)
    return None if info is None else FileDetails.of(info)


def exists(url: str) -> bool:
    """Whether there is a file or folder."""
    return _info_or_none(url) is not None


def is_folder(url: str) -> bool:
    """Whether there is a folder."""
    info = _info_or_none(url)
    return info is not None and info["type"] == "directory"


def children(folder: str) -> dict[str, FileDetails]:
    """Names of the files and folders directly in a folder, sorted, with their details; none where there is no folder.

    The folder's URL is taken literally, whatever `*?[]` it holds.

    Raises:
        OSError: if the store can't be asked.
    """
    fs, path = filesystem(folder)
    fs.invalidate_cache(path)
    try:
        found = at_store(fs.ls)(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    inside = path.rstrip("/") + "/"
    names = {info["name"].rstrip("/")[len(inside) :]: info for info in found if info["name"].startswith(inside)}
    return {name: FileDetails.of(info) for name, info in sorted(names.items()) if name}


def remove(url: str) -> None:
    """Removes a file, if it is there."""
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        at_store(fs.rm_file)(path)


def remove_folder(url: str) -> None:
    """Removes a folder and all that is in it, if it is there."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
        return
    fs.invalidate_cache(path)
    folders = []
    for current, _, files in at_store(lambda: list(fs.walk(path, on_error=_unless_gone)))():
        folders.append(current)
        for removed in prefetch(at_store(fs.rm_file), [f"{current.rstrip('/')}/{name}" for name in files if name]):
            with contextlib.suppress(FileNotFoundError):
                removed.result()
    if _is_atomic(fs) and fs.protocol != "memory":
        return  # folders are nothing but the paths of files
    for current in reversed(folders):
        with contextlib.suppress(FileNotFoundError):
            at_store(fs.rmdir)(current)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def read_bytes(
    url: str,
    max_bytes: int = _MAX_BYTES,
    start: int = 0,
    end: int | None = None,
    reserve: Callable[[int], None] | None = None,
) -> bytes:
    """The whole content of a file, or its bytes from start to end; errors that may pass are tried again, here and in
    all that writes.

    Args:
        url: of the file.
        max_bytes: the most that is read, ever.
        start: the first byte.
        end: the byte after the last.
        reserve: called with the number of bytes, once, before more than 16 MiB of them are held in memory.

    Raises:
        UnavailableError: if they don't pass (`ot_core.retry`).
        OSError: FileNotFoundError, PermissionError, IsADirectoryError among them, whatever the store's library raises.
        TooManyBytesError: if it is larger than max_bytes.
    """
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        with at_store(_open_local)(path) as file:
            size = (os.fstat(file.fileno()).st_size if end is None else end) - start
            check_size(size, max_bytes)
            if reserve is not None and size > _UNRESERVED:
                reserve(size)
            file.seek(start)
            return file.read(size)
    read = at_store(functools.partial(_cat_range, fs, path))
    if end is None:
        # Most files are small, and need but one request; of the others the store is asked for their size.
        few = min(_UNRESERVED, max_bytes)
        data = read(start, start + few + 1)
        if len(data) <= few:
            return data
        del data
        end = _info(fs, path)["size"]
        read = read if end is None else all_of(read)
    size = max_bytes if end is None else end - start
    check_size(size, max_bytes)
    if reserve is not None and size > _UNRESERVED:
        reserve(size)
    data = read(start, start + max_bytes + 1 if end is None else end)
    check_size(len(data), max_bytes)
    return data


def check_size(size: int, max_bytes: int) -> None:
    """Refuses a file, or part of one, of more bytes than may be.

    Raises:
        TooManyBytesError: naming both.
    """
    if size > max_bytes:
        raise TooManyBytesError(f"{size} bytes, over the limit of {max_bytes}")


def write_bytes(url: str, data: bytes) -> None:
    """Writes a file so that its final name never shows a part of it."""
    _write(url, lambda fs, path: fs.pipe_file(path, data))


def upload(local_path: str, url: str) -> None:
    """Copies a local file to a URL with the same guarantee as `write_bytes`."""
    _write(url, lambda fs, path: fs.put_file(local_path, path))


def download(url: str, local_path: str) -> None:
    """Copies a file to a local path."""
    with open_file(url) as source, open(local_path, "wb") as target:
        shutil.copyfileobj(source, target, _BLOCK)


def check_writable(url: str) -> None:
    """Writes and removes a small file below a folder.

    Raises:
        UserError: if that fails.
    """
    if _is_http(url.partition("://")[0]):  # one that knows no such method would be asked again and again
        raise UserError(f"output {url}: not writable (a web server's files can only be read)")
    probe = join(url, f".write-check-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
    except Exception as error:  # each store has its own errors
        raise UserError(f"output {url}: not writable ({one_line(error)})") from None
    with contextlib.suppress(Exception):  # the right to write doesn't always come with the right to delete
        remove(probe)


def match(pattern: str) -> dict[str, FileDetails]:
    """URLs of the files and folders that match a glob, sorted, with their details; none where there is nothing.

    Raises:
        UserError: if the protocol isn't known or the store can't be asked.
    """
    try:
        fs, path = filesystem(pattern)
        fs.invalidate_cache()
        found = at_store(fs.glob)(path, detail=True)
        return {to_url(fs, name): FileDetails.of(info) for name, info in sorted(found.items())}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"input {pattern}: can't be listed ({one_line(error)})") from None


def remove_temporary(folder: str) -> None:
    """Removes what killed jobs left half written below a folder; no job may be writing there."""
    fs, path = filesystem(folder)
    if _is_atomic(fs):
        return
    for current, _, files in at_store(lambda: list(fs.walk(path, on_error=_unless_gone)))():
        for name in files:
            if _TEMPORARY.fullmatch(name):
                at_store(fs.rm_file)(posixpath.join(current, name))


def check_columns(url: str, expected: pa.Schema) -> None:
    """Checks that a Parquet file has columns of these names and types.

    Raises:
        UserError: naming the first that it hasn't.
    """
    try:
        with open_file(url) as file:
            found = pq.read_schema(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{url}: can't be read ({one_line(error)})") from None
    for field in expected:
        kind = found.field(field.name).type if field.name in found.names else "no such column"
        if kind != field.type:
            raise UserError(f"{url}: column {field.name}: expected {field.type}, found {kind}")


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


def _is_web(fs: Any) -> bool:
    return any(map(_is_http, _protocols(fs)))


def _is_atomic(fs: Any) -> bool:
    return bool(_protocols(fs) & _ATOMIC_STORES)


def _write(url: str, put: Callable[[Any, str], None]) -> None:
    """Puts a file: under its final name where a PUT is atomic, else under one that is changed when all went well."""
    fs, path = filesystem(url)
    if _is_atomic(fs):
        at_store(put)(fs, path)
    else:
        at_store(_put_and_rename)(fs, path, put)


def _put_and_rename(fs: Any, path: str, put: Callable[[Any, str], None]) -> None:
    local = isinstance(fs, LocalFileSystem)
    if local and os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise NotAFileError(f"{path}: not a regular file, but a FIFO, socket or device")
    folder = posixpath.dirname(path)
    fs.makedirs(folder, exist_ok=True)
    # A name made from the final one would do, but two attempts at one bundle may run at the same time.
    temporary = posixpath.join(folder, f".{uuid.uuid4().hex}.tmp")
    try:
        put(fs, temporary)
        if local:
            os.replace(temporary, path)
        elif type(fs).mv is AbstractFileSystem.mv:  # which would take the path for a pattern
            fs.cp_file(temporary, path)
            fs.rm_file(temporary)
        else:
            fs.mv(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):
            fs.rm_file(temporary)
        raise
