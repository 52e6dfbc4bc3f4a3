"""Whatever an input holds, each job does what it can, and tells what it left out."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ot_core import read_map, storage
from pipelines import evaluate, fit, transport


@pytest.fixture(scope="module")
def images(photo: Callable[..., Any]) -> list[bytes]:
    """Encoded photographs, each another."""
    found = []
    for seed in range(6):
        buffer = io.BytesIO()
        Image.fromarray(photo(16, 16, seed=seed)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def map_url(tmp_path_factory: pytest.TempPathFactory, images: list[bytes]) -> str:
    root = tmp_path_factory.mktemp("map")
    for side, offset in (("natural", 0), ("restored", 1)):
        put(root / side, {f"{index}.png": images[index + offset] for index in range(4)})
    return fitted(root, root / "natural", root / "restored")


def fitted(root: Path, target: Path, source: Path, *flags: str) -> str:
    url = str(root / "map.safetensors")
    sides = ["--target", str(target), "--source", str(source), "--patch_size", "1"]
    assert fit.main([*sides, "--map", url, "--vae", "pixels", "--paired", *flags]) == 0
    return url


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob(f"{name}-*.parquet")) for row in pq.read_table(path).to_pylist()]


def transported(tmp_path: Path, map_url: str, *flags: str, name: str = "out") -> tuple[dict[str, str], dict[str, str]]:
    """The source of each key that was written, and the cause of each source that failed, by its last part."""
    output = tmp_path / name
    transport.main(["--map", map_url, "--output", str(output), *flags])
    written = {row["key"]: row["source_uri"].rpartition("/")[2] for row in rows(output, "manifest")}
    for row in rows(output, "manifest"):
        assert storage.exists(row["output_uri"])
    return written, {row["source_uri"].rpartition("/")[2]: row["error_type"] for row in rows(output, "failures")}


class TestWhatIsLeftOut:
    def test_is_counted_and_told_by_every_job(
        self, tmp_path: Path, images: list[bytes], map_url: str, capsys: pytest.CaptureFixture[str]
    ):
        natural, restored = tmp_path / "natural", tmp_path / "restored"
        put(natural, {f"{index}.png": images[index] for index in range(4)})
        put(restored, {f"{index}.png": images[index + 1] for index in range(3)} | {"3.JPE": images[4]})
        put(restored, {"a.psd": b"x", "b/c.psd": b"x", "README": b"x", "Thumbs.db": b"x", "._1.png": b"x"})
        summary = tmp_path / "summary.json"
        of_job = ["--summary", str(summary)]
        expected = {".psd": 2, ".db": 1, "hidden": 1, "without_extension": 1}
        told = "5 files ignored: 2 .psd, 1 .db, 1 hidden, 1 without extension"

        fitted(tmp_path, natural, restored, *of_job)
        assert json.loads(summary.read_bytes())["ignored"] == expected
        assert told in capsys.readouterr().out

        written, failed = transported(tmp_path, map_url, "--input", str(restored), *of_job)
        assert sorted(written) == ["0", "1", "2", "3"]
        assert not failed
        assert json.loads(summary.read_bytes())["ignored"] == expected
        assert told in capsys.readouterr().out

        sides = ["--reference", str(natural), "--candidate", f"restored={restored}", "--vae", "pixels"]
        assert evaluate.main([*sides, "--report", str(tmp_path / "report"), *of_job]) == 0
        assert json.loads(summary.read_bytes())["ignored"] == expected
        assert told in capsys.readouterr().out

    def test_is_named_where_nothing_else_is_there(
        self, tmp_path: Path, map_url: str, capsys: pytest.CaptureFixture[str]
    ):
        put(tmp_path / "in", {"a.gif": b"x", "b.gif": b"x", "c.jp2": b"x"})
        for spec in ("in", "in/**", "in/*.gif"):
            flags = ["--input", str(tmp_path / spec), "--map", map_url, "--output", str(tmp_path / "out")]
            assert transport.main(flags) == 2
            said = capsys.readouterr().err
            assert "no image matched" in said
            assert "2 .gif" in said

    def test_because_it_cant_be_listed_is_a_failure_and_links_are_followed(
        self, images: list[bytes], map_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        put(tmp_path / "in", {"a.png": images[0], "closed/b.png": images[1]})
        put(tmp_path / "elsewhere", {"c.png": images[2]})
        (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "in/broken.png").symlink_to("gone.png")
        os.mkfifo(tmp_path / "in/pipe.png")
        scandir = os.scandir

        def closed(path: Any) -> Any:  # root may list every folder
            if str(path).endswith("/closed"):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", closed)
        written, failed = transported(tmp_path, map_url, "--input", str(tmp_path / "in"))
        assert written == {"a": "a.png", "linked/c": "c.png"}
        expected = {"closed": "permission_denied", "broken.png": "not_found", "pipe.png": "not_an_image"}
        assert failed == expected
        stages = {row["source_uri"].rpartition("/")[2]: row["stage"] for row in rows(tmp_path / "out", "failures")}
        assert stages["closed"] == "list"

    def test_a_link_whose_target_changed_is_done_again(self, images: list[bytes], map_url: str, tmp_path: Path):
        put(tmp_path, {"target.png": images[0], "in/b.png": images[1]})
        (tmp_path / "in/a.png").symlink_to(tmp_path / "target.png")
        flags = ["--input", str(tmp_path / "in"), "--resume"]
        transported(tmp_path, map_url, *flags)
        before = {row["key"]: row for row in rows(tmp_path / "out", "manifest")}
        put(tmp_path, {"target.png": images[2]})
        transported(tmp_path, map_url, *flags)
        after = {row["key"]: row for row in rows(tmp_path / "out", "manifest")}
        assert after["b"] == before["b"]
        assert after["a"]["sha256"] != before["a"]["sha256"]


class TestTheFirstThatCanBeRead:
    """Of several images with one key."""

    @pytest.fixture
    def folder(self, tmp_path: Path, images: list[bytes]) -> Path:
        put(tmp_path / "in", {"a.jpg": b"no image", "a.png": images[0], "a.webp": images[1], "b.png": images[2]})
        return tmp_path / "in"

    def test_is_transported_and_in_the_manifest(self, tmp_path: Path, map_url: str, folder: Path):
        written, failed = transported(tmp_path, map_url, "--input", str(folder))
        assert written == {"a": "a.png", "b": "b.png"}
        assert failed == {"a.jpg": "not_an_image", "a.webp": "duplicate_key"}
        (message,) = (r["message"] for r in rows(tmp_path / "out", "failures") if r["error_type"] == "duplicate_key")
        assert f"{folder}/a.png" in message

    def test_has_the_version_that_resuming_compares(
        self, tmp_path: Path, images: list[bytes], map_url: str, folder: Path
    ):
        def digest() -> str:
            (row,) = (row for row in rows(tmp_path / "out", "manifest") if row["key"] == "a")
            return str(row["sha256"])

        flags = ["--input", str(folder), "--resume"]
        transported(tmp_path, map_url, *flags)
        first = digest()
        written, failed = transported(tmp_path, map_url, *flags)
        assert (written["a"], failed["a.jpg"], digest()) == ("a.png", "not_an_image", first)
        put(folder, {"a.png": images[3]})
        written, _ = transported(tmp_path, map_url, *flags)
        assert written["a"] == "a.png"
        assert digest() != first
        put(folder, {"a.jpg": images[4]})
        written, failed = transported(tmp_path, map_url, *flags)
        assert written["a"] == "a.jpg"
        assert failed == {"a.png": "duplicate_key", "a.webp": "duplicate_key"}

    def test_is_in_the_statistics(self, tmp_path: Path, images: list[bytes], folder: Path):
        clean = tmp_path / "clean"
        put(clean, {"a.png": images[0], "b.png": images[2]})
        put(tmp_path / "natural", {"a.png": images[4], "b.png": images[5]})
        maps = []
        for name, source in (("1", folder), ("2", clean)):
            (tmp_path / name).mkdir()
            maps.append(read_map(fitted(tmp_path / name, tmp_path / "natural", source)))
        assert maps[0].source.count == maps[1].source.count
        assert (maps[0].map.matrix == maps[1].map.matrix).all()
        failed = {row["source_uri"].rpartition("/")[2] for row in rows(tmp_path / "1", "map.failures")}
        assert failed == {"a.jpg", "a.webp"}

    def test_is_compared(self, tmp_path: Path, images: list[bytes], folder: Path):
        put(tmp_path / "natural", {"a.png": images[4], "b.png": images[5]})
        sides = ["--reference", str(tmp_path / "natural"), "--candidate", f"x={folder}", "--vae", "pixels"]
        assert evaluate.main([*sides, "--report", str(tmp_path / "report")]) == 0
        compared = {row["key"]: row["candidate_uri"] for row in rows(tmp_path / "report", "images")}
        assert compared == {"a": f"{folder}/a.png", "b": f"{folder}/b.png"}

    def test_is_that_of_the_jobs_own_limit(self, tmp_path: Path, photo: Callable[..., Any], map_url: str):
        (tmp_path / "in").mkdir()
        for name, size in (("a.jpg", 32), ("a.png", 16)):
            Image.fromarray(photo(size, size)).save(tmp_path / "in" / name)
        written, failed = transported(tmp_path, map_url, "--input", str(tmp_path / "in"), "--max_pixels", "300")
        assert written == {"a": "a.png"}
        assert failed == {"a.jpg": "too_large"}


class TestLists:
    @pytest.mark.parametrize("extension", ["txt", "csv", "jsonl"])
    def test_keys_are_normal_and_what_collides_or_leaves_is_a_failure(
        self, tmp_path: Path, images: list[bytes], map_url: str, extension: str
    ):
        put(tmp_path / "in", {"a.png": images[0], "x/b.png": images[1], "c d.png": images[2]})
        put(tmp_path, {"outside.png": images[3]})
        entries = ["./a.png", "./x//b.png", "x/../c d.png", "x/./../a.png", "../outside.png"]
        lines = [json.dumps({"uri": entry}) for entry in entries] if extension == "jsonl" else entries
        text = "\r\n".join((["uri"] if extension == "csv" else []) + lines)
        put(tmp_path / "in", {f"list.{extension}": text.encode()})
        written, failed = transported(tmp_path, map_url, "--input", f"{tmp_path}/in/list.{extension}")
        assert sorted(written) == ["a", "c d", "x/b"]
        assert failed == {"a.png": "duplicate_key", "outside.png": "bad_key"}

    def test_a_bad_row_costs_its_row_even_if_it_is_the_first(self, tmp_path: Path, images: list[bytes], map_url: str):
        put(tmp_path, {f"{index}.png": images[index] for index in range(5)})
        put(tmp_path, {"l.csv": b'uri,key\n"0.png,zero\n1.png,./one\n2.png,two,2\n3.png,../three\n4.png,four\n'})
        written, _ = transported(tmp_path, map_url, "--input", f"{tmp_path}/l.csv")
        assert sorted(written) == ["four", "one"]
        causes = sorted(row["error_type"] for row in rows(tmp_path / "out", "failures"))
        assert causes == ["bad_key", "bad_list", "bad_list"]


class _WithoutRanges(http.server.SimpleHTTPRequestHandler):
    """Python's own server knows no ranges; and this one takes signatures."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_web_addresses_are_decoded_without_query_and_a_tar_needs_no_ranges(
    tmp_path: Path, images: list[bytes], map_url: str
):
    put(tmp_path / "www", {"a b.png": images[0], "c.png": images[1]})
    with tarfile.open(tmp_path / "www/many.tar", "w") as tar:
        for name in ("a b.png", "c.png"):
            tar.add(tmp_path / "www" / name, name)
    handler = functools.partial(_WithoutRanges, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            site = f"http://127.0.0.1:{server.server_address[1]}"
            put(tmp_path / "www", {"list.txt": f"a%20b.png?sig=1/2\n{site}/c.png?sig=3\n".encode()})
            written, failed = transported(tmp_path, map_url, "--input", f"{site}/list.txt?sig=4", name="list")
            assert (sorted(written), failed) == (["a b", "c"], {})
            written, failed = transported(tmp_path, map_url, "--input", f"{site}/many.tar", name="tar")
            assert (sorted(written), failed) == (["many/a b", "many/c"], {})
            written, failed = transported(tmp_path, map_url, "--input", f"{site}/c.png?sig=5", name="one")
            assert (sorted(written), failed) == (["c"], {})
        finally:
            server.shutdown()
            thread.join()


def test_an_unreadable_shard_a_folder_and_odd_columns_cost_no_other_image(
    tmp_path: Path, images: list[bytes], map_url: str
):
    for number, name in enumerate(("image", "image.bytes")):
        columns = {name: images[2 * number : 2 * number + 2], f"{name}.path": ["x", "y"]}
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
    (tmp_path / "2.parquet").mkdir()
    put(tmp_path, {"3.parquet": b"PAR1"})
    written, failed = transported(tmp_path, map_url, "--input", f"{tmp_path}/*.parquet")
    assert sorted(written) == ["0/00000000", "0/00000001", "1/00000000", "1/00000001"]
    assert failed == {"2.parquet": "is_a_directory", "3.parquet": "bad_list"}
