"""Images inside larger files: members of WebDataset tar files, and cells of Parquet files.

A *part* is a text that says where in its file an image is: `tar:<offset>:<size>:<name>` is a range of bytes, and
`row:<row group>:<row>:<column>` a cell; rows are counted from the start of their row group.
"""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from ot_core.errors import Cause, ImageError
from ot_core.retry import retried
from ot_core.storage import read_bytes


class Member(NamedTuple):
    """Something in a tar file, or a row of a Parquet file.

    Attributes:
        name: as the file has it; a row without a key has its number.
        part: see the module.
        problem: why it can't be read, or "".
    """

    name: str
    part: str
    problem: str = ""


def members_of_tar(file: Any) -> Iterator[Member]:
    """Members in order, nothing of them kept in memory.

    Raises:
        tarfile.TarError: where the file isn't an uncompressed tar file, or ends early.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile remembers all it has seen
            if member.isdir():
                continue
            name = member.name.removeprefix("./")
            plain = member.isreg() and not member.issparse()
            problem = "" if plain else f"member {name!r}: a link or something else that holds no image itself"
            yield Member(name, f"tar:{member.offset_data}:{member.size}:{name}", problem)


def image_column(schema: pa.Schema) -> str | None:
    """The column with encoded images: the only binary one, or the only struct with a binary field `bytes`."""
    found = [field.name for field in schema if _is_binary(field.type)]
    found += [
        f"{field.name}.bytes"
        for field in schema
        if pa.types.is_struct(field.type)
        and field.type.get_field_index("bytes") >= 0
        and _is_binary(field.type.field("bytes").type)
    ]
    return found[0] if len(found) == 1 else None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def rows_of_parquet(parquet: pq.ParquetFile, column: str) -> Iterator[Member]:
    """A member for each row, named by the column `key` if there is one of text; images themselves aren't read."""
    schema = parquet.schema_arrow
    has_keys = "key" in schema.names
    number = 0
    for group in range(parquet.num_row_groups):
        count = parquet.metadata.row_group(group).num_rows
        keys = parquet.read_row_group(group, columns=["key"])["key"].to_pylist() if has_keys else [None] * count
        for row, key in enumerate(keys):
            problem = f"row {number}: expected a text in column 'key', found {type(key).__name__}"
            wrong = has_keys and not (isinstance(key, str) and key)
            name = key if isinstance(key, str) else f"{number:08d}"
            yield Member(name, f"row:{group}:{row}:{column}", problem if wrong else "")
            number += 1


def read_part(url: str, part: str) -> bytes:
    """The encoded image that a part of a file holds; the whole file where the part is "".

    A Parquet row group is read whole and kept until another is asked for.

    Raises:
        ImageError: DAMAGED where it isn't there or holds no bytes.
        OSError: as `read_bytes`.
    """
    if not part:
        return read_bytes(url)
    kind, first, second, name = part.split(":", 3)
    if kind == "tar":
        start, size = int(first), int(second)
        data = read_bytes(url, start=start, end=start + size) if size else b""
        if len(data) != size:
            raise ImageError(Cause.DAMAGED, f"the file ends {size - len(data)} bytes before its member {name} does")
        return data
    cells = _column_of_row_group(url, int(first), name)
    value = cells[int(second)].as_py() if int(second) < len(cells) else None
    if not isinstance(value, bytes):
        raise ImageError(Cause.DAMAGED, f"row {second} of row group {first} holds no bytes in column {name}")
    return value


@functools.lru_cache(maxsize=1)
@retried
def _column_of_row_group(url: str, group: int, column: str) -> pa.ChunkedArray:
    with fsspec.open(url, "rb") as file:
        cells = pq.ParquetFile(file).read_row_group(group, columns=[column]).column(0)
    return pa.chunked_array([chunk.field("bytes") for chunk in cells.chunks]) if "." in column else cells


def name_of(part: str) -> str:
    """How a part is called where people read it: a member's name, or a row's place."""
    kind, first, second, name = part.split(":", 3)
    return name if kind == "tar" else f"row group {first}, row {second}"
