from __future__ import annotations

import csv
import io
import json
import os
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ot_core import Cause, UserError, folders, listing, storage
from ot_core.names import Ignored
from tests.faults import FaultyProxy


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
        names = ["a.png", "b.PNG", "c.Jpg", "d.JPEG", "e.webp", "f.tif", "g.TIFF", "h.bmp", "i.JPE", "j.jfif"]
        put(*(f"{store}/{name}" for name in names))
        assert keys(store) == list("abcdefghij")

    def test_other_files_are_counted_by_extension_and_not_given(self, store: str):
        others = ["a.txt", "b.gif", "x/C.GIF", "png", "c.png.bak", ".DS_Store", "x/._a.png", ".staging/images/d.png"]
        put(*(f"{store}/{name}" for name in ["a.png", ".b.png", *others]))
        ignored = Ignored()
        assert [image.key for image in listing.list_images(store, ignored=ignored)] == [".b", "a"]
        assert ignored.counts == {".txt": 1, ".gif": 2, "without_extension": 1, ".bak": 1, "hidden": 3}

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

    @pytest.mark.parametrize(
        "key", ["*", "?[a]", "#1", "100%25", "a%2fb", "{a,b}", "~", "é/漢字", "a&b=c", "a+b", "'\""]
    )
    def test_odd_keys_can_be_written_listed_and_read_on_every_store(self, store: str, key: str):
        storage.write_bytes(f"{store}/{key}.png", b"1")
        assert listed(store) == {key: b"1"}


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

    def test_what_matches_and_isnt_named_like_an_image_is_counted(self, root: str):
        ignored = Ignored()
        assert [image.key for image in listing.list_images(f"{root}/run/[a-c]*", ignored=ignored)] == ["a", "b"]
        assert ignored.counts == {".txt": 1}

    def test_a_folder_that_isnt_there_names_nothing(self, store: str):
        assert keys(f"{store}/none/**") == keys(f"{store}/none/*/a.png") == []

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

    @pytest.mark.parametrize("extension", ["csv", "jsonl"])
    def test_a_row_without_uri_is_given_with_its_problem(self, memory: str, extension: str):
        spec = f"{memory}/list.{extension}"
        put(spec, data=list_file(extension, [{"file": "a.png"}]))
        (row,) = listing.list_images(spec)
        assert row.problem
        assert row.problem.cause is Cause.BAD_LIST
        assert row.problem.message == f"row 1 of {spec}: expected a text column 'uri', found ['file']"

    def test_a_parquet_file_of_neither_urls_nor_images_is_the_users_mistake(self, memory: str):
        put(f"{memory}/list.parquet", data=list_file("parquet", [{"file": "a.png"}]))
        with pytest.raises(
            UserError, match=r"expected a text column 'uri', or images in one of bytes, found \['file'\]"
        ):
            keys(f"{memory}/list.parquet")

    def test_a_bad_row_costs_only_itself(self, memory: str):
        spec = f"{memory}/list.jsonl"
        put(spec, data=b'{"uri": "a.png"}\nno json\n3\n"uri"\n[]\n{"uri": 5}\n{"uri": " "}\n{"uri": "b.png"}\n')
        rows = list(listing.list_images(spec))
        assert [row.key for row in rows if not row.problem] == ["a", "b"]
        assert [row.problem.message.partition(" of ")[0] for row in rows if row.problem] == [
            f"row {i}" for i in range(2, 8)
        ]

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

    def test_a_list_that_cant_be_read_is_the_users_mistake(self, memory: str):
        put(f"{memory}/l.parquet", data=b"not parquet")
        with pytest.raises(UserError, match=f"input {memory}/l.parquet: can't be listed") as error:
            keys(f"{memory}/l.parquet")
        assert "\n" not in str(error.value)

    @formats
    def test_a_list_that_doesnt_exist_is_the_users_mistake(self, store: str, extension: str):
        with pytest.raises(UserError, match=f"none.{extension}: can't be listed"):
            keys(f"{store}/none.{extension}")


class RecordingProxy(FaultyProxy):
    """Remembers what was asked of the store, and forbids what holds a text."""

    def __init__(self, upstream: str, forbidden: str | None, share: float = 0) -> None:
        super().__init__(upstream, share=share, seed=0)
        self.paths: list[str] = []
        self._forbidden = forbidden

    def fate(self, command: str, path: str, body: bytes) -> str:
        self.paths.append(path)
        return "403" if self._forbidden and self._forbidden in path else super().fate(command, path, body)


@contextmanager
def through_proxy(
    monkeypatch: pytest.MonkeyPatch, forbidden: str | None = None, share: float = 0
) -> Iterator[RecordingProxy]:
    """Lets gcsfs speak to the store through a proxy, which makes a share of the requests fail."""
    with RecordingProxy(os.environ["STORAGE_EMULATOR_HOST"], forbidden, share) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        cls = fsspec.get_filesystem_class("gs")
        cls.clear_instance_cache()
        try:
            yield proxy
        finally:
            cls.clear_instance_cache()
            proxy.shutdown()


def pages_asked_for(proxy: RecordingProxy) -> int:
    return sum("maxResults=2" in path for path in proxy.paths)


class TestPages:
    """Listings that the store gives in several pages."""

    names: Final = [f"{folder}/{i}.png" for folder in "abc" for i in range(3)]

    @pytest.fixture(params=["gcs", "s3"])
    def paged(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        """A folder of nine images, of which the store gives two at a time."""
        root = f"{request.getfixturevalue(request.param)}/{uuid.uuid4().hex[:8]}"
        put(*(f"{root}/{name}" for name in self.names))
        monkeypatch.setattr(folders, "_PAGE", 2)
        return root

    def test_give_every_image_once_and_in_order(self, paged: str):
        assert [image.uri for image in listing.list_images(paged)] == [f"{paged}/{name}" for name in self.names]

    def test_give_what_matches_a_glob_on_any_page(self, paged: str):
        assert keys(f"{paged}/*/2.png") == ["a/2", "b/2", "c/2"]

    @pytest.mark.parametrize("paged", ["gcs"], indirect=True)
    def test_are_asked_for_one_ahead_and_no_further(self, paged: str, monkeypatch: pytest.MonkeyPatch):
        with through_proxy(monkeypatch) as proxy:
            before = set(threading.enumerate())
            images = listing.list_images(paged)
            next(images)
            while pages_asked_for(proxy) < 2:
                time.sleep(0.01)
            time.sleep(0.2)
            assert pages_asked_for(proxy) == 2
            asking = [t for t in set(threading.enumerate()) - before if t.name.startswith("ThreadPoolExecutor")]
            assert asking
            images.close()
            for thread in asking:  # end by themselves
                thread.join(60)
            assert not any(thread.is_alive() for thread in asking)
            assert pages_asked_for(proxy) == 2

    @pytest.mark.parametrize("paged", ["gcs"], indirect=True)
    def test_that_fail_are_a_problem_after_the_images_before(self, paged: str, monkeypatch: pytest.MonkeyPatch):
        with through_proxy(monkeypatch, forbidden="pageToken="):
            *before, last = listing.list_images(paged)
            assert [image.key for image in before] == ["a/0", "a/1"]
            assert last.problem
            assert last.problem.cause is Cause.PERMISSION_DENIED
            assert last.uri.rstrip("/") == paged

    @pytest.mark.parametrize("paged", ["gcs"], indirect=True)
    def test_of_which_the_first_fails_are_the_users_mistake(self, paged: str, monkeypatch: pytest.MonkeyPatch):
        with (
            through_proxy(monkeypatch, forbidden="maxResults=2"),
            pytest.raises(UserError, match=r"can't be listed \(.*made to fail"),
        ):
            next(listing.list_images(paged))

    @pytest.mark.parametrize("paged", ["gcs"], indirect=True)
    def test_lists_and_shards_come_whole_where_requests_fail_in_passing(
        self, paged: str, monkeypatch: pytest.MonkeyPatch
    ):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name in ("x.png", "y.png"):
                tar.addfile(tarfile.TarInfo(name))
        put(f"{paged}/s.tar", data=buffer.getvalue())
        put(f"{paged}/list.txt", data="\n".join(self.names).encode())
        put(f"{paged}/list.parquet", data=list_file("parquet", [{"uri": name} for name in self.names]))
        images = sorted(name.removesuffix(".png") for name in self.names)
        with through_proxy(monkeypatch, share=0.1) as proxy:
            for spec in ("", "/**", "/list.txt", "/list.parquet"):
                assert keys(paged + spec) == images
            assert keys(f"{paged}/*.tar") == ["s/x", "s/y"]
            assert proxy.counts.total() > proxy.counts["none"] > 0
