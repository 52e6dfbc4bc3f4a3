"""Images inside larger files: members of WebDataset tar files, and cells of Parquet files; reading and writing them.

A *place* is a text that says where in its file an image is: `tar:<offset>:<size>:<name>` is a range of bytes, and
`row:<row group>:<row>:<column>` a cell; rows are counted from the start of their row group. A column is a JSON list of
the names that lead to it, since names may hold any character.
"""

from __future__ import annotations

import functools
import io
import json
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ot_core.errors import Cause, ImageError, TooManyBytesError, as_image_error, one_line
from ot_core.images import DEFAULT_MAX_BYTES
from ot_core.storage import check_size, open_file, read_bytes

#: Extensions of the kinds of shards that we write.
EXTENSIONS: Final = {"webdataset": ".tar", "parquet": ".parquet"}
#: Names of shards that together hold one set of images, whose names are unique among all of them.
_ONE_OF_MANY = re.compile(r"(.+-)?\d{5}-of-\d{5}")
#: Bytes of encoded images in a row group, which readers hold in memory; one image may be larger.
_ROW_GROUP_BYTES = 32 << 20
#: Of a column chunk, what isn't cells, at most.
_PAGE_HEADERS = 1 << 20
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
#: Names that say which of several columns of bytes holds the images, the most telling first.
_IMAGE_COLUMNS = ("image", "image.bytes", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
#: The name of a column, or that of a struct and of its field.
Column = tuple[str, ...]
_SCHEMA = pa.schema([("key", pa.string()), ("image", _IMAGE)])
#: With this, Hugging Face's datasets decodes the images.
_FEATURES = {"key": {"dtype": "string", "_type": "Value"}, "image": {"_type": "Image"}}


class Member(NamedTuple):
    """Something in a tar file, or a row of a Parquet file.

    Attributes:
        name: as the file has it; a row without a key has its number.
        place: see the module.
        problem: why it can't be read, or "".
    """

    name: str
    place: str
    problem: str = ""


def members_of_tar(file: BinaryIO) -> Iterator[Member]:
    """Members in order, nothing of them kept in memory.

    Raises:
        tarfile.TarError: where the file isn't an uncompressed tar file, is damaged, or ends early.
    """
    for _, member in _infos_of_tar(file):
        if member.isdir():
            continue
        name = member.name.removeprefix("./")
        plain = member.isreg() and not member.issparse()
        problem = "" if plain else f"member {name!r}: a link or something else that holds no image itself"
        yield Member(name, f"tar:{member.offset_data}:{member.size}:{name}", problem)


def _infos_of_tar(file: BinaryIO) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a tar file, and of others that follow in the same file (`cat a.tar b.tar`).

    tarfile alone stops at the first mark of an end, and takes a damaged header for one, too.
    """
    start: int | None = 0
    while start is not None:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile remembers all it has seen
                yield tar, member
            end: int = tar.offset
        start, marked = _after_zeros(file, end)
        if not marked:
            what = "the file ends without a mark of its end" if start is None else "no header of a member"
            raise tarfile.ReadError(f"{what} at byte {end}")


def _after_zeros(file: BinaryIO, position: int) -> tuple[int | None, bool]:
    """Where the blocks of zeros end that mark the end of a tar file, None at the file's end; and if there are any."""
    file.seek(position)
    marked = False
    while data := file.read(2048 * tarfile.BLOCKSIZE):
        blocks = (len(data) - len(data.lstrip(b"\0"))) // tarfile.BLOCKSIZE
        marked = marked or blocks > 0
        position += blocks * tarfile.BLOCKSIZE
        if data.strip(b"\0"):
            return position, marked
    return None, marked


def image_column(schema: pa.Schema) -> Column | None:
    """The column with encoded images: of bytes, or of structs with bytes in a field `bytes`; None where there is none.

    Raises:
        ImageError: BAD_LIST where several could be it, and no name says which (`image`, `jpg`, `bytes` and the like).
    """
    found: list[Column] = [(field.name,) for field in schema if _is_bytes(field.type)]
    found += [
        (field.name, "bytes")
        for field in schema
        if pa.types.is_struct(field.type)
        and any(inner.name == "bytes" and _is_bytes(inner.type) for inner in field.type)
    ]
    if not found:  # checksums are of fixed size, and images hardly ever
        found = [(field.name,) for field in schema if pa.types.is_fixed_size_binary(field.type)]
    named = sorted(
        (c for c in found if c[0].lower() in _IMAGE_COLUMNS), key=lambda c: _IMAGE_COLUMNS.index(c[0].lower())
    )
    if len(found) > 1 and not named:
        columns = ", ".join(name for name, *_ in found)[:200]
        raise ImageError(Cause.BAD_LIST, f"several columns could hold the images: {columns}; rename one to 'image'")
    return next(iter(named or found), None)


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def rows_of_parquet(parquet: pq.ParquetFile, column: Column) -> Iterator[Member]:
    """A member for each row, named by the column `key` if there is one of text; images themselves aren't read.

    A row group whose keys can't be read is a single one, with a problem.
    """
    has_keys = "key" in parquet.schema_arrow.names
    path = json.dumps(column)
    number = 0
    for group in range(parquet.num_row_groups):
        count = parquet.metadata.row_group(group).num_rows
        try:
            keys = parquet.read_row_group(group, columns=["key"])["key"].to_pylist() if has_keys else [None] * count
        except Exception as error:  # pyarrow raises several kinds for damaged files
            problem = f"rows {number} to {number + count - 1}: {as_image_error(error).message}"
            yield Member(f"{number:08d}", f"row:{group}:0:{path}", problem)
            number += count
            continue
        for row, key in enumerate(keys):
            problem = f"row {number}: expected a text in column 'key', found {type(key).__name__}"
            wrong = has_keys and not (isinstance(key, str) and key)
            name = key if isinstance(key, str) else f"{number:08d}"
            yield Member(name, f"row:{group}:{row}:{path}", problem if wrong else "")
            number += 1


def read_member(
    url: str, place: str, max_bytes: int = DEFAULT_MAX_BYTES, reserve: Callable[[int], None] | None = None
) -> bytes:
    """The encoded image at a place of a file; the whole file where the place is "".

    A Parquet row group is read whole and kept until another is asked for.

    Args:
        url: of the file.
        place: see the module.
        max_bytes: of the encoded image, and in a row group of all on average.
        reserve: as in `read_bytes`.

    Raises:
        TooManyBytesError: if it has more.
        ImageError: DAMAGED where it isn't there or holds no bytes.
        OSError: as `read_bytes`.
    """
    if not place:
        return read_bytes(url, max_bytes, reserve=reserve)
    kind, first, second, name = place.split(":", 3)
    if kind == "tar":
        start, size = int(first), int(second)
        data = read_bytes(url, max_bytes, start, start + size, reserve) if size else b""
        if len(data) != size:
            raise ImageError(Cause.DAMAGED, f"the file ends {size - len(data)} bytes before its member {name} does")
        return data
    cells = _column_of_row_group(url, int(first), name, max_bytes)
    value = cells[int(second)].as_py() if int(second) < len(cells) else None
    for field in json.loads(name)[1:]:
        value = value.get(field) if isinstance(value, dict) else None
    if not isinstance(value, bytes):
        raise ImageError(Cause.DAMAGED, f"row {second} of row group {first} holds no bytes in {_dotted(name)}")
    check_size(len(value), max_bytes)
    if reserve is not None:
        reserve(len(value))
    return value


@functools.lru_cache(maxsize=1)
def _column_of_row_group(url: str, group: int, column: str, max_bytes: int) -> pa.ChunkedArray:
    """Of a struct, only the field that is asked for."""
    with open_file(url) as file:
        try:
            parquet = pq.ParquetFile(file)
            _check_row_group(parquet.metadata.row_group(group), _dotted(column), max_bytes)
            # A dotted name may be that of one column and lead into another at the same time.
            return parquet.read_row_group(group, columns=[_dotted(column)])[json.loads(column)[0]]
        except (pa.ArrowException, OSError, LookupError) as error:
            if not is_damage(error):
                raise
            raise ImageError(Cause.DAMAGED, f"row group {group} can't be read ({one_line(error)})") from None


def _dotted(column: str) -> str:
    """A column's name as Parquet has it."""
    return ".".join(json.loads(column))


def is_damage(error: Exception) -> bool:
    """Whether reading a file failed for what it holds, as tarfile and pyarrow say it, and not for its store."""
    return not isinstance(error, OSError | MemoryError) or (type(error) is OSError and error.errno is None)


def _check_row_group(row_group: pq.RowGroupMetaData, column: str, max_bytes: int) -> None:
    """Refuses to decompress what can't but hold a cell that is too large."""
    chunks = [row_group.column(index) for index in range(row_group.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
    if size > max_bytes * row_group.num_rows + _PAGE_HEADERS:
        raise TooManyBytesError(
            f"{size} bytes in a row group's {row_group.num_rows} rows, over the limit of {max_bytes} a row"
        )


def name_of(place: str) -> str:
    """How a place is called where people read it: a member's name, or a row's number."""
    kind, first, second, name = place.split(":", 3)
    return name if kind == "tar" else f"row group {first}, row {second}"


def is_one_of_many(stem: str) -> bool:
    """Whether a shard's name without extension says that it is one of many of one set: `x-00003-of-00016`."""
    return _ONE_OF_MANY.fullmatch(stem) is not None


def write_shard(local_path: str, images: Iterable[tuple[str, bytes]]) -> None:
    """Writes encoded images to a local file, whose kind its extension tells; the same images give the same bytes.

    Args:
        local_path: ends in `.tar` or `.parquet`.
        images: (name, encoded image) one by one; a name is a key with the image's extension.
    """
    if local_path.endswith(EXTENSIONS["webdataset"]):
        _write_tar(local_path, images)
    else:
        _write_parquet(local_path, images)


def _write_tar(local_path: str, images: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(local_path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in images:
            member = tarfile.TarInfo(name)  # owner and time stay 0
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            tar.members = []  # type: ignore[attr-defined]  # tarfile remembers all it has written


def _write_parquet(local_path: str, images: Iterable[tuple[str, bytes]]) -> None:
    schema = _SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": _FEATURES}})})
    rows: list[dict[str, Any]] = []
    size = 0
    with pq.ParquetWriter(local_path, schema, compression="none") as writer:
        for name, data in images:
            if rows and size + len(data) > _ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, size = [], 0
            rows.append({"key": posixpath.splitext(name)[0], "image": {"bytes": data, "path": name}})
            size += len(data)
        writer.write_table(pa.Table.from_pylist(rows, schema))


def read_shard(url: str) -> Iterator[tuple[str, bytes]]:
    """What `write_shard` was given, in order; one image or row group in memory.

    Raises:
        OSError: as `open_file`.
        tarfile.TarError, pyarrow.ArrowException: where the file isn't such a shard, or ends early.
    """
    with open_file(url) as file:
        if url.endswith(EXTENSIONS["webdataset"]):
            for tar, member in _infos_of_tar(file):
                content = tar.extractfile(member)
                if content is not None:
                    yield member.name, content.read()
            return
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            for image in parquet.read_row_group(group, columns=["image"])["image"]:
                yield image["path"].as_py(), image["bytes"].as_py()
