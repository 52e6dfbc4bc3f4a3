"""Results in tar and Parquet shards: the same images as in files, whatever happened on the way."""

import io
import json
import os
import random
import shutil
import signal
import tarfile
import time
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

from ot_core import listing, shards, storage
from pipelines import evaluate, fit, transport

KINDS = {"webdataset": ".tar", "parquet": ".parquet"}


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "a description"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif, icc_profile=profile)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def map_url(tmp_path_factory, photo, vae):
    root = tmp_path_factory.mktemp("map")
    for index in range(4):
        side = "natural" if index % 2 else "restored"
        storage.write_bytes(str(root / f"{side}/{index}.png"), _png(photo(24, 32, seed=index)))
    sides = ["--target", str(root / "natural"), "--source", str(root / "restored"), "--patch_size", "1"]
    assert fit.main([*sides, "--map", str(root / "map.safetensors"), "--vae", vae]) == 0
    return str(root / "map.safetensors")


@pytest.fixture
def archive(tmp_path, photo):
    for index in range(7):
        storage.write_bytes(str(tmp_path / f"in/deep/é {index}.png"), _png(photo(24, 32, seed=index)))
    return str(tmp_path / "in")


def _run(source: str, output: str, map_url: str, *options: str) -> int:
    return transport.main(["--input", source, "--output", output, "--map", map_url, *options])


def _rows(output: str, name: str = "manifest") -> list[dict]:
    rows = []
    for url in storage.match(f"{output}/{name}-*.parquet"):
        with fsspec.open(url, "rb") as file:
            rows += pq.read_table(file).to_pylist()
    return sorted(rows, key=lambda row: (row["key"], row.get("alpha", 0)))


def _images(output: str) -> dict[str, bytes]:
    """What is in the shards of an output, as files would be named."""
    found: dict[str, bytes] = {}
    for folder in ("images", "images/alpha=*"):
        for url in storage.match(f"{output}/{folder}/shard-*"):
            prefix = url.rpartition("/")[0].rpartition("images")[2].lstrip("/")
            for name, data in shards.read_shard(url):
                assert found.setdefault(f"{prefix}/{name}".lstrip("/"), data) is data
    return found


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_shards_hold_the_bytes_that_files_hold(store, kind, archive, map_url, tmp_path, capsys):
    options = ["--alpha", "0", "0.5", "--format", "jpeg"]
    assert _run(archive, str(tmp_path / "files"), map_url, *options) == 0
    output = f"{store}/sharded"
    options += ["--output_format", kind, "--output_shards", "3"]
    assert _run(archive, output, map_url, *options) == 0
    assert "shards written" in capsys.readouterr().out
    expected = _files(tmp_path / "files/images")
    assert len(expected) == 14
    assert _images(output) == expected
    for data in expected.values():
        with Image.open(io.BytesIO(data)) as image:
            assert image.getexif()[0x010E] == "a description"
            assert image.info["icc_profile"]
    assert not _rows(output, "failures")
    by_uri = {}
    for row in _rows(output):
        shard, member = row["output_uri"].split("#")
        assert shard.endswith(KINDS[kind])
        by_uri[row["alpha"], row["key"]] = dict(shards.read_shard(shard))[member]
        assert len(by_uri[row["alpha"], row["key"]]) == row["bytes"]
    assert len(by_uri) == 14
    assert not list(listing.list_folder(f"{output}/.staging"))
    # Again, and nothing is read, made or written.
    before = _rows(output)
    assert _run(archive, output, map_url, *options, "--resume") == 0
    printed = capsys.readouterr().out
    assert "0 images transported" in printed
    assert "  0 shards written" in printed
    assert "7 images were there already, 0 of them not yet in the manifest" in printed
    assert _rows(output) == before


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_inputs_under_the_same_keys(kind, archive, map_url, tmp_path):
    output = str(tmp_path / "out")
    assert _run(archive, output, map_url, "--output_format", kind, "--output_shards", "2") == 0
    found = list(listing.list_images(f"{output}/images/shard-*{KINDS[kind]}"))
    assert sorted(image.key for image in found) == [f"deep/é {index}" for index in range(7)]
    report = str(tmp_path / "report")
    sides = ["--candidate", f"restored={archive}", f"enhanced={output}"]
    assert evaluate.main(["--reference", archive, *sides, "--report", report]) == 0
    totals = json.loads((tmp_path / "report/totals.json").read_text())
    assert "enhanced" in json.dumps(totals)
    assert not _rows(report, "failures")


@pytest.mark.parametrize("kind", KINDS)
def test_after_changes_a_resumed_output_equals_a_fresh_one(kind, archive, map_url, photo, tmp_path, capsys):
    options = ["--output_format", kind, "--output_shards", "3"]
    output, fresh = tmp_path / "out", tmp_path / "fresh"
    assert _run(archive, str(output), map_url, *options) == 0
    time.sleep(0.05)
    storage.write_bytes(f"{archive}/new.png", _png(photo(24, 32, seed=20)))
    storage.write_bytes(f"{archive}/deep/é 3.png", _png(photo(24, 32, seed=21)))
    capsys.readouterr()
    assert _run(archive, str(output), map_url, *options, "--resume") == 0
    assert "2 images transported" in capsys.readouterr().out
    assert _run(archive, str(fresh), map_url, *options) == 0
    assert _files(output / "images") == _files(fresh / "images")
    assert [row["sha256"] for row in _rows(str(output))] == [row["sha256"] for row in _rows(str(fresh))]


def test_other_shards_than_asked_for_do_not_stay(archive, map_url, tmp_path, capsys):
    output = tmp_path / "out"
    assert _run(archive, str(output), map_url, "--output_format", "webdataset", "--output_shards", "40") == 0
    assert 1 < len(list((output / "images").iterdir())) <= 7  # none is empty
    assert _run(archive, str(output), map_url, "--output_format", "webdataset", "--output_shards", "2", "--resume") == 2
    assert "was made with output_shards 40, not 2" in capsys.readouterr().err
    (output / "images/shard-mine.tar").write_bytes(b"not ours")
    assert _run(archive, str(output), map_url, "--output_format", "parquet", "--output_shards", "2", "--overwrite") == 0
    assert sorted(path.name for path in (output / "images").iterdir()) == [
        "shard-00000-of-00002.parquet", "shard-00001-of-00002.parquet", "shard-mine.tar",
    ]  # fmt: skip


def test_an_output_that_was_moved_is_gone_on_with(archive, map_url, tmp_path, capsys, monkeypatch):
    options = ["--output_format", "webdataset", "--output_shards", "2"]
    assert _run(archive, str(tmp_path / "first"), map_url, *options) == 0
    shutil.move(tmp_path / "first", tmp_path / "second")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert _run(archive, "second", map_url, *options, "--resume") == 0
    assert "0 images transported" in capsys.readouterr().out
    assert all(row["output_uri"].startswith("second/images/shard-") for row in _rows("second"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_is_damaged_or_gone_costs_its_images_once(kind, archive, map_url, photo, tmp_path):
    options = ["--output_format", kind, "--output_shards", "2"]
    output = tmp_path / "out"
    assert _run(archive, str(output), map_url, *options) == 0
    whole = _files(output / "images")
    first, second = sorted((output / "images").iterdir())
    first.unlink()
    assert _run(archive, str(output), map_url, *options, "--resume") == 0
    assert _files(output / "images") == whole
    # Damage is seen where the shard has to be written anew.
    second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
    time.sleep(0.05)
    for index in range(20, 30):
        storage.write_bytes(f"{archive}/{index}.png", _png(photo(24, 32, seed=index)))
    assert _run(archive, str(output), map_url, *options, "--resume") == 0
    failures = _rows(str(output), "failures")
    assert failures
    assert {(row["stage"], row["error_type"]) for row in failures} == {("write", "damaged")}
    assert len(failures) + len(_rows(str(output))) == 17
    assert _run(archive, str(output), map_url, *options, "--resume") == 0
    assert not _rows(str(output), "failures")
    assert len(_rows(str(output))) == 17
    fresh = tmp_path / "fresh"
    assert _run(archive, str(fresh), map_url, *options) == 0
    assert _files(output / "images") == _files(fresh / "images")


@pytest.mark.parametrize("kind", KINDS)
def test_killed_while_making_and_while_packing_it_ends_like_an_undisturbed_run(kind, map_url, photo, tmp_path, forked):
    n = 60
    for index in range(n):
        storage.write_bytes(str(tmp_path / f"in/{index}.png"), _png(photo(100, 120, seed=index)))
    options = ["--output_format", kind, "--output_shards", "12"]
    assert _run(str(tmp_path / "in"), str(tmp_path / "whole"), map_url, *options) == 0
    expected = _files(tmp_path / "whole/images")
    output = tmp_path / "out"
    command = ["transport", "--input", str(tmp_path / "in"), "--map", map_url]
    command += ["--output", str(output), *options, "--resume"]
    rng = random.Random(5)
    made = 0
    moments = [(".staging", rng.randrange(1, n - 10)) for _ in range(2)] + [("images", rng.randrange(1, 8))]
    for folder, count in sorted(moments):
        # Counting up from what an earlier run left.
        forked.killer.kill_at(max(count, made + 1) if folder == ".staging" else count, output / folder)
        assert forked.run(*command).returncode == -signal.SIGKILL
        made = max(made, _count(output / ".staging"))
        for path in (output / "images").glob("shard-*"):
            assert path.read_bytes() == expected[path.name]
    assert made == n
    assert 0 < _count(output / "images") < 12
    final = forked.run(*command)
    assert final.returncode == 0, final.stderr
    assert "0 images transported" in final.stdout
    assert f"{n} images were there already, {n} of them not yet in the manifest" in final.stdout
    assert _files(output / "images") == expected
    whole, resumed = _rows(str(tmp_path / "whole")), _rows(str(output))
    for name in ("key", "source_uri", "bytes", "sha256", "width", "height", "source_version"):
        assert [row[name] for row in resumed] == [row[name] for row in whole]
    assert not (output / ".staging").exists()


def _count(folder: Path) -> int:
    return sum(1 for _, _, names in os.walk(folder) for name in names if not name.startswith("."))


def test_the_same_images_give_the_same_shard_and_row_groups_stay_small(tmp_path):
    images = [(f"{index}.png", bytes([index]) * (12 << 20)) for index in range(5)]
    for extension in KINDS.values():
        paths = [str(tmp_path / f"{attempt}{extension}") for attempt in (0, 1)]
        for path in paths:
            shards.write_shard(path, iter(images))
        assert Path(paths[0]).read_bytes() == Path(paths[1]).read_bytes()
        assert list(shards.read_shard(paths[0])) == images
    metadata = pq.ParquetFile(tmp_path / "0.parquet").metadata
    assert [metadata.row_group(index).num_rows for index in range(3)] == [2, 2, 1]


def test_names_in_a_tar_shard_are_what_tar_tools_read(tmp_path):
    long = "/".join(["é" * 60] * 4) + ".png"
    path = str(tmp_path / "a.tar")
    shards.write_shard(path, [("a b.png", b"x"), (long, b"y")])
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["a b.png", long]
        assert {(member.mtime, member.uid, member.gid) for member in tar} == {(0, 0, 0)}
