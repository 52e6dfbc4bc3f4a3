"""What a folder, or a glob, holds: links followed, and what can't be listed told."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from ot_core import storage
from ot_core.names import is_web
from ot_core.retry import at_store
from ot_core.storage import FileDetails

#: Objects that we ask for at once: the most that Google Cloud Storage gives; S3 gives 1000.
_PAGE = 5000
#: What tells a folder from all others, and the same of those that it was reached through.
_Chain = tuple[tuple[int, int], Any] | None


class Entry(NamedTuple):
    """A file or folder, or something else that has a name.

    Attributes:
        path: in its file system.
        is_folder: whether it is a folder, or a link to one.
        details: of a link, those of its target.
        error: why what lies below it couldn't be listed, or None.
    """

    path: str
    is_folder: bool = False
    details: FileDetails = FileDetails()
    error: Exception | None = None


def is_flat(url: str) -> bool:
    """Whether a URL is on a store without folders, of which a listing holds one page in memory."""
    return _is_flat(storage.filesystem(url)[0])


def below(fs: Any, folder: str) -> Iterator[Entry]:
    """Everything below a folder, at any depth.

    Raises:
        OSError: if the folder itself can't be listed; what can't below it is given as an entry.
    """
    if _is_flat(fs):
        yield from _objects(fs, folder.rstrip("/") + "/")
    else:
        yield from _walk(fs, folder, lambda path: True)


def matching(fs: Any, pattern: str) -> Iterator[Entry]:
    """What matches a glob; folders too, where the store has them. Nothing where there is no folder that it could be in.

    Raises:
        OSError: as `below`.
        ValueError: if it isn't a glob.
    """
    matches, root = re.compile(glob_translate(pattern)), root_of(pattern)
    if _is_flat(fs) and "/" in pattern[: _magic(pattern)]:
        entries = _objects(fs, pattern[: _magic(pattern)])
    else:
        entries = _walk(fs, root, _leads_to(pattern, root))
    try:
        yield from (entry for entry in entries if entry.error or matches.match(entry.path))
    except (FileNotFoundError, NotADirectoryError):  # only of the root: the others are entries
        return


def root_of(pattern: str) -> str:
    """The last folder of a glob before its first wildcard."""
    fixed = pattern[: _magic(pattern)]
    return fixed.rpartition("/")[0] or ("/" if fixed.startswith("/") else "")


def _magic(pattern: str) -> int:
    found = re.search(r"[*?\[]", pattern)
    return found.start() if found else len(pattern)


def _leads_to(pattern: str, root: str) -> Callable[[str], bool]:
    """Whether a folder, by its path below the root, can hold what matches."""
    parts = pattern[len(root) :].lstrip("/").split("/")
    deep = next((index for index, part in enumerate(parts) if part == "**"), None)
    parents = [re.compile(glob_translate("/".join(parts[: depth + 1]))) for depth in range(len(parts[:deep]))]

    def leads(path: str) -> bool:
        depth = path.count("/")
        if deep is not None and depth >= deep:
            return not deep or parents[deep - 1].match("/".join(path.split("/")[:deep])) is not None
        return depth < len(parts) - 1 and parents[depth].match(path) is not None

    return leads


def _walk(fs: Any, root: str, leads: Callable[[str], bool]) -> Iterator[Entry]:
    """Entries of one folder after the other, each sorted by name; what is above a link isn't walked again below it."""
    start = len(_inside(root))
    waiting: list[tuple[str, _Chain]] = [(root, None)]
    while waiting:
        folder, chain = waiting.pop()
        try:
            here = _identity(fs, folder)
            if here is not None and _holds(chain, here):
                continue  # a link to a folder that it lies in
            entries = at_store(_entries_of)(fs, folder)
        except OSError as error:
            if folder == root:
                raise
            yield Entry(folder, is_folder=True, error=error)
            continue
        yield from entries
        inner: _Chain = None if here is None else (here, chain)
        waiting += [(e.path, inner) for e in reversed(entries) if e.is_folder and leads(e.path[start:])]


def _entries_of(fs: Any, folder: str) -> list[Entry]:
    if isinstance(fs, LocalFileSystem):
        with os.scandir(folder) as found:
            return sorted(map(_local_entry, found))
    storage.check_literal(fs, folder)
    fs.invalidate_cache(folder)
    inside, entries = _inside(folder), []
    for info in fs.ls(folder, detail=True):
        path = info["name"].rstrip("/")
        name = path[len(inside) :]
        # The pages of web servers lead to themselves, too, and to themselves sorted otherwise.
        is_itself = name in ("", ".", "..") or (is_web(folder) and name.startswith("?"))
        if path.startswith(inside) and not is_itself:
            entries.append(Entry(path, info["type"] == "directory", FileDetails.of(info)))
    return sorted(entries)


def _local_entry(found: os.DirEntry[str]) -> Entry:
    try:
        status = found.stat()
    except OSError:
        return Entry(found.path)  # a broken link, say; reading it tells why
    is_folder = stat.S_ISDIR(status.st_mode)
    return Entry(found.path, is_folder, FileDetails.of({"size": status.st_size, "mtime": status.st_mtime}))


def _inside(folder: str) -> str:
    return folder.rstrip("/") + "/" if folder else ""


def _identity(fs: Any, folder: str) -> tuple[int, int] | None:
    """What a local folder has whatever path leads to it."""
    if not isinstance(fs, LocalFileSystem):
        return None
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _holds(chain: _Chain, identity: tuple[int, int]) -> bool:
    while chain is not None:
        first, chain = chain
        if first == identity:
            return True
    return False


def _is_flat(fs: Any) -> bool:
    """Whether the store lists all objects of a prefix page by page, and we know how to ask for that."""
    return bool({"gs", "gcs", "s3", "s3a"} & {fs.protocol, *fs.protocol})


def _objects(fs: Any, prefix: str) -> Iterator[Entry]:
    """Objects whose path begins so, in order, two pages of them in memory; fsspec's own listings hold them all."""
    bucket, _, start = prefix.partition("/")
    page_of = at_store(_page_of_s3 if "s3" in fs.protocol else _page_of_gcs)
    first = True
    # Ends with the last reference to it. The garbage collector may end this generator, and must wait for nothing.
    ahead = ThreadPoolExecutor(1)
    following: Future[_Page] | None = ahead.submit(page_of, fs, bucket, start, None)
    while following:
        try:
            page = following.result()
        except OSError as error:
            if first:
                raise
            yield Entry(prefix, is_folder=True, error=error)
            return
        first = False
        following = ahead.submit(page_of, fs, bucket, start, page.token) if page.token else None
        # Consoles make an empty object for a folder, whose name ends so.
        yield from (
            Entry(f"{bucket}/{name}", details=FileDetails.of(info))
            for name, info in page.objects
            if not name.endswith("/")
        )


class _Page(NamedTuple):
    """Some objects, by name, and how to ask for those that follow; None after the last."""

    objects: list[tuple[str, dict[str, Any]]]
    token: str | None


def _page_of_gcs(fs: Any, bucket: str, prefix: str, token: str | None) -> _Page:
    page = fs.call(
        "GET",
        "b/{}/o",
        bucket,
        prefix=prefix,
        pageToken=token,
        maxResults=_PAGE,
        fields="nextPageToken,items(name,size,etag,updated)",
        json_out=True,
    )
    return _Page([(item["name"], item) for item in page.get("items", [])], page.get("nextPageToken"))


def _page_of_s3(fs: Any, bucket: str, prefix: str, token: str | None) -> _Page:
    more = {"ContinuationToken": token} if token else {}
    page = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=min(_PAGE, 1000), **more)
    return _Page([(item["Key"], item) for item in page.get("Contents", [])], page.get("NextContinuationToken"))
