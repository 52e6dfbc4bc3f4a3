from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ot_core import lists
from ot_core.lists import Row
from ot_core.names import Ignored


def rows(extension: str, data: bytes | str, column: str = "") -> list[Row | str]:
    encoded = data.encode() if isinstance(data, str) else data
    return list(lists.rows_of_text(io.BytesIO(encoded), extension, column, Ignored()))


def uris(found: list[Row | str]) -> list[str]:
    """What the rows name, in order, and "-" for each that says nothing."""
    return ["-" if isinstance(row, str) else row.uri for row in found]


class TestText:
    def test_blank_lines_spaces_and_all_line_ends_are_no_part_of_an_entry(self):
        assert uris(rows(".txt", "\ufeffa.png\r\n\n  b.png \t\rc.png")) == ["a.png", "b.png", "c.png"]

    def test_comments_are_counted_and_names_that_begin_likewise_are_taken(self):
        ignored = Ignored()
        found = lists.rows_of_text(io.BytesIO(b"# mine\n#\n#1.png\n## more\n"), ".txt", "", ignored)
        assert uris(list(found)) == ["#1.png"]
        assert ignored.counts == {"comments": 3}

    def test_bytes_that_arent_utf8_name_the_file_with_these_bytes(self):
        assert uris(rows(".txt", b"a.png\nb\xff.png\nc.png\n")) == ["a.png", "b\udcff.png", "c.png"]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    @pytest.mark.parametrize(("extension", "head"), [(".txt", ""), (".csv", "uri\n")])
    def test_encodings_that_editors_write_are_read(self, encoding: str, extension: str, head: str):
        assert uris(rows(extension, (head + "é.png\r\n漢.png").encode(encoding))) == ["é.png", "漢.png"]

    def test_a_line_without_end_is_one_bad_row(self):
        found = rows(".txt", b"a.png\n" + b"x" * (5 << 20) + b"\nb.png\n")
        assert uris(found) == ["a.png", "-", "b.png"]

    @pytest.mark.parametrize("extension", [".txt", ".csv", ".jsonl"])
    def test_what_no_url_holds_is_a_bad_row(self, extension: str):
        head = "uri\n" if extension == ".csv" else ""
        odd = json.dumps({"uri": "a\x00.png"}) if extension == ".jsonl" else "a\x00.png"
        good = json.dumps({"uri": "b.png"}) if extension == ".jsonl" else "b.png"
        assert uris(rows(extension, f"{head}{odd}\n{good}\n")) == ["-", "b.png"]


class TestCsv:
    @pytest.mark.parametrize("position", [0, 1, 4])
    @pytest.mark.parametrize("quote", ['"', '"x', 'a,"', '"a"b'])
    def test_an_unclosed_quote_costs_its_row_alone(self, position: int, quote: str):
        lines = [f"{i}.png,k{i}" for i in range(5)]
        lines[position] = quote + lines[position]
        expected = [f"{i}.png" for i in range(5)]
        expected[position] = "-"
        assert uris(rows(".csv", "uri,key\n" + "\n".join(lines))) == expected

    def test_an_unclosed_quote_is_told_as_such(self):
        (found,) = rows(".csv", 'uri\n"a.png\n')
        assert "quote" in str(found)

    def test_two_unclosed_quotes_cost_their_rows(self):
        text = "uri,key\n" + '"a.png,1\nb.png,2\n"c.png,3\nd.png,4\n'
        assert uris(rows(".csv", text)) == ["-", "b.png", "-", "d.png"]

    def test_an_unclosed_quote_far_from_the_end_costs_its_row_alone(self):
        lines = [f"{i}.png,{i}" for i in range(1000)]
        lines[7] = '"' + lines[7]
        assert uris(rows(".csv", "uri,key\n" + "\n".join(lines))).count("-") == 1

    def test_quoted_fields_hold_commas_quotes_and_line_breaks(self):
        text = 'uri,note\n"a, b.png","two\nlines, ""quoted"""\nc.png,\n'
        assert uris(rows(".csv", text)) == ["a, b.png", "c.png"]

    def test_too_many_columns_are_a_bad_row_and_missing_ones_are_empty(self):
        found = rows(".csv", "uri,key\na,b.png,k\nc.png\nd.png,k,\n")
        assert found[1:] == [Row("c.png"), Row("d.png", "k")]
        assert isinstance(found[0], str)

    def test_a_row_without_its_uri_is_bad(self):
        assert uris(rows(".csv", "key,uri\nk\nk,a.png\n")) == ["-", "a.png"]

    def test_spaces_around_the_names_of_columns_are_no_part_of_them(self):
        assert rows(".csv", " uri , key\na.png,k\n") == [Row("a.png", "k")]

    def test_a_huge_field_costs_its_row_alone(self):
        assert uris(rows(".csv", f"uri\na.png\n{'x' * 200_000}\nb.png\n")) == ["a.png", "-", "b.png"]

    def test_a_header_that_cant_be_read_is_one_bad_row(self):
        assert uris(rows(".csv", '"uri\na.png\n')) == ["-"]

    @given(st.lists(st.text(alphabet='a",\n\r\x00 ', max_size=8), max_size=12))
    def test_whatever_it_holds_ends_and_gives_good_rows_around_it(self, lines: list[str]):
        text = "uri\nfirst.png\n" + "\n".join(line.replace("\n", "") for line in lines) + "\nlast.png"
        found = uris(rows(".csv", text))
        assert found[0] == "first.png"
        assert found[-1] == "last.png" or any("last.png" in row for row in found[1:] if row != "-") or "-" in found


class TestJsonLines:
    @pytest.mark.parametrize(
        "line",
        ["[1]", "3", '"uri"', "{", '{"uri": 5}', '{"uri": null}', "[" * 100_000, "9" * 10_000, '{"uri": "\\ud800"}'],
    )
    def test_what_names_nothing_costs_its_row_alone(self, line: str):
        assert uris(rows(".jsonl", f'{{"uri": "a.png"}}\n{line}\n{{"uri": "b.png"}}\n')) == ["a.png", "-", "b.png"]


def test_a_damaged_row_group_costs_itself_alone():
    buffer = io.BytesIO()
    names = [f"{i}.png" for i in range(400)]
    pq.write_table(pa.table({"uri": names}), buffer, row_group_size=100, compression="snappy", use_dictionary=False)
    data = bytearray(buffer.getvalue())
    chunk = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0)
    start = chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    found = list(lists.rows_of_parquet(pq.ParquetFile(io.BytesIO(data)), ""))
    assert uris(found) == [*names[:100], "-", *names[200:]]
