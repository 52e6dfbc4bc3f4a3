"""Lists of URLs: what each row names, whatever the other rows hold."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, NamedTuple

import pyarrow.parquet as pq

from ot_core.errors import as_image_error
from ot_core.names import Ignored

#: Extensions of lists; a Parquet file is one if it has a column `uri`.
EXTENSIONS: Final = (".txt", ".csv", ".jsonl")
#: Characters of one line, and lines of one row of CSV, whose quoted fields may hold line breaks.
_LONGEST_LINE, _MOST_LINES = 1 << 20, 100
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
#: What no URL or path holds: line breaks, NUL, and halves of surrogate pairs other than bytes that weren't UTF-8.
_NOT_A_URL = re.compile(r"[\x00\r\n\ud800-\udc7f\udd00-\udfff]")
#: What macOS, Windows and people put between the rows of a text file: "# like this".
_COMMENT = re.compile(r"#(\s|#|$)")


class Row(NamedTuple):
    """What a row names.

    Attributes:
        uri: as it is written.
        key: "" where the row has none.
        group: the value of the column that tells the group, or "".
    """

    uri: str
    key: str = ""
    group: str = ""


def rows_of_text(file: BinaryIO, extension: str, column: str, ignored: Ignored) -> Iterator[Row | str]:
    """The rows of a `.txt`, `.csv` or `.jsonl` file one by one, or what is wrong with a row.

    Args:
        file: seekable; UTF-8, or UTF-16 that says so in its first bytes. Other bytes are taken as file names hold them.
        extension: which of the three it is.
        column: the one that tells the group, or "".
        ignored: counts comments, "# ...", of text files.
    """
    lines = _lines(file)
    if extension == ".csv":
        yield from _rows_of_csv(_Lines(lines), column)
        return
    for line in lines:
        if line is None:
            yield f"longer than {_LONGEST_LINE} characters"
        elif not line.strip():
            continue
        elif extension == ".txt":
            if _COMMENT.match(line.strip()):
                ignored.add_kind("comments")
            else:
                yield _checked(Row(line.strip()))
        else:
            yield _of_json(line, column)


def rows_of_parquet(parquet: pq.ParquetFile, column: str) -> Iterator[Row | str]:
    """The same of a Parquet file with a column `uri`; a row group that can't be read is one problem."""
    wanted = [name for name in ("uri", "key", column) if name in parquet.schema_arrow.names]
    for group in range(parquet.num_row_groups):
        try:
            for batch in parquet.iter_batches(row_groups=[group], columns=wanted):
                for row in batch.to_pylist():
                    yield _of_columns(row, column)
        except Exception as error:  # pyarrow raises several kinds for damaged files; other row groups may be whole
            yield f"row group {group} can't be read any further ({as_image_error(error).message})"


def _lines(file: BinaryIO) -> Iterator[str | None]:
    """Lines with their ends; None in place of one that is too long."""
    is_utf16 = file.read(2) in _UTF16
    file.seek(0)
    encoding, errors = ("utf-16", "replace") if is_utf16 else ("utf-8-sig", "surrogateescape")
    text = io.TextIOWrapper(file, encoding, errors, newline="")
    while line := text.readline(_LONGEST_LINE):
        whole = line.endswith(("\n", "\r")) or len(line) < _LONGEST_LINE
        while not (line.endswith(("\n", "\r")) or len(line) < _LONGEST_LINE):
            line = text.readline(_LONGEST_LINE)
        yield line if whole else None


class _Lines:
    """Lines that are taken for a row of CSV, and given back where they turn out to be no part of it."""

    def __init__(self, lines: Iterator[str | None]) -> None:
        self._lines = lines
        self._back: list[str] = []
        self._taken: list[str] = []

    def row(self) -> list[str] | str | None:
        """The cells of the next row, or what is wrong with it; None after the last."""
        self._taken = []
        try:
            return next(csv.reader(self._of_one_row(), strict=True), None)
        except csv.Error as error:
            self.give_back()
            return f"not CSV ({'a quote that is never closed' if 'unexpected end' in str(error) else error})"

    def give_back(self) -> None:
        """All lines of the last row but its first."""
        self._back += reversed(self._taken[1:])
        del self._taken[1:]

    def _of_one_row(self) -> Iterator[str]:
        while len(self._taken) < _MOST_LINES:
            line = self._back.pop() if self._back else next(self._lines, "")
            if line == "":
                return
            if line is None:
                raise csv.Error(f"a line of more than {_LONGEST_LINE} characters")
            self._taken.append(line)
            yield line
        raise csv.Error(f"a quote that isn't closed in {_MOST_LINES} lines")


def _rows_of_csv(lines: _Lines, column: str) -> Iterator[Row | str]:
    header: list[str] | None = None
    while (cells := lines.row()) is not None:
        if isinstance(cells, str):
            yield cells
            if header is None:
                return  # without names the columns say nothing
        elif not any(cell.strip() for cell in cells):
            continue
        elif header is None:
            header = [cell.strip() for cell in cells]
        elif any(cell.strip() for cell in cells[len(header) :]):
            yield f"{len(cells)} columns, expected {len(header)}; what holds a comma needs quotes"
        else:
            row = _of_columns(dict(zip(header, cells, strict=False)), column)
            if isinstance(row, str):
                lines.give_back()  # a quote that isn't closed makes one field of several rows
            yield row


def _of_json(line: str, column: str) -> Row | str:
    try:
        return _of_columns(json.loads(line), column)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"


def _of_columns(row: Any, column: str) -> Row | str:
    """What a row names by its columns, or what is wrong with it."""
    if not isinstance(row, dict) or not isinstance(row.get("uri"), str):
        found = str(sorted(map(str, row))) if isinstance(row, dict) else type(row).__name__
        return f"expected a text column 'uri', found {found[:200]}"
    key = row.get("key")
    group = _text(row.get(column)) if column else ""
    return _checked(Row(row["uri"].strip(), key.strip() if isinstance(key, str) else "", group))


def _checked(row: Row) -> Row | str:
    if not row.uri:
        return "empty uri"
    if _NOT_A_URL.search(row.uri):
        return f"uri {row.uri[:200]!r} holds what no URL can"
    return row


def _text(value: Any) -> str:
    """A cell as text; "" where it is empty or no single value."""
    text = str(value).strip() if isinstance(value, str | int | float) else ""
    return text.encode("utf-8", "backslashreplace").decode()  # JSON may hold half of a surrogate pair
