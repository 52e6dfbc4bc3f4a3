from __future__ import annotations

import csv
import io
import json
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.core import url_to_fs
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ot_core import Cause, ImageError, UserError, listing, storage


def put(*urls: str, data: bytes = b"x") -> None:
    for url in urls:
        storage.write_bytes(url, data)


def keys(spec: str) -> list[str]:
    return sorted(listed.key for listed in listing.list_images(spec))


def listed(spec: str) -> dict[str, bytes]:
    """Key and content of all that a spec names, read by the URLs that it gave."""
    images = list(listing.list_images(spec))
    assert not [image.problem for image in images if image.problem]
    return {image.key: storage.read_bytes(image.uri) for image in images}


class TestFolders:
    def test_images_at_any_depth_have_their_path_without_extension_as_key(self, store: str):
        put(f"{store}/a.png", data=b"1")
        put(f"{store}/day one/b.jpeg", data=b"2")
        put(f"{store}/day one/deep/c.webp", data=b"3")
        expected = {"a": b"1", "day one/b": b"2", "day one/deep/c": b"3"}
        assert listed(store) == expected
        assert listed(f"{store}/") == expected

    def test_extensions_in_any_case_mark_images(self, store: str):
        names = ["a.png", "b.PNG", "c.Jpg", "d.JPEG", "e.webp", "f.tif", "g.TIFF", "h.bmp"]
        put(*(f"{store}/{name}" for name in names))
        assert keys(store) == list("abcdefgh")

    def test_other_files_are_ignored(self, store: str):
        put(*(f"{store}/{name}" for name in ["a.png", "a.txt", "b.gif", "png", "c.png.bak", ".DS_Store", "notes"]))
        assert keys(store) == ["a"]

    def test_only_the_last_extension_is_taken_off(self, store: str):
        put(f"{store}/v1.2/a.b.png")
        assert keys(store) == ["v1.2/a.b"]

    def test_a_folder_named_like_an_image_is_listed_so_that_reading_it_fails_by_name(self, tmp_path: Path):
        put(f"{tmp_path}/a.png", f"{tmp_path}/odd.png/inner.png")
        assert keys(str(tmp_path)) == ["a", "odd", "odd.png/inner"]
        uri = next(image.uri for image in listing.list_images(str(tmp_path)) if image.key == "odd")
        with pytest.raises(IsADirectoryError):
            storage.read_bytes(uri)

    def test_a_relative_path_is_one_below_the_working_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        put(f"{tmp_path}/in/a.png", data=b"1")
        monkeypatch.chdir(tmp_path)
        assert listed("in") == listed("./in/") == {"a": b"1"}

    def test_an_empty_or_missing_folder_names_nothing(self, store: str, tmp_path: Path):
        assert keys(str(tmp_path)) == []
        assert keys(f"{store}/none") == keys(f"{store}/none/") == []

    def test_an_unknown_protocol_is_the_users_mistake(self):
        with pytest.raises(UserError, match="input nosuch://x/: can't be listed"):
            keys("nosuch://x/")


class TestGlobs:
    @pytest.fixture
    def root(self, store: str) -> str:
        put(*(f"{store}/run/{name}" for name in ["a.png", "b.jpg", "c.txt", "x/d.png", "x/y/e.png", "z/d.png"]))
        return store

    def test_one_star_stays_in_its_folder(self, root: str):
        assert keys(f"{root}/run/*") == ["a", "b"]
        assert keys(f"{root}/run/*.png") == ["a"]

    def test_two_stars_reach_any_depth(self, root: str):
        assert keys(f"{root}/run/**") == ["a", "b", "x/d", "x/y/e", "z/d"]
        assert keys(f"{root}/run/**/*.png") == ["a", "x/d", "x/y/e", "z/d"]

    def test_keys_are_paths_below_the_last_folder_without_a_wildcard(self, root: str):
        assert keys(f"{root}/run/?/d.png") == ["x/d", "z/d"]
        assert keys(f"{root}/r*/[xy]/d.png") == ["run/x/d"]

    def test_what_matches_can_be_read(self, root: str):
        assert listed(f"{root}/run/**/e.*") == {"x/y/e": b"x"}

    def test_a_name_that_looks_like_a_glob_is_itself_where_it_exists(self, store: str):
        put(f"{store}/run [1]/a?.png", data=b"1")
        assert listed(f"{store}/run [1]") == {"a?": b"1"}
        assert listed(f"{store}/run [1]/a?.png") == {"a?": b"1"}

    def test_no_match_names_nothing(self, root: str):
        assert keys(f"{root}/run/*.webp") == []


class TestSingleImages:
    def test_have_their_name_without_extension_as_key(self, store: str):
        put(f"{store}/in/a.png", data=b"1")
        assert listed(f"{store}/in/a.png") == {"a": b"1"}

    def test_that_dont_exist_name_nothing(self, store: str):
        assert keys(f"{store}/in/a.png") == []


def list_file(extension: str, rows: list[dict[str, str]]) -> bytes:
    """A list of URLs in each of its formats."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    match extension:
        case "txt":
            return "".join(f"{row['uri']}\n" for row in rows).encode()
        case "csv":
            text = io.StringIO()
            writer = csv.DictWriter(text, columns)
            writer.writeheader()
            writer.writerows(rows)
            return text.getvalue().encode()
        case "jsonl":
            return "".join(json.dumps(row) + "\n" for row in rows).encode()
        case _:
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in columns])), buffer)
            return buffer.getvalue()


formats = pytest.mark.parametrize("extension", ["txt", "csv", "jsonl", "parquet"])
tables = pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])


class TestLists:
    @formats
    def test_relative_entries_are_relative_to_the_list(self, store: str, extension: str):
        put(f"{store}/lists/a.png", data=b"1")
        put(f"{store}/lists/sub/b.png", data=b"2")
        put(f"{store}/lists/list.{extension}", data=list_file(extension, [{"uri": "a.png"}, {"uri": "sub/b.png"}]))
        assert listed(f"{store}/lists/list.{extension}") == {"a": b"1", "sub/b": b"2"}

    @formats
    def test_absolute_entries_below_the_list_have_the_path_below_it_as_key(self, store: str, extension: str):
        put(f"{store}/lists/sub/b.png", data=b"2")
        rows = [{"uri": f"{store}/lists/sub/b.png"}]
        put(f"{store}/lists/list.{extension}", data=list_file(extension, rows))
        assert listed(f"{store}/lists/list.{extension}") == {"sub/b": b"2"}

    @formats
    def test_absolute_entries_elsewhere_have_their_whole_path_as_key(self, store: str, extension: str):
        rows = [{"uri": "memory://elsewhere/there/c.png"}, {"uri": "/some/where/d.png"}]
        put(f"{store}/list.{extension}", data=list_file(extension, rows))
        assert keys(f"{store}/list.{extension}") == ["elsewhere/there/c", "some/where/d"]

    @tables
    def test_the_column_key_names_the_key(self, store: str, extension: str):
        put(f"{store}/a.png", data=b"1")
        rows = [{"uri": "a.png", "key": "mine/first"}, {"uri": f"{store}/a.png", "key": "second"}]
        put(f"{store}/list.{extension}", data=list_file(extension, rows))
        assert listed(f"{store}/list.{extension}") == {"mine/first": b"1", "second": b"1"}

    @tables
    def test_an_empty_key_is_as_none(self, store: str, extension: str):
        put(f"{store}/list.{extension}", data=list_file(extension, [{"uri": "a.png", "key": ""}]))
        assert keys(f"{store}/list.{extension}") == ["a"]

    @tables
    def test_other_columns_are_ignored(self, store: str, extension: str):
        put(f"{store}/list.{extension}", data=list_file(extension, [{"split": "val", "uri": "a.png", "label": "cat"}]))
        assert keys(f"{store}/list.{extension}") == ["a"]

    @tables
    def test_a_row_without_uri_is_given_with_its_problem(self, memory: str, extension: str):
        spec = f"{memory}/list.{extension}"
        put(spec, data=list_file(extension, [{"file": "a.png"}]))
        (row,) = listing.list_images(spec)
        assert row.problem == f"row 1 of {spec}: expected a text column 'uri', found ['file']"

    def test_a_bad_row_costs_only_itself(self, memory: str):
        spec = f"{memory}/list.jsonl"
        put(spec, data=b'{"uri": "a.png"}\nno json\n3\n"uri"\n[]\n{"uri": 5}\n{"uri": " "}\n{"uri": "b.png"}\n')
        rows = list(listing.list_images(spec))
        assert [row.key for row in rows if not row.problem] == ["a", "b"]
        assert [row.problem.partition(" of ")[0] for row in rows if row.problem] == [f"row {i}" for i in range(2, 8)]

    def test_blank_lines_are_skipped(self, memory: str):
        put(f"{memory}/list.txt", data=b"\na.png\r\n\n  b.png  \n\n")
        assert keys(f"{memory}/list.txt") == ["a", "b"]

    @pytest.mark.parametrize(("name", "data"), [("l.txt", b"a.png\nb.png"), ("l.csv", b"uri\na.png\nb.png")])
    def test_a_byte_order_mark_isnt_part_of_the_first_entry(self, memory: str, name: str, data: bytes):
        put(f"{memory}/{name}", data=b"\xef\xbb\xbf" + data)
        assert keys(f"{memory}/{name}") == ["a", "b"]

    def test_a_list_may_name_what_has_no_image_extension(self, memory: str):
        put(f"{memory}/list.txt", data=b"blobs/1234\n")
        assert keys(f"{memory}/list.txt") == ["blobs/1234"]

    @pytest.mark.parametrize(("name", "data"), [("l.parquet", b"not parquet"), ("l.txt", b"\xff\xfe\n")])
    def test_a_list_that_cant_be_read_is_the_users_mistake(self, memory: str, name: str, data: bytes):
        put(f"{memory}/{name}", data=data)
        with pytest.raises(UserError, match=f"input {memory}/{name}: can't be listed") as error:
            keys(f"{memory}/{name}")
        assert "\n" not in str(error.value)

    @formats
    def test_a_list_that_doesnt_exist_is_the_users_mistake(self, store: str, extension: str):
        with pytest.raises(UserError, match=f"none.{extension}: can't be listed"):
            keys(f"{store}/none.{extension}")


class TestReadingAndWriting:
    def test_what_is_written_is_read(self, store: str):
        data = bytes(range(256)) * 5000
        storage.write_bytes(f"{store}/new folder/é x.bin", data)
        assert storage.read_bytes(f"{store}/new folder/é x.bin") == data

    def test_an_empty_file_is_a_file(self, store: str):
        storage.write_bytes(f"{store}/empty", b"")
        assert storage.read_bytes(f"{store}/empty") == b""

    def test_writing_again_replaces(self, store: str):
        put(f"{store}/a", data=b"a long first content")
        put(f"{store}/a", data=b"short")
        assert storage.read_bytes(f"{store}/a") == b"short"

    def test_upload_copies_a_local_file(self, store: str, tmp_path: Path):
        (tmp_path / "local").write_bytes(b"content")
        storage.upload(str(tmp_path / "local"), f"{store}/there/copy")
        assert storage.read_bytes(f"{store}/there/copy") == b"content"

    def test_nothing_else_is_left_beside_what_was_written(self, store: str, tmp_path: Path):
        put(f"{store}/out/a", f"{store}/out/b")
        (tmp_path / "local").write_bytes(b"content")
        storage.upload(str(tmp_path / "local"), f"{store}/out/c")
        fs, path = url_to_fs(f"{store}/out")
        assert sorted(name.rpartition("/")[2] for name in fs.find(path)) == ["a", "b", "c"]

    def test_a_missing_file_is_file_not_found(self, store: str):
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(f"{store}/none")

    def test_a_file_over_the_limit_isnt_read(self, store: str):
        put(f"{store}/a", data=b"12345")
        assert storage.read_bytes(f"{store}/a", max_bytes=5) == b"12345"
        with pytest.raises(ValueError, match="5 bytes, over the limit of 4"):
            storage.read_bytes(f"{store}/a", max_bytes=4)


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """The system refuses to let any file of this process grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestAtomicity:
    def test_an_error_midway_leaves_the_old_content_and_nothing_else(self, tmp_path: Path):
        path = tmp_path / "out" / "a.bin"
        storage.write_bytes(str(path), b"old")
        with disk_full_after(10_000), pytest.raises(OSError, match="too large"):
            storage.write_bytes(str(path), bytes(1_000_000))
        assert path.read_bytes() == b"old"
        assert os.listdir(path.parent) == ["a.bin"]

    def test_an_error_midway_of_an_upload_too(self, tmp_path: Path):
        source, path = tmp_path / "source", tmp_path / "out" / "a.bin"
        source.write_bytes(bytes(1_000_000))
        with disk_full_after(10_000), pytest.raises(OSError, match="too large"):
            storage.upload(str(source), str(path))
        assert os.listdir(path.parent) == []

    def test_a_reader_never_sees_a_part(self, tmp_path: Path):
        path = str(tmp_path / "a.bin")
        contents = [bytes([i]) * 300_000 for i in range(2)]
        storage.write_bytes(path, contents[0])
        done = threading.Event()

        def write() -> None:
            for i in range(60):
                storage.write_bytes(path, contents[i % 2])
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        seen = set()
        while not done.is_set():
            seen.add(storage.read_bytes(path))
        writer.join()
        assert seen <= set(contents)
        assert seen


class TestWritable:
    def test_a_folder_that_can_be_written_to_stays_as_it_was(self, store: str):
        put(f"{store}/out/a")
        storage.check_writable(f"{store}/out")
        fs, path = url_to_fs(f"{store}/out")
        assert [name.rpartition("/")[2] for name in fs.find(path)] == ["a"]

    def test_a_folder_below_a_file_cant_be_written_to(self, tmp_path: Path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(UserError, match=f"output {tmp_path}/file/out: not writable"):
            storage.check_writable(f"{tmp_path}/file/out")

    def test_a_bucket_that_doesnt_exist_cant_be_written_to(self, gcs: str):
        with pytest.raises(UserError, match="output gs://no-such-bucket/out: not writable") as error:
            storage.check_writable("gs://no-such-bucket/out")
        assert "\n" not in str(error.value)


class TestJoin:
    @pytest.mark.parametrize(
        ("root", "joined"),
        [
            ("/data/out", "/data/out/a/b"),
            ("/data/out/", "/data/out/a/b"),
            ("/", "/a/b"),
            ("out", "out/a/b"),
            ("gs://bucket", "gs://bucket/a/b"),
            ("gs://bucket/", "gs://bucket/a/b"),
            ("file:///data/out/", "file:///data/out/a/b"),
            ("memory://out", "memory://out/a/b"),
        ],
    )
    def test_puts_parts_below_the_root(self, root: str, joined: str):
        assert storage.join(root, "a", "b") == joined

    def test_below_the_root_of_a_store_stays_in_that_store(self):
        fs, path = url_to_fs(storage.join("memory://", "a", "b"))
        assert (fs.protocol, path) == ("memory", "/a/b")

    @pytest.mark.parametrize(
        ("url", "folder"),
        [
            ("/data/list.txt", "/data"),
            ("/list.txt", "/"),
            ("list.txt", "."),
            ("gs://bucket/list.txt", "gs://bucket"),
            ("gs://bucket/a/list.txt", "gs://bucket/a"),
            ("memory://a/list.txt", "memory://a"),
            ("file:///list.txt", "file://"),
        ],
    )
    def test_parent_is_the_folder_that_holds_a_url(self, url: str, folder: str):
        assert storage.parent(url) == folder


class TestKeys:
    @pytest.mark.parametrize(
        "key",
        ["a", "a/b", "a b/ü-é/漢字", "..a", "a..", "...", ".hidden", "~", "*?[x]", "a:b", "%2e%2e/a", "{x}", "#?"],
    )
    def test_paths_below_the_output_are_fine(self, key: str):
        storage.check_key(key)

    @pytest.mark.parametrize(
        "key",
        [
            *["", ".", "..", "../a", "a/..", "a/../b", "./a", "a/./b"],
            *["/", "/a", "a/", "a//b", "//a"],
            *["a\\b", "..\\a", "a\0", "a\nb", "\x1f", "\ud800", "a/\udfff"],
            *["a::b", "x::memory"],
        ],
    )
    def test_what_could_leave_the_output_or_isnt_a_file_name_is_refused(self, key: str):
        with pytest.raises(ImageError) as error:
            storage.check_key(key)
        assert error.value.cause == Cause.BAD_KEY

    pieces = st.sampled_from(["..", ".", "/", "\\", ":", "::", "//", "~", "a", "memory", "file", "\0", "%2e", " ", "é"])

    @given(st.one_of(st.text(), st.lists(pieces).map("".join)), st.sampled_from(["/data/out", "memory://data/out"]))
    @example("a::memory", "/data/out")
    @example("memory:///etc/passwd", "/data/out")
    def test_any_key_is_refused_or_stays_below_the_root(self, key: str, root: str):
        try:
            storage.check_key(key)
        except ImageError:
            return
        fs, path = url_to_fs(storage.join(root, f"{key}.png"))
        assert isinstance(fs, type(url_to_fs(root)[0]))
        assert os.path.normpath(path) == path
        assert path.startswith("/data/out/")

    @given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
    def test_any_key_that_isnt_refused_can_be_written_and_read(self, key: str):
        try:
            storage.check_key(key)
        except ImageError:
            assume(False)
        url = storage.join("memory://keys", f"{key}.png")
        storage.write_bytes(url, b"1")
        assert storage.read_bytes(url) == b"1"
        fsspec.filesystem("memory").rm("/keys", recursive=True)

    @pytest.mark.parametrize(
        "key", ["*", "?[a]", "#1", "100%25", "a%2fb", "{a,b}", "~", "é/漢字", "a&b=c", "a+b", "'\""]
    )
    def test_odd_keys_can_be_written_listed_and_read_on_every_store(self, store: str, key: str):
        storage.write_bytes(f"{store}/{key}.png", b"1")
        assert listed(store) == {key: b"1"}

    @pytest.mark.parametrize(
        "key", ["x" * 100_000, "x/" * 50_000 + "x", "é" * 130, "a" * 241, "/".join(["a" * 99] * 9)]
    )
    def test_keys_too_long_for_a_file_name_are_refused_before_any_work(self, key: str):
        with pytest.raises(ImageError, match="expected at most 800 bytes, 240 between slashes") as raised:
            storage.check_key(key)
        assert raised.value.cause == Cause.BAD_KEY
        assert len(str(raised.value)) < 1000

    @pytest.mark.parametrize("key", ["a" * 240, "é" * 120, "/".join(["a" * 99] * 8)])
    def test_keys_just_short_enough_are_not(self, key: str):
        storage.check_key(key)
