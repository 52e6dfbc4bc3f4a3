"""Whether two URLs lead to one place, however they are spelt."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from ot_core import storage


class Place(NamedTuple):
    """Where a URL leads: the store, and the path in it without links and doubled slashes."""

    store: str
    path: str

    @classmethod
    def of(cls, url: str) -> Place:
        """From any spelling; a local path need not exist.

        Raises:
            OSError: if the store isn't known.
        """
        fs, path = storage.filesystem(url)
        while isinstance(inner := getattr(fs, "fs", None), object) and hasattr(inner, "protocol"):
            fs = inner  # a cache in front of a store
        if isinstance(fs, LocalFileSystem):
            return cls("", os.path.realpath(path))
        return cls(_name_of(fs), "/" + re.sub("/+", "/", path).strip("/"))

    def lies_below(self, folder: Place) -> bool:
        """Whether it is that folder, or in it."""
        if self.store != folder.store:
            return False
        return (self.path.rstrip("/") + "/").startswith(folder.path.rstrip("/") + "/") or (
            not self.store and _has_parent(self.path, folder.path)
        )


def _name_of(fs: Any) -> str:
    """One of several names that a store has, always the same."""
    return fs.protocol if isinstance(fs.protocol, str) else min(fs.protocol)


def _has_parent(path: str, folder: str) -> bool:
    """Whether a folder is the same directory as one above a path: mounted twice, or where case doesn't count."""
    try:
        wanted = os.stat(folder)
    except OSError:
        return False
    while True:
        try:
            if os.path.samestat(os.stat(path), wanted):
                return True
        except OSError:
            pass
        above = os.path.dirname(path)
        if above == path:
            return False
        path = above
