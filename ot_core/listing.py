"""From what a user names as an input to the images that it holds."""

from __future__ import annotations

import glob
import posixpath
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow.parquet as pq

from ot_core import folders, lists, names, shards, storage
from ot_core.errors import Cause, ImageError, OTError, UserError, as_image_error, one_line
from ot_core.groups import Grouping
from ot_core.names import Ignored
from ot_core.results import Results, results_in
from ot_core.storage import FileDetails, parent, to_url

_SHARDS = (".tar", ".parquet")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Listed(NamedTuple):
    """An image that an input names, or what of the input couldn't be listed.

    Attributes:
        key: path below the input's root, without extension.
        uri: where it is.
        problem: why the input names no image here, or None: a folder or shard that can't be read (any further), or a
            row of a list that says nothing.
        details: its version and time, as far as listing tells them.
        member: where it is in the file (`ot_core.shards`), or "" where it is the whole file.
        group: what the grouping says of it, or "".
    """

    key: str
    uri: str
    problem: ImageError | None = None
    details: FileDetails = FileDetails()
    member: str = ""
    group: str = ""


def list_images(spec: str, grouping: Grouping | None = None, ignored: Ignored | None = None) -> Iterator[Listed]:
    """The images that an input spec names, one by one, with their groups where a grouping is given.

    A spec is a folder, a glob (`**` included), one image, or a list of URLs: `.txt` (one a line), `.csv`, `.jsonl`
    or `.parquet` (a column `uri`, and optionally `key`). Folders and globs give what is named like an image, through
    links as well; lists and single URLs give what they name. Relative URLs of a list are relative to the list. The key
    of a web address is decoded, and without the query where what comes before is named like an image.

    Shards are named one by one or by a glob that ends in their extension: `.tar` (uncompressed; the members named like
    images, their keys below the shard's own unless that ends like `-00003-of-00016`) or `.parquet` without a column
    `uri` (see `shards.image_column`; its column `key`, or numbers below the shard's key). A folder gives no shards;
    but an output of transport, or its folder of an alpha, gives the results of its job (`ot_core.results`), in files or
    in shards.

    Args:
        spec: what the user named.
        grouping: what tells an image's group.
        ignored: counts the files and members that aren't named like images.

    Raises:
        UserError: before anything is given, if the spec's protocol isn't known, its root can't be listed, or a list or
            shard that it names can't be opened. What can't be listed after that is given with its problem.
    """
    listed_images = _list_images(spec, grouping.column if grouping else "", ignored or Ignored())
    if grouping is None:
        yield from listed_images
        return
    for listed in listed_images:
        yield listed if listed.problem else listed._replace(group=grouping.group_of(listed.key, listed.group))


def _list_images(spec: str, column: str, ignored: Ignored) -> Iterator[Listed]:
    """The images of a spec; those of a list with the value of that column as group."""
    try:
        fs, path = storage.filesystem(spec)
        name = names.name_of(spec)
        if _is_glob(spec, path):
            yield from _list_glob(fs, path, column, ignored)
        elif storage.is_folder(spec):
            results = results_in(spec)
            yield from _list_folder(fs, path, ignored) if results is None else _list_results(results, ignored)
        elif name.lower().endswith(_SHARDS):
            yield from _list_shard(spec, names.without_extension(name), FileDetails(), column, ignored, named=True)
        elif name.lower().endswith(_COMPRESSED):
            raise UserError(f"input {spec}: compressed; expected an uncompressed .tar, whose members can be read alone")
        elif name.lower().endswith(lists.EXTENSIONS):
            with storage.open_file(spec) as file:
                extension = names.extension_of(name)
                yield from _list_rows(spec, lists.rows_of_text(file, extension, column, ignored))
        elif storage.exists(spec):
            yield Listed(names.without_extension(name), spec)
    except UserError:
        raise
    except (ValueError, OSError, OTError) as error:
        raise UserError(f"input {spec}: can't be listed ({one_line(error)})") from error


def _list_results(results: Results, ignored: Ignored) -> Iterator[Listed]:
    """The images of an output of transport: those of its job, and nothing else that lies there."""
    if results.layout.packed:
        for shard in results.shards():
            key = names.without_extension(names.name_of(shard))
            yield from _list_shard(shard, key, FileDetails(), "", ignored)  # one that is damaged costs no other
        return
    for key, url in results.images():
        yield Listed(key, url)


def _is_glob(spec: str, path: str) -> bool:
    """Whether wildcards are meant so; what exists under its literal name is that, and web addresses have queries."""
    if names.is_web(spec):
        return "*" in names.without_query(spec)
    return glob.has_magic(path) and not storage.exists(spec)


def list_folder(url: str) -> Iterator[Listed]:
    """The files below a folder that have the extension of an image; none where there is no such folder.

    Raises:
        OSError: if it, or a folder in it, can't be listed.
    """
    fs, path = storage.filesystem(url)
    if not storage.is_folder(url):
        return
    for entry in folders.below(fs, path):
        if entry.error:
            raise entry.error
        if names.has_image_extension(entry.path):
            yield _listed(fs, path, entry)


def _list_folder(fs: Any, root: str, ignored: Ignored) -> Iterator[Listed]:
    """A folder named like an image is given too, so that reading it accounts for it."""
    for entry in folders.below(fs, root):
        below = _relative(root, entry.path)
        if entry.error or names.is_image(below):
            yield _listed(fs, root, entry)
        elif not entry.is_folder:
            ignored.add(below)


def _list_glob(fs: Any, path: str, column: str, ignored: Ignored) -> Iterator[Listed]:
    root = folders.root_of(path)
    with_shards = path.lower().endswith(_SHARDS)
    for entry in folders.matching(fs, path):
        below = _relative(root, entry.path)
        listed = _listed(fs, root, entry)
        if entry.error or names.is_image(below):
            yield listed
        elif with_shards and below.lower().endswith(_SHARDS):
            yield from _list_shard(listed.uri, listed.key, listed.details, column, ignored)
        elif not entry.is_folder:
            ignored.add(below)
        elif "**" not in path:
            ignored.add_kind("folders")


def _list_shard(
    url: str, key: str, details: FileDetails, column: str, ignored: Ignored, named: bool = False
) -> Iterator[Listed]:
    """The images of a tar or Parquet file, or the URLs of a Parquet list.

    What ends one early costs a failure and not the job; but one that the user named must be readable at all.
    """
    given = False
    try:
        with storage.open_file(url) as file:
            for listed in _images_of_shard(file, url, key, column, ignored):
                given = True
                yield listed if listed.uri != url else listed._replace(details=details)
    except Exception as error:  # a damaged file makes tarfile and pyarrow raise whatever they like
        if named and not given:
            raise UserError(f"input {url}: can't be listed ({as_image_error(error).message})") from error
        yield Listed(key, url, _unreadable(url, error))


def _unreadable(url: str, error: Exception) -> ImageError:
    """Why a file couldn't be listed to its end."""
    return ImageError(cause_of(error), f"{url} can't be read any further ({as_image_error(error).message})")


def cause_of(error: Exception) -> Cause:
    """Why something couldn't be listed: for what it holds, or as its store says."""
    is_ours = isinstance(error, ImageError)
    return Cause.BAD_LIST if shards.is_damage(error) and not is_ours else as_image_error(error).cause


def _images_of_shard(file: BinaryIO, url: str, key: str, group_column: str, ignored: Ignored) -> Iterator[Listed]:
    if names.name_of(url).lower().endswith(".tar"):
        prefix = "" if shards.is_one_of_many(posixpath.basename(key)) else f"{key}/"
        for member in shards.members_of_tar(file):
            if names.is_image(member.name):
                yield _member(url, prefix, names.without_extension(member.name), member)
            else:
                ignored.add(member.name)
        return
    parquet = pq.ParquetFile(file)
    found = parquet.schema_arrow.names
    if "uri" in found:
        yield from _list_rows(url, lists.rows_of_parquet(parquet, group_column))
        return
    column = shards.image_column(parquet.schema_arrow)
    if column is None:
        raise ImageError(Cause.BAD_LIST, f"expected a text column 'uri', or images in one of bytes, found {found}")
    for member in shards.rows_of_parquet(parquet, column):
        yield _member(url, "" if "key" in found else f"{key}/", member.name, member)


def _member(url: str, prefix: str, key: str, member: shards.Member) -> Listed:
    problem = ImageError(Cause.BAD_LIST, member.problem) if member.problem else None
    # Made normal by itself: what would leave the shard must not become what lies beside it.
    return Listed(prefix + names.normal_key(key), url, problem, member=member.place)


def _list_rows(spec: str, rows: Iterator[lists.Row | str]) -> Iterator[Listed]:
    """A row that can't be understood is given with its problem, so that it costs one failure and not the job."""
    folder, number = parent(names.without_query(spec)), 0
    try:
        for number, row in enumerate(rows, start=1):
            if isinstance(row, str):
                yield Listed("", spec, ImageError(Cause.BAD_LIST, f"row {number} of {spec}: {row}"))
            else:
                uri, key = names.resolved(folder, row.uri)
                yield Listed(names.normal_key(row.key) if row.key else key, uri, group=row.group)
    except (OSError, OTError, ValueError) as error:
        if not number:
            raise
        yield Listed("", spec, _unreadable(spec, error))


def _listed(fs: Any, root: str, entry: folders.Entry) -> Listed:
    url = to_url(fs, entry.path)
    key = names.key_of(_relative(root, entry.path), names.is_web(url))
    problem = None
    if entry.error:
        known = as_image_error(entry.error)
        problem = ImageError(known.cause, f"this folder can't be listed: {known.message}")
    return Listed(key, url, problem, entry.details)


def _relative(root: str, path: str) -> str:
    return (path[len(root) :] if path.startswith(root) else path).lstrip("/")
