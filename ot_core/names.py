"""What a file's name says: whether it is an image, its key, and as what it is counted if it isn't taken."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from ot_core.images import EXTENSIONS
from ot_core.layout import is_staged
from ot_core.storage import join

#: What files count as that have no extension which would say anything.
_WITHOUT, _HIDDEN, _OTHERS = "without_extension", "hidden", "others"
#: Metrics have a name for each, so they are few.
_MOST_KINDS: Final = 10
#: Parts of a path that lead nowhere, or up.
_NOT_NORMAL = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")
_ONE_SLASH = re.compile(r"file:/(?!/)")
_EXTENSION = re.compile(r"\.[a-z0-9_-]{1,12}")
_WEB = re.compile(r"https?://", re.IGNORECASE)


def has_image_extension(name: str) -> bool:
    """Whether a name ends like an image's."""
    return name.lower().endswith(EXTENSIONS)


def is_image(path: str) -> bool:
    """Whether a path below an input's root is an image's, and not of what macOS or a job of ours keeps beside them."""
    return has_image_extension(path) and not (path.rpartition("/")[2].startswith("._") or is_staged(path))


def extension_of(path: str) -> str:
    """The last extension in lower case, with its dot; "" where there is none."""
    return posixpath.splitext(path)[1].lower()


def without_extension(path: str) -> str:
    """A path without its last extension."""
    return posixpath.splitext(path)[0]


def is_web(url: str) -> bool:
    """Whether a URL is a web server's."""
    return _WEB.match(url) is not None


def without_query(url: str) -> str:
    """A web address without its query and fragment; in other URLs ? and # are letters like others."""
    return re.split("[?#]", url, maxsplit=1)[0] if is_web(url) else url


def name_of(url: str) -> str:
    """The last part of a URL's path, of a web address decoded."""
    path = without_query(url).rstrip("/").rpartition("/")[2]
    return unquote(path) if is_web(url) else path


def key_of(path: str, web: bool = False) -> str:
    """The key of a file by its path below the root; from the web, decoded.

    A query, which may be a signature, is left out if the path says by itself that it is an image.
    """
    if web:
        path, mark, query = re.match(r"([^?#]*)([?#]?)(.*)", path, re.DOTALL).groups()  # type: ignore[union-attr]
        path = unquote(path)
        if mark and not has_image_extension(path):
            return normal_key(path) + mark + query
    return normal_key(without_extension(path))


def normal_key(key: str) -> str:
    """A key without what doesn't change where a path leads: of "./a", "b//a", "b/./a" and "c/../a".

    What is absolute or leads out of its root stays as it is, for `ot_core.storage.check_key` to refuse.
    """
    if not _NOT_NORMAL.search(key) or key.startswith("/") or not key:
        return key
    normal = posixpath.normpath(key)
    return key if normal == ".." or normal.startswith("../") else normal


def resolved(folder: str, entry: str) -> tuple[str, str]:
    """What an entry of a list names, and its key: its path below the list's folder, else its whole path.

    Args:
        folder: the URL of the list's folder, which relative entries are below.
        entry: a URL or path.
    """
    if _ONE_SLASH.match(entry):
        entry = entry.removeprefix("file:")
    if "://" not in entry and not entry.startswith("/"):
        return _joined(folder, entry), key_of(entry, is_web(folder))
    web, root = is_web(entry), posixpath.normpath(_after_protocol(folder)).rstrip("/") + "/"
    path = _after_protocol(without_query(entry))
    query = _after_protocol(entry)[len(path) :]
    below = posixpath.normpath(path).removeprefix(root).lstrip("/")
    return entry, key_of(below + query, web)


def _after_protocol(url: str) -> str:
    return url.split("://", 1)[-1]


def _joined(folder: str, entry: str) -> str:
    """A URL below a folder. Local file systems know themselves where ".." leads, which may be through a link."""
    parts = [part for part in entry.split("/") if part != "."]
    protocol, mark, path = folder.partition("://")
    if ".." not in parts or not mark or protocol == "file":
        return join(folder, *parts)
    found = path.split("/")
    for part in parts:
        if part == ".." and len(found) > 1 and found[-1] != "..":
            found.pop()
        else:
            found.append(part)
    return f"{protocol}://{'/'.join(found)}"


class Ignored:
    """Counts what an input holds and isn't taken, under a bounded number of kinds, most of which are extensions."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, name: str) -> None:
        """Counts a file by its name, with its path below the input's root."""
        self.add_kind(_kind_of(name))

    def add_kind(self, kind: str) -> None:
        """Counts something that its name doesn't say."""
        if kind not in self.counts and len(self.counts) >= _MOST_KINDS:
            kind = _OTHERS
        self.counts[kind] = self.counts.get(kind, 0) + 1


def _kind_of(name: str) -> str:
    last = name.rpartition("/")[2]
    extension = extension_of(last)
    if last.startswith(".") or is_staged(name):
        return _HIDDEN
    if not extension:
        return _WITHOUT
    return extension if _EXTENSION.fullmatch(extension) else _OTHERS


def told_ignored(counts: Mapping[str, int]) -> str:
    """How people are told what was ignored: `12 files ignored: 9 .avif, 3 without extension`."""
    kinds = sorted(counts.items(), key=lambda item: (item[0] == _OTHERS, -item[1], item[0]))
    listed = ", ".join(f"{n} {kind.replace('_', ' ') if kind[0] != '.' else kind}" for kind, n in kinds)
    total = sum(counts.values())
    return f"{total} {'file' if total == 1 else 'files'} ignored: {listed}"
