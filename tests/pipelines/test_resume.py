"""Running transport again: after it ended, after its inputs changed, and after it was killed."""

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ot_core import storage
from ot_core.shards import read_shard
from pipelines import fit, transport


def _put(url: str, pixels: np.ndarray) -> None:
    import io

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    storage.write_bytes(url, buffer.getvalue())


@pytest.fixture(scope="module")
def map_url(tmp_path_factory, photo, vae):
    root = tmp_path_factory.mktemp("map")
    for index in range(3):
        _put(str(root / f"natural/{index}.png"), photo(48, 64, seed=index))
        _put(str(root / f"restored/{index}.png"), photo(48, 64, seed=9 - index))
    url = str(root / "map.safetensors")
    sides = ["--target", str(root / "natural"), "--source", str(root / "restored")]
    assert fit.main([*sides, "--map", url, "--vae", vae]) == 0
    return url


def _run(root: str, map_url: str, *options: str) -> int:
    arguments = ["--input", f"{root}/in", "--output", f"{root}/out", "--map", map_url]
    return transport.main([*arguments, *options])


def _rows(root: str) -> dict[tuple[str, float], dict]:
    rows = {}
    for url in storage.match(f"{root}/out/manifest-*.parquet"):
        with fsspec.open(url, "rb") as file:
            for row in pq.read_table(file).to_pylist():
                assert (row["key"], row["alpha"]) not in rows
                rows[row["key"], row["alpha"]] = row
    return rows


def _without_seconds(rows: dict) -> dict:
    return {key: {name: value for name, value in row.items() if name != "seconds"} for key, row in rows.items()}


def _wait_for_the_clock(store: str) -> None:
    """S3 and Azure tell times in seconds, the others in milliseconds or better."""
    time.sleep(1.1 if store.startswith(("s3", "az")) else 0.05)


@pytest.fixture
def archive(store, photo):
    for index in range(4):
        _put(f"{store}/in/deep/{index}.png", photo(24, 32, seed=index))
    _wait_for_the_clock(store)
    return store


def test_a_second_run_does_nothing_and_keeps_the_manifest(archive, map_url, capsys):
    assert _run(archive, map_url, "--alpha", "0", "0.5") == 0
    first = _rows(archive)
    assert len(first) == 8
    assert all(row["source_version"] for row in first.values())
    capsys.readouterr()
    assert _run(archive, map_url, "--alpha", "0", "0.5", "--resume") == 0
    printed = capsys.readouterr().out
    assert "0 images transported" in printed
    assert "4 images were there already, 0 of them not yet in the manifest" in printed
    assert _rows(archive) == first


def test_what_is_new_changed_or_gone_is_done_and_the_rest_is_not(archive, map_url, photo, capsys):
    assert _run(archive, map_url) == 0
    first = _rows(archive)
    _wait_for_the_clock(archive)
    _put(f"{archive}/in/new.png", photo(24, 32, seed=7))
    _put(f"{archive}/in/deep/0.png", photo(24, 32, seed=8))
    storage.remove(first["deep/1", 0.0]["output_uri"])
    capsys.readouterr()
    assert _run(archive, map_url, "--resume") == 0
    printed = capsys.readouterr().out
    assert "3 images transported" in printed
    assert "2 images were there already" in printed
    second = _rows(archive)
    assert set(second) == {*first, ("new", 0.0)}
    assert [key for key in first if first[key]["sha256"] != second[key]["sha256"]] == [("deep/0", 0.0)]
    assert second["deep/0", 0.0]["source_version"] != first["deep/0", 0.0]["source_version"]
    assert all(second["deep/2", 0.0][name] == first["deep/2", 0.0][name] for name in first["deep/2", 0.0])


@pytest.mark.parametrize("kind", ["files", "webdataset", "parquet"])
def test_a_result_and_its_row_stay_until_a_changed_image_is_made_anew(tmp_path, map_url, photo, kind):
    root, packed = str(tmp_path), ["--output_format", kind, "--output_shards", "1"]
    for index in range(3):
        _put(f"{root}/in/{index}.png", photo(24, 32, seed=index))
    assert _run(root, map_url, *packed) == 0
    first = _rows(root)
    time.sleep(0.05)
    (tmp_path / "in/0.png").write_bytes(b"broken")
    _put(f"{root}/in/new.png", photo(24, 32, seed=7))  # the shard is written anew for it
    assert _run(root, map_url, *packed, "--resume") == 0
    second = _rows(root)
    assert second.keys() == {*first, ("new", 0.0)}
    assert {key: second[key] for key in first} == first
    assert {row["sha256"] for row in second.values()} == _digests(tmp_path / "out/images")
    time.sleep(0.05)
    _put(f"{root}/in/0.png", photo(24, 32, seed=8))
    assert _run(root, map_url, *packed, "--resume") == 0
    third = _rows(root)
    assert [key for key in second if third[key]["sha256"] != second[key]["sha256"]] == [("0", 0.0)]
    assert {row["sha256"] for row in third.values()} == _digests(tmp_path / "out/images")


def _digests(folder: Path) -> set[str]:
    """Of the images in a folder or in its shards."""
    images = []
    for path in folder.rglob("*.*"):
        images += [path.read_bytes()] if path.suffix == ".png" else [data for _, data in read_shard(str(path))]
    return {hashlib.sha256(data).hexdigest() for data in images}


def test_files_that_are_not_in_the_manifest_are_recovered(archive, map_url, capsys):
    assert _run(archive, map_url) == 0
    first = _rows(archive)
    for url in storage.match(f"{archive}/out/manifest-*.parquet"):
        storage.remove(url)
    capsys.readouterr()
    assert _run(archive, map_url, "--resume") == 0
    assert "4 images were there already, 4 of them not yet in the manifest" in capsys.readouterr().out
    assert _without_seconds(_rows(archive)) == _without_seconds(first)


def test_results_of_another_job_are_never_taken_for_this_ones(archive, map_url, capsys):
    assert _run(archive, map_url, "--alpha", "0") == 0
    first = _rows(archive)
    assert _run(archive, map_url, "--alpha", "0.5", "--resume") == 2
    assert "was made with alpha [0.0], not [0.5]" in capsys.readouterr().err
    _wait_for_the_clock(archive)
    # As if a job with another alpha had been killed before it wrote anything but its first image.
    job = json.loads(storage.read_bytes(f"{archive}/out/job.json"))
    storage.write_bytes(f"{archive}/out/job.json", json.dumps({**job, "alpha": [0.5]}).encode())
    assert _run(archive, map_url, "--alpha", "0.5", "--resume") == 0
    assert "4 images transported" in capsys.readouterr().out
    assert {key[0]: row["sha256"] for key, row in _rows(archive).items()}.keys() == {key for key, _ in first}
    assert not {row["sha256"] for row in first.values()} & {row["sha256"] for row in _rows(archive).values()}


def test_rows_of_other_inputs_are_kept(archive, map_url):
    assert _run(archive, map_url) == 0
    first = _rows(archive)
    assert transport.main(
        ["--input", f"{archive}/in/deep/0.png", "--output", f"{archive}/out", "--map", map_url, "--resume"]
    ) == 0  # fmt: skip
    assert set(_rows(archive)) == {*first, ("0", 0.0)}


def test_lists_know_versions_too(tmp_path, map_url, photo, capsys):
    for index in range(3):
        _put(str(tmp_path / f"files/{index}.png"), photo(24, 32, seed=index))
    (tmp_path / "in.txt").write_text("".join(f"files/{index}.png\n" for index in range(3)))
    arguments = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out"), "--map", map_url]
    assert transport.main(arguments) == 0
    time.sleep(0.05)
    _put(str(tmp_path / "files/1.png"), photo(24, 32, seed=5))
    capsys.readouterr()
    assert transport.main([*arguments, "--resume"]) == 0
    assert "1 images transported" in capsys.readouterr().out


def test_since_takes_only_what_is_newer(tmp_path, map_url, photo, capsys):
    for index in range(3):
        _put(str(tmp_path / f"in/{index}.png"), photo(24, 32, seed=index))
        os.utime(tmp_path / f"in/{index}.png", (1_700_000_000 + index, 1_700_000_000 + index))
    assert _run(str(tmp_path), map_url, "--since", "2023-11-14T22:13:21") == 0  # 1_700_000_001
    assert "1 older images left out" in capsys.readouterr().out
    assert {key for key, _ in _rows(str(tmp_path))} == {"1", "2"}
    assert _run(str(tmp_path), map_url, "--since", "yesterday") == 2
    assert "expected a date or time like" in capsys.readouterr().err
    assert _run(str(tmp_path), map_url, "--since", "2099-01-01", "--resume") == 0


def test_a_manifest_of_another_form_is_refused_in_one_line(tmp_path, map_url, photo, capsys):
    _put(str(tmp_path / "in/0.png"), photo(24, 32))
    assert _run(str(tmp_path), map_url) == 0
    path = tmp_path / "out/manifest-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("width"), "width", pa.array(["wide"])), path)
    capsys.readouterr()
    assert _run(str(tmp_path), map_url, "--resume") == 2
    assert "column width: expected int64, found string" in capsys.readouterr().err


def test_another_number_of_shards_leaves_no_old_ones(tmp_path, map_url, photo):
    _put(str(tmp_path / "in/0.png"), photo(24, 32))
    for shards in ("3", "2"):
        assert _run(str(tmp_path), map_url, "--manifest_shards", shards, "--resume") == 0
    assert len(list((tmp_path / "out").glob("manifest-*"))) == 2
    assert len(list((tmp_path / "out").glob("failures-*"))) == 2


def test_killed_ten_times_and_resumed_it_ends_like_an_undisturbed_run(tmp_path, map_url, photo, forked):
    n, kills = 80, sorted(random.Random(3).sample(range(1, 76), 10))
    for index in range(n):
        _put(str(tmp_path / f"in/{index % 7}/{index}.png"), photo(160, 200, seed=index))
    assert transport.main(
        ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "whole"), "--map", map_url]
    ) == 0  # fmt: skip
    images = tmp_path / "out/images"
    expected = {
        path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole/images").rglob("*.png")
    }
    assert len(expected) == n
    command = ["transport", "--input", str(tmp_path / "in"), "--map", map_url]
    command += ["--output", str(tmp_path / "out"), "--resume"]
    seen: dict[Path, int] = {}
    for kill_at in kills:
        forked.killer.kill_at(max(kill_at, len(seen) + 1), images)
        assert forked.run(*command).returncode == -signal.SIGKILL
        for path in images.rglob("*.png"):
            # Whole under its final name, and not written a second time.
            assert path.read_bytes() == expected[path.relative_to(tmp_path / "out")]
            assert seen.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    final = forked.run(*command)
    assert final.returncode == 0, final.stderr
    assert f"{len(seen)} images were there already" in final.stdout
    found = {path.relative_to(tmp_path / "out"): path.read_bytes() for path in images.rglob("*.png")}
    assert found == expected
    assert all(path.stat().st_mtime_ns == written for path, written in seen.items())
    names = ("key", "source_uri", "alpha", "width", "height", "bytes", "sha256", "source_version")

    def rows(folder: str) -> list[dict]:
        table = pq.read_table(tmp_path / folder / "manifest-00000-of-00001.parquet", columns=list(names))
        return sorted(table.to_pylist(), key=lambda row: row["key"])

    assert rows("out") == rows("whole")
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.is_file()]
