"""A store that answers late: the local disk behind `slow://`, where each call waits first.

    slow:///tmp/photos/0001.jpg

Importing this module registers the protocol with fsspec; the environment variable DOT_SLOW_MILLISECONDS says how long
a call waits, so that child processes wait as long. Like a real object store it has an atomic PUT: a file is written
beside its final name and renamed within one call. `ot_core.storage` knows by a file system's protocols whether it may
rely on that, so this one carries the protocol of fsspec's in-memory store, whose PUT is atomic too, as its second name.
"""

from __future__ import annotations

import io
import os
import posixpath
import time
import uuid
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

#: Milliseconds that each call waits.
LATENCY = "DOT_SLOW_MILLISECONDS"


class SlowFileSystem(fsspec.AbstractFileSystem):
    """Every method that would be a request to a store is one here, and waits once."""

    protocol = ("slow", "memory")
    cachable = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._disk = LocalFileSystem()
        self._seconds = float(os.environ.get(LATENCY, "0")) / 1000

    def _request(self) -> LocalFileSystem:
        time.sleep(self._seconds)
        return self._disk

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        """One request for each folder; a real store pages by 1000."""
        return self._request().ls(self._strip_protocol(path), detail=detail)

    def info(self, path: str, **options: Any) -> Any:
        """HEAD."""
        return self._request().info(self._strip_protocol(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> Any:
        """GET."""
        return self._request().cat_file(self._strip_protocol(path), start=start, end=end)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """PUT."""
        disk, path = self._request(), self._strip_protocol(path)
        folder = posixpath.dirname(path)
        disk.makedirs(folder, exist_ok=True)
        temporary = posixpath.join(folder, f".{uuid.uuid4().hex}.tmp")
        disk.pipe_file(temporary, value)
        os.replace(temporary, path)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        """PUT."""
        with open(lpath, "rb") as file:
            self.pipe_file(rpath, file.read())

    def rm_file(self, path: str) -> None:
        """DELETE."""
        self._request().rm_file(self._strip_protocol(path))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """GET; the store's own writers use `pipe_file`."""
        if mode != "rb":
            raise NotImplementedError(f"slow:// is read or written whole, not opened as {mode}")
        return io.BytesIO(self.cat_file(path))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Stores have no folders."""


fsspec.register_implementation("slow", SlowFileSystem, clobber=True)
