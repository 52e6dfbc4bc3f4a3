"""A store that fails now and then costs time, and nothing else."""

import os
import uuid

import fsspec
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from ot_core import storage
from tests.faults import faulty_proxy


def _hashes(output: str) -> dict[str, str]:
    with fsspec.open(f"{output}/manifest-00000-of-00001.parquet", "rb") as file:
        table = pq.read_table(file)
    return dict(zip(table["key"].to_pylist(), table["sha256"].to_pylist(), strict=True))


def test_one_request_in_ten_fails_and_no_image_is_lost_but_the_one_that_always_fails(gcs, tmp_path, photo, vae, forked):
    root = f"{gcs}/{uuid.uuid4().hex[:8]}"
    tile = photo(40, 1000)
    for index in range(500):
        path = tmp_path / f"in/{index % 10}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(tile[index % 25 :][:16, index * 2 % 980 :][:, :16])).save(path)
    fs = fsspec.filesystem("gs")
    fs.put(str(tmp_path / "in") + "/", f"{root}/in/", recursive=True)
    storage.write_bytes(f"{root}/in/poison.png", (tmp_path / "in/0/0.png").read_bytes())
    map_url = str(tmp_path / "map.safetensors")
    sides = ["--target", str(tmp_path / "in/1"), "--source", str(tmp_path / "in/2")]
    assert forked.run("fit", *sides, "--map", map_url, "--vae", vae, "--patch_size", "1").returncode == 0
    arguments = ["transport", "--map", map_url, "--direct_num_workers", "8"]
    arguments += ["--direct_running_mode", "multi_threading"]
    undisturbed = forked.run(*arguments, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert undisturbed.returncode == 0, undisturbed.stderr

    def poisoned(command: str, path: str, body: bytes) -> str | None:
        return "503" if "poison.png?" in path else None

    with faulty_proxy(os.environ["STORAGE_EMULATOR_HOST"], 0.1, seed=0, override=poisoned) as proxy:
        settings = {"STORAGE_EMULATOR_HOST": proxy.url, "DOT_RETRY_SECONDS": "30"}
        job = forked.run(*arguments, "--input", f"{root}/in", "--output", f"{root}/out", **settings)
    assert job.returncode == 0, job.stderr
    faults = sum(proxy.counts.values()) - proxy.counts["none"]
    assert faults > 100
    assert all(proxy.counts[fault] > 5 for fault in proxy.counts)
    fs.invalidate_cache()
    expected = _hashes(str(tmp_path / "out"))
    assert len(expected) == 500
    assert _hashes(f"{root}/out") == expected
    with fsspec.open(f"{root}/out/failures-00000-of-00001.parquet", "rb") as file:
        (failure,) = pq.read_table(file).to_pylist()
    assert (failure["key"], failure["stage"], failure["error_type"]) == ("poison", "read", "unavailable")
    assert "1 unavailable" in job.stdout
