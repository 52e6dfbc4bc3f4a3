"""Files of which a store gives ranges of bytes, as Python's files."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from ot_core.retry import at_store


def all_of(read: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
    """The function, tried again where it gives less than was asked for."""

    def read_all(start: int, end: int) -> bytes:
        data = read(start, end)
        if len(data) != end - start:
            raise ConnectionError(f"{len(data)} bytes came where {end - start} were asked for")
        return data

    return at_store(read_all)


class Ranges(io.RawIOBase):
    """A file of known size whose bytes a function reads, from one position to another."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._read, self._size, self._at = all_of(read), size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a position, which may lie behind the end."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise ValueError(f"negative position {origin + offset}")
        self._at = origin + offset
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer, or as much of it as the file still has."""
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._read(self._at, end)
        buffer[: len(data)] = data
        self._at = end
        return len(data)

    def readall(self) -> bytes:
        """In one go; the inherited one asks for a few kilobytes at a time."""
        start, self._at = self._at, max(self._at, self._size)
        return self._read(start, self._size) if start < self._size else b""
