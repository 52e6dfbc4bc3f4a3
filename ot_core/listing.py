"""From what a user names as an input to the images that it holds, listed through fsspec."""

from __future__ import annotations

import csv
import glob
import io
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.utils import glob_translate

from ot_core import shards
from ot_core.errors import UserError
from ot_core.groups import Grouping
from ot_core.images import EXTENSIONS
from ot_core.retry import retried
from ot_core.storage import FileDetails, join, one_line, parent, to_url

_LISTS = (".txt", ".csv", ".jsonl")
_SHARDS = (".tar", ".parquet")
#: Objects that we ask for at once: the most that Google Cloud Storage gives; S3 gives 1000.
_PAGE = 5000
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
#: Of a list: uri, key if there is one, and the column that tells the group.
_Row = tuple[str, str | None, str]


class Listed(NamedTuple):
    """An image that an input names.

    Attributes:
        key: path below the input's root, without extension.
        uri: where it is.
        problem: what is wrong with the row of a list that should have named it, or "".
        details: its version and time, as far as listing tells them.
        part: which part of the file it is (`ot_core.shards`), or "" where it is the whole file.
        group: what the grouping says of it, or "".
    """

    key: str
    uri: str
    problem: str = ""
    details: FileDetails = FileDetails()
    part: str = ""
    group: str = ""


def list_images(spec: str, grouping: Grouping | None = None) -> Iterator[Listed]:
    """The images that an input spec names, one by one, with their groups where a grouping is given.

    A spec is a folder, a glob (`**` included), one image, or a list of URLs: `.txt` (one a line), `.csv`, `.jsonl`
    or `.parquet` (a column `uri`, and optionally `key`). Folders and globs give what is named like an image;
    lists and single URLs give what they name. Relative URLs of a list are relative to the list.

    Shards are named one by one or by a glob that ends in their extension: `.tar` (uncompressed; the members named like
    images, their keys below the shard's own unless that ends like `-00003-of-00016`) or `.parquet` without a column
    `uri` (the only column of bytes, or of structs with bytes; its column `key`, or numbers below the shard's key).
    A folder gives no shards.

    Raises:
        UserError: if the spec's protocol isn't known, its root can't be listed, or a list can't be opened.
    """
    if grouping is None:
        yield from _list_images(spec, "")
        return
    for listed in _list_images(spec, grouping.column):
        yield listed._replace(group=grouping.group_of(listed.key, listed.group))


def _list_images(spec: str, column: str) -> Iterator[Listed]:
    """The images of a spec; those of a list with the value of that column as group."""
    try:
        fs, path = url_to_fs(spec)
        if glob.has_magic(path) and not fs.exists(path):
            yield from _list_glob(fs, path, column)
        elif fs.isdir(path):
            yield from _list_folder(fs, path, path)
        elif path.lower().endswith(_SHARDS):
            yield from _list_shard(fs, path, _without_extension(posixpath.basename(path)), fs.info(path), column, spec)
        elif path.lower().endswith(_COMPRESSED):
            raise UserError(f"input {spec}: compressed; expected an uncompressed .tar, whose members can be read alone")
        elif path.lower().endswith(_LISTS):
            yield from _list_list(spec, fs, path, column)
        elif fs.exists(path):
            yield Listed(_without_extension(posixpath.basename(path)), spec)
    except UserError:
        raise
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"input {spec}: can't be listed ({one_line(error)})") from None


def list_folder(url: str) -> Iterator[Listed]:
    """The images below a folder; none where there is no such folder."""
    fs, path = url_to_fs(url)
    if fs.isdir(path):
        yield from _list_folder(fs, path, path)


def _list_folder(fs: Any, root: str, folder: str) -> Iterator[Listed]:
    """Walks a folder. A folder named like an image is given too, so that reading it accounts for it."""
    if _is_flat(fs):
        for path, info in _objects(fs, folder.rstrip("/") + "/"):
            if _like_image(path):
                yield _listed(fs, root, path, info)
        return
    fs.invalidate_cache(folder)
    for current, folders, files in fs.walk(folder, detail=True):
        for name, info in sorted([*files.items(), *folders.items()]):
            if name and _like_image(name):
                yield _listed(fs, root, posixpath.join(current, name), info)


def _list_glob(fs: Any, path: str, column: str) -> Iterator[Listed]:
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
    root = fixed.rpartition("/")[0] or ("/" if fixed.startswith("/") else "")
    with_shards = path.lower().endswith(_SHARDS)
    for match, info in _matches(fs, path, fixed):
        if with_shards and match.lower().endswith(_SHARDS):
            yield from _list_shard(fs, match, _listed(fs, root, match, info).key, info, column)
        elif _like_image(match):
            yield _listed(fs, root, match, info)


def _matches(fs: Any, path: str, fixed: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Paths that match a glob, which begins with the text `fixed`, and what the store tells of them."""
    if _is_flat(fs) and "/" in fixed:
        pattern = re.compile(glob_translate(path))
        yield from ((found, info) for found, info in _objects(fs, fixed) if pattern.match(found))
    else:
        fs.invalidate_cache()
        yield from sorted(fs.glob(path, detail=True).items())


def is_flat(url: str) -> bool:
    """Whether a URL is on a store without folders, of which a listing holds one page in memory."""
    return _is_flat(url_to_fs(url)[0])


def _is_flat(fs: Any) -> bool:
    """Whether the store lists all objects of a prefix page by page, and we know how to ask for that."""
    return bool({"gs", "gcs", "s3", "s3a"} & {fs.protocol, *fs.protocol})


def _objects(fs: Any, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects whose path begins so, in order, two pages of them in memory; fsspec's own listings hold them all."""
    bucket, _, start = prefix.partition("/")
    page_of = _page_of_s3 if "s3" in fs.protocol else _page_of_gcs
    with ThreadPoolExecutor(1) as ahead:
        following: Future[_Page] | None = ahead.submit(page_of, fs, bucket, start, None)
        while following:
            page = following.result()
            following = ahead.submit(page_of, fs, bucket, start, page.token) if page.token else None
            yield from ((f"{bucket}/{name}", info) for name, info in page.objects)


class _Page(NamedTuple):
    """Some objects, by name, and how to ask for those that follow; None after the last."""

    objects: list[tuple[str, dict[str, Any]]]
    token: str | None


def _page_of_gcs(fs: Any, bucket: str, prefix: str, token: str | None) -> _Page:
    page = retried(fs.call)(
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
    page = retried(fs.call_s3)("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=min(_PAGE, 1000), **more)
    return _Page([(item["Key"], item) for item in page.get("Contents", [])], page.get("NextContinuationToken"))


def _list_shard(fs: Any, path: str, key: str, info: Mapping[str, Any], column: str, spec: str = "") -> Iterator[Listed]:
    """The images of a tar or Parquet file, or the URLs of a Parquet list.

    What ends one early costs a failure and not the job; but one that the user named (spec) must be readable at all.
    """
    url, details, listed = spec or to_url(fs, path), FileDetails.of(info), None
    try:
        for listed in _images_of_shard(fs, path, url, key, column):
            yield listed if listed.uri != url else listed._replace(details=details)
    except (tarfile.TarError, pa.ArrowException) as error:
        if spec and listed is None:
            raise UserError(f"input {spec}: can't be listed ({one_line(error)})") from None
        yield Listed(key, url, f"{url} can't be read any further ({one_line(error)})")


def _images_of_shard(fs: Any, path: str, url: str, key: str, group_column: str) -> Iterator[Listed]:
    with fs.open(path, "rb") as file:
        if path.lower().endswith(".tar"):
            prefix = "" if shards.is_one_of_many(posixpath.basename(key)) else f"{key}/"
            for member in shards.members_of_tar(file):
                if _like_image(member.name):
                    yield Listed(prefix + _without_extension(member.name), url, member.problem, part=member.part)
            return
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        column = None if "uri" in names else shards.image_column(parquet.schema_arrow)
        if column is None:
            yield from _list_list(url, fs, path, group_column)
            return
        for member in shards.rows_of_parquet(parquet, column):
            name = member.name if "key" in names else f"{key}/{member.name}"
            yield Listed(name, url, member.problem, part=member.part)


def _list_list(spec: str, fs: Any, path: str, column: str) -> Iterator[Listed]:
    """A row that can't be understood is given with its problem, so that it costs one failure and not the job."""
    folder = parent(spec)
    with fs.open(path, "rb") as file:
        for number, row in enumerate(_rows_of_list(path, file, column), start=1):
            uri, key, group = row if isinstance(row, tuple) else ("", None, "")
            if not uri:
                problem = f"row {number} of {spec}: " + (row if isinstance(row, str) else "empty uri")
                yield Listed("", spec, problem)
                continue
            if "://" not in uri and not uri.startswith("/"):
                key, uri = key or _without_extension(uri), join(folder, uri)
            yield Listed(key or _key_below(folder, uri), uri, group=group)


def _rows_of_list(path: str, file: Any, column: str) -> Iterator[_Row | str]:
    """The columns uri, key and that one of each row, or what is wrong with it."""
    extension = posixpath.splitext(path)[1].lower()
    if extension == ".txt":
        for line in io.TextIOWrapper(file, "utf-8-sig"):
            if line.strip():
                yield line.strip(), None, ""
    elif extension == ".csv":
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline="")):
            yield _columns(row, column)
    elif extension == ".jsonl":
        for line in io.TextIOWrapper(file, "utf-8-sig"):
            if line.strip():
                try:
                    yield _columns(json.loads(line), column)
                except ValueError as error:
                    yield f"not JSON ({error})"
    else:
        parquet = pq.ParquetFile(file)
        found = parquet.schema_arrow.names
        # Other columns may hold whole images; where there is no uri, one column is enough to say so for each row.
        wanted = [name for name in ("uri", "key", column) if name in found] or found[:1]
        for batch in parquet.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                yield _columns(row, column)


def _columns(row: Any, column: str) -> _Row | str:
    """The columns uri, key and that one of a row, or what is wrong with it."""
    if not isinstance(row, dict) or not isinstance(row.get("uri"), str):
        found = sorted(map(str, row)) if isinstance(row, dict) else type(row).__name__
        return f"expected a text column 'uri', found {found}"
    key = row.get("key")
    group = _text(row.get(column)) if column else ""
    return row["uri"].strip(), key if isinstance(key, str) and key else None, group


def _text(value: Any) -> str:
    """A cell as text; "" where it is empty or no single value."""
    text = str(value).strip() if isinstance(value, str | int | float) else ""
    return text.encode("utf-8", "backslashreplace").decode()  # JSON may hold half of a surrogate pair


def _listed(fs: Any, root: str, path: str, info: Mapping[str, Any]) -> Listed:
    relative = path[len(root) :].lstrip("/") if path.startswith(root) else path
    return Listed(_without_extension(relative), to_url(fs, path), details=FileDetails.of(info))


def _key_below(root: str, uri: str) -> str:
    """A key for a URL of a list: its path below the list's folder, else its whole path without the protocol."""
    path = uri.split("://", 1)[-1]
    base = root.split("://", 1)[-1].rstrip("/") + "/"
    return _without_extension(path.removeprefix(base).lstrip("/"))


def _like_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _without_extension(path: str) -> str:
    return posixpath.splitext(path)[0]
