"""Reading from web servers, of which some know neither HEAD, nor ranges of bytes, nor how long an answer will be."""

from __future__ import annotations

import collections
import functools
import os
import re
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import IO, Any, NamedTuple

from fsspec.asyn import sync

#: How a range of bytes, or that there is none there, is told: its start and the size of the whole file.
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_CHUNK = 1 << 20
#: Files of servers without ranges that are kept on disk, for those who read them part by part.
_KEPT = 2
#: What changes when a file does: ETag, Last-Modified, size.
_Stamp = tuple[str | None, str | None, int | None]
#: Of an answer that doesn't say how long it is, so that one without end doesn't fill the disk.
_LONGEST_UNTOLD = 1 << 36


class Info(NamedTuple):
    """What a server tells of a file, the names being fsspec's.

    Attributes:
        size: in bytes; None if it doesn't tell.
        ranges: whether it gives parts of the file.
        headers: ETag, Last-Modified, Content-Type, as far as there are.
    """

    size: int | None
    ranges: bool
    headers: dict[str, str]


def info(fs: Any, url: str) -> Info:
    """Asks for a byte of a file, since not all servers answer HEAD, and never for all of it.

    Raises:
        FileNotFoundError: for 404 and 410.
        aiohttp.ClientError: for everything else.
    """

    async def ask() -> Info:
        async with _answer(fs, url, 0, 1) as answer:
            start, size = _range_of(answer)
            names = ("ETag", "Last-Modified", "Content-Type")
            headers = {name: answer.headers[name] for name in names if answer.headers.get(name)}
            ranges = answer.status == 416 or start == 0
            return Info(size if ranges else _length_of(answer), ranges, headers)

    return _run(fs, ask)


def read_range(fs: Any, url: str, start: int, end: int) -> bytes:
    """Bytes of a file; fewer where it ends before. A server without ranges is asked for the whole file once.

    Raises:
        As `info`.
    """

    async def ask() -> bytes | _Stamp:
        async with _answer(fs, url, start, end) as answer:
            if answer.status == 416:
                return b""
            if start and _range_of(answer)[0] != start:
                return _stamp_of(answer)
            data = bytearray()
            while len(data) < end - start and (chunk := await answer.content.read(_CHUNK)):
                data += chunk
            return bytes(data[: end - start])

    data = _run(fs, ask)
    return data if isinstance(data, bytes) else _downloads.get(fs, url, data).read(start, end)


def open_file(fs: Any, url: str) -> tuple[Callable[[int, int], bytes], int]:
    """How to read ranges of a file, and its size; one of a server that doesn't give ranges is downloaded first.

    Raises:
        As `info`.
    """

    async def ask() -> int | _Stamp:
        async with _answer(fs, url, 0, 1) as answer:
            start, size = _range_of(answer)
            return size if size is not None and start in (0, None) else _stamp_of(answer)

    found = _run(fs, ask)
    if isinstance(found, int):
        return functools.partial(read_range, fs, url), found
    download = _downloads.get(fs, url, found)
    return download.read, download.size


@asynccontextmanager
async def _answer(fs: Any, url: str, start: int, end: int | None) -> AsyncIterator[Any]:
    """The answer to a request for some bytes, or for all without an end; its body isn't read."""
    import aiohttp  # noqa: PLC0415 - comes with fsspec[http]

    session = await fs.set_session()
    settings = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60), **fs.kwargs}
    headers = {"Accept-Encoding": "identity", **settings.pop("headers", {})}
    if end is not None:
        headers["Range"] = f"bytes={start}-{end - 1}"
    answer = await session.get(fs.encode_url(url), headers=headers, **settings)
    try:
        if answer.status != 416:
            answer.raise_for_status()
        yield answer
    finally:
        answer.close()  # what follows of the body isn't waited for


def _range_of(answer: Any) -> tuple[int | None, int | None]:
    """Where an answer starts in the file, and how long that is; None for what it doesn't tell."""
    found = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
    if found is None:
        return None, None
    return (None if found[1] is None else int(found[1])), (None if found[2] == "*" else int(found[2]))


def _length_of(answer: Any) -> int | None:
    encoded = answer.headers.get("Content-Encoding", "identity") != "identity"
    return None if encoded else answer.content_length


def _stamp_of(answer: Any) -> _Stamp:
    return answer.headers.get("ETag"), answer.headers.get("Last-Modified"), answer.content_length


def _run(fs: Any, ask: Callable[[], Awaitable[Any]]) -> Any:
    return sync(fs.loop, ask)


class _Download:
    """A file that is read from its server once, and lies on the local disk for as long as somebody holds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None

    def made(self, fs: Any, url: str) -> _Download:
        """Itself, once the file is here; whoever comes meanwhile waits."""
        with self._lock:
            if self._file is None:
                self._file = self._download(fs, url)
        return self

    def _download(self, fs: Any, url: str) -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when nobody holds it

        async def ask() -> None:
            async with _answer(fs, url, 0, None) as answer:
                longest = _LONGEST_UNTOLD if answer.content_length is None else answer.content_length
                size = 0
                while chunk := await answer.content.read(_CHUNK):
                    size += file.write(chunk)
                    if size > longest:
                        raise OSError(f"{url}: more than {longest} bytes, and the server doesn't tell how many")

        _run(fs, ask)
        file.flush()
        return file

    def read(self, start: int, end: int) -> bytes:
        assert self._file is not None
        return os.pread(self._file.fileno(), end - start, start)

    @property
    def size(self) -> int:
        assert self._file is not None
        return os.fstat(self._file.fileno()).st_size


class _Downloads:
    """The last few files that servers without ranges gave; one that changed there is asked for again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[tuple[str, _Stamp], _Download] = collections.OrderedDict()

    def get(self, fs: Any, url: str, stamp: _Stamp) -> _Download:
        with self._lock:
            download = self._kept.pop((url, stamp), None) or _Download()
            self._kept[url, stamp] = download
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return download.made(fs, url)


_downloads = _Downloads()
