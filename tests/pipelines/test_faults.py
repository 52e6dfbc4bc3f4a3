"""Stores that fail now and then cost time, and nothing else."""

import io
import json
import tarfile
import uuid
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ot_core import listing, storage
from pipelines import evaluate, fit, transport
from tests.faults import FAULTS, faulty_proxy, faulty_store
from tests.web import web_server

SHARE = 0.1
#: A request may fail many times in a row: what is asserted must not hang on chance.
PATIENT = 600


def _png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _transport(images: str, output: str, map_url: str, *options: str) -> None:
    assert transport.main(["--input", images, "--output", output, "--map", map_url, *options]) == 0


def _run_all(root: str, output: str) -> None:
    """Every job, with what it lists, reads, writes, packs and resumes in a store."""
    map_url = f"{output}/map.safetensors"
    sides = ["--target", f"{root}/natural", "--source", f"{root}/some"]
    assert fit.main([*sides, "--map", map_url, "--vae", "pixels", "--patch_size", "1"]) == 0
    _transport(f"{root}/some.txt", f"{output}/files", map_url)
    _transport(f"{root}/some", f"{output}/parquet", map_url, "--output_format", "parquet", "--output_shards", "3")
    packed = [f"{output}/webdataset", map_url, "--output_format", "webdataset", "--output_shards", "3"]
    _transport(f"{root}/some", *packed)
    _transport(f"{root}/all", *packed, "--resume")
    judged = ["--reference", f"{root}/natural", "--candidate", f"enhanced={output}/webdataset"]
    options = ["--report", f"{output}/report", "--vae", "pixels", "--features", "latent", "pixel"]
    assert evaluate.main([*judged, *options]) == 0


def _contents(folder: str) -> dict[str, object]:
    """The files of a folder by path; of records, the rows, without what differs between any two runs."""
    found = {}
    for listed in listing.list_folder(folder):
        path = listed.uri.removeprefix(folder)
        data = storage.read_bytes(listed.uri)
        if path.endswith(".parquet") and "shard-" not in path:
            found[path] = _rows(data, folder)
        else:
            found[path] = data
    return found


def _rows(data: bytes, folder: str) -> list[str]:
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    for row in rows:
        row.pop("seconds", None)
    return sorted(json.dumps(row, default=str).replace(folder, "") for row in rows)


@pytest.mark.parametrize("server", ["gcs", "s3"])  # Azure's own library waits 15 s and more at each fault
def test_one_request_in_ten_fails_and_all_jobs_give_the_same_bytes(server, request):
    root = f"{request.getfixturevalue(server)}/{uuid.uuid4().hex[:8]}"
    for index in range(16):
        data = _png(index)
        if index < 8:
            storage.write_bytes(f"{root}/some/{index}.png", data)
            storage.write_bytes(f"{root}/natural/{index}.png", _png(100 + index))
        storage.write_bytes(f"{root}/all/{index}.png", data)
    storage.write_bytes(f"{root}/some.txt", "".join(f"some/{index}.png\n" for index in range(8)).encode())
    _run_all(root, f"{root}/quiet")
    with faulty_store(root, SHARE, retry_seconds=PATIENT) as proxy:
        _run_all(root, f"{root}/faulty")
    assert all(proxy.counts[fault] for fault in FAULTS), proxy.counts
    assert proxy.faults > SHARE / 2 * proxy.counts.total()
    quiet, faulty = _contents(f"{root}/quiet"), _contents(f"{root}/faulty")
    assert faulty.keys() == quiet.keys()
    assert [path for path in quiet if faulty[path] != quiet[path]] == []


def test_a_web_server_of_whose_answers_one_in_ten_fails_is_read_like_a_quiet_one(tmp_path):
    storage.write_bytes(str(tmp_path / "natural/0.png"), _png(0))
    map_url = str(tmp_path / "map.safetensors")
    sides = ["--target", str(tmp_path / "natural"), "--source", str(tmp_path / "natural")]
    assert fit.main([*sides, "--map", map_url, "--vae", "pixels", "--patch_size", "1"]) == 0
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for index in range(20):
            member = tarfile.TarInfo(f"{index}.png")
            member.size = len(_png(index))
            tar.addfile(member, io.BytesIO(_png(index)))
    with web_server(etag=True) as web:
        web.files = {f"/{index}.png": _png(index) for index in range(40)}
        web.files["/list.txt"] = "".join(f"{index}.png\n" for index in range(40)).encode()
        web.files["/packed.tar"] = packed.getvalue()
        with pytest.MonkeyPatch.context() as patch, faulty_proxy(web.url, SHARE) as proxy:
            patch.setenv("DOT_RETRY_SECONDS", str(PATIENT))
            for name in ("list.txt", "packed.tar"):
                _transport(f"{web.url}/{name}", str(tmp_path / "quiet" / name), map_url)
                _transport(f"{proxy.url}/{name}", str(tmp_path / "faulty" / name), map_url)
            assert proxy.faults
    quiet, faulty = (_digests(tmp_path / side) for side in ("quiet", "faulty"))
    assert len(quiet) == 60
    assert faulty == quiet


def _digests(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("images/**/*.png")}


def test_an_object_that_always_fails_is_one_failure_that_names_it(s3, tmp_path, capsys):
    root = f"{s3}/{uuid.uuid4().hex[:8]}"
    for name in ("a", "b", "poison"):
        storage.write_bytes(f"{root}/in/{name}.png", _png(len(name)))
    map_url = str(tmp_path / "map.safetensors")
    sides = ["--target", f"{root}/in", "--source", f"{root}/in"]
    assert fit.main([*sides, "--map", map_url, "--vae", "pixels", "--patch_size", "1"]) == 0

    def poisoned(command: str, path: str, body: bytes) -> str | None:
        return "503" if "/poison.png" in path else None

    with faulty_store(root, override=poisoned, retry_seconds=1):
        _transport(f"{root}/in", str(tmp_path / "out"), map_url)
    assert "1 unavailable" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out/images").rglob("*.png")) == ["a.png", "b.png"]
    (failure,) = pq.read_table(tmp_path / "out/failures-00000-of-00001.parquet").to_pylist()
    assert (failure["key"], failure["stage"], failure["error_type"]) == ("poison", "read", "unavailable")
