"""Images inside tar and Parquet files go through the jobs like files."""

import functools
import http.server
import io
import os
import tarfile
import threading

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ot_core import UserError, listing, shards, storage
from pipelines import fit, transport


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _parquet(row_group_size: int = 2, **columns: list) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=row_group_size)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images(photo) -> list[bytes]:
    return [_png(photo(24, 32, seed=index)) for index in range(5)]


@pytest.fixture(scope="module")
def map_url(tmp_path_factory, images, vae):
    root = tmp_path_factory.mktemp("map")
    for index, data in enumerate(images[:4]):
        storage.write_bytes(str(root / ("natural" if index % 2 else "restored") / f"{index}.png"), data)
    sides = ["--target", str(root / "natural"), "--source", str(root / "restored"), "--patch_size", "1"]
    assert fit.main([*sides, "--map", str(root / "map.safetensors"), "--vae", vae]) == 0
    return str(root / "map.safetensors")


def _transported(tmp_path, spec: str, output: str, map_url: str) -> tuple[dict[str, bytes], list[dict]]:
    assert transport.main(["--input", spec, "--output", output, "--map", map_url, "--max_failure_fraction", "1"]) == 0
    results = {}
    for name in ("manifest", "failures"):
        with fsspec.open(f"{output}/{name}-00000-of-00001.parquet", "rb") as file:
            results[name] = pq.read_table(file).to_pylist()
    return {row["key"]: storage.read_bytes(row["output_uri"]) for row in results["manifest"]}, results["failures"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory, images, map_url) -> list[bytes]:
    root = tmp_path_factory.mktemp("files")
    for index, data in enumerate(images):
        storage.write_bytes(str(root / f"in/{index}.png"), data)
    written, failures = _transported(root, str(root / "in"), str(root / "out"), map_url)
    assert not failures
    return [written[str(index)] for index in range(5)]


def test_every_kind_of_input_gives_the_bytes_that_local_files_give(store, images, expected, map_url, tmp_path):
    for index, data in enumerate(images):
        storage.write_bytes(f"{store}/files/{index}.png", data)
    names = [f"files/{index}.png" for index in range(5)]
    quoted = [f'{{"uri": "{name}"}}\n' for name in names]
    written = {
        "a.txt": "\n".join(names).encode(),
        "a.csv": ("uri\n" + "\n".join(names)).encode(),
        "a.jsonl": "".join(quoted).encode(),
        "list.parquet": _parquet(uri=names),
        "shards/x.tar": _tar([("readme.txt", b"no image"), *((f"./d/{i}.png", images[i]) for i in range(3))]),
        "shards/y.tar": _tar([(f"{i}.png", images[i]) for i in (3, 4)]),
        "rows/keyed.parquet": _parquet(key=list("abcde"), image=images),
        "hub/0.parquet": _parquet(image=[{"bytes": data, "path": None} for data in images], label=[0] * 5),
    }
    for name, data in written.items():
        storage.write_bytes(f"{store}/{name}", data)
    files = [f"files/{index}" for index in range(5)]
    keys = {
        "files": list("01234"),
        "files/*.png": list("01234"),
        "a.txt": files,
        "a.csv": files,
        "a.jsonl": files,
        "list.parquet": files,
        "shards/*.tar": ["x/d/0", "x/d/1", "x/d/2", "y/3", "y/4"],
        "shards/y.tar": ["y/3", "y/4"],
        "rows/keyed.parquet": list("abcde"),
        "hub/*.parquet": [f"0/{index:08d}" for index in range(5)],
    }
    for number, (spec, wanted) in enumerate(keys.items()):
        found, failures = _transported(tmp_path, f"{store}/{spec}", f"{store}/out/{number}", map_url)
        assert not failures, spec
        assert sorted(found) == wanted, spec
        assert [found[key] for key in wanted] == (expected[3:] if spec == "shards/y.tar" else expected), spec


def test_a_row_group_is_read_once(tmp_path, images, monkeypatch):
    path = tmp_path / "a.parquet"
    path.write_bytes(_parquet(image=images))
    reads = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: (reads.append(a[1]), read(*a, **k))[1])
    for listed in listing.list_images(str(path)):
        assert shards.read_member(listed.uri, listed.member) in images
    assert reads == [0, 1, 2]


def test_what_a_tar_should_not_hold_costs_a_failure_each(tmp_path, images, map_url):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("good.png", "/absolute.png", "../up.png", "a/../../up.png", "bad\udcff.png"):
            info = tarfile.TarInfo(name)
            info.size = len(images[0])
            tar.addfile(info, io.BytesIO(images[0]))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("x" * 100_000 + ".png"))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    found, failures = _transported(tmp_path, str(tmp_path / "a.tar"), str(tmp_path / "out"), map_url)
    assert list(found) == ["a/good"]
    assert sorted(row["error_type"] for row in failures) == ["bad_key"] * 5 + ["bad_list"]
    assert any("#/absolute.png" in row["source_uri"] for row in failures)
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.is_relative_to(tmp_path / "out") for path in after - before)


@pytest.mark.parametrize("size", [100, 700, 3000])
def test_a_damaged_tar_is_one_failure_and_what_came_before_is_done(tmp_path, images, map_url, size):
    whole = _tar([(f"{index}.png", data) for index, data in enumerate(images)])
    in_the_second = 512 + -(-len(images[0]) // 512) * 512 + 512 + 10
    (tmp_path / "a.tar").write_bytes(whole[:in_the_second])
    (tmp_path / "b.tar").write_bytes(os.urandom(size))
    (tmp_path / "c.tar").write_bytes(_tar([("good.png", images[0])]))
    found, failures = _transported(tmp_path, str(tmp_path / "*.tar"), str(tmp_path / "out"), map_url)
    assert {"a/0", "c/good"} <= set(found)
    assert {row["error_type"] for row in failures} <= {"bad_list", "damaged"}
    assert any("b.tar can't be read any further" in row["message"] for row in failures)
    assert any("a.tar can't be read any further" in row["message"] for row in failures)
    assert [row["key"] for row in failures if row["error_type"] == "damaged"] == ["a/1"]


def test_cells_that_hold_no_image_cost_a_failure_each(tmp_path, images, map_url):
    (tmp_path / "a.parquet").write_bytes(
        _parquet(key=["a", None, "c", "../d"], image=[images[0], images[0], None, b"x"])
    )
    (tmp_path / "b.parquet").write_bytes(_parquet(uri=[1, 2]))
    (tmp_path / "c.parquet").write_bytes(_parquet(key=[1, 2], image=images[:2]))
    (tmp_path / "d.parquet").write_bytes(b"PAR1 not really")
    found, failures = _transported(tmp_path, str(tmp_path / "*.parquet"), str(tmp_path / "out"), map_url)
    assert list(found) == ["a"]
    causes = sorted(row["error_type"] for row in failures)
    assert causes == ["bad_key", *["bad_list"] * 6, "damaged"]


def test_compressed_tars_are_refused_in_one_line(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match="expected an uncompressed"):
        list(listing.list_images(str(tmp_path / "a.tar.gz")))


def test_images_on_a_web_server_are_named_one_by_one_or_in_a_list(tmp_path, images, expected, map_url):
    for index, data in enumerate(images):
        storage.write_bytes(str(tmp_path / f"www/{index}.png"), data)
    handler = functools.partial(_QuietHandler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site = f"http://127.0.0.1:{server.server_address[1]}"
        (tmp_path / "list.txt").write_text(
            "".join(f"{site}/{index}.png\n" for index in range(1, 5)) + f"{site}/no.png\n"
        )
        found, failures = _transported(tmp_path, f"{site}/0.png", str(tmp_path / "one"), map_url)
        assert found == {"0": expected[0]}
        found, failures = _transported(tmp_path, str(tmp_path / "list.txt"), str(tmp_path / "many"), map_url)
        server.shutdown()
    assert [found[key] for key in sorted(found)] == expected[1:]
    assert [row["error_type"] for row in failures] == ["not_found"]


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
