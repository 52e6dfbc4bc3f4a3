"""Killed at moments of its writing, a job with shards has lost nothing that it had finished."""

import hashlib
import io
import os
import signal
import time
import uuid
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ot_core import listing, shards, storage
from ot_core.layout import OutputLayout
from pipelines import fit, transport
from tests.faults import faulty_store
from tests.forked_jobs import ForkedJobs

#: What a request writes or removes, how many of that kind are let through before, and whether the store does the one at
#: which the job is killed.
MAKING = [("PUT", "/.staging/", 1, False), ("PUT", "/.staging/", 2, True)]
PACKING = [
    ("PUT", "/shard-0", 0, False),
    ("PUT", "/shard-0", 1, True),
    ("PUT", "/manifest-0", 0, False),
    ("PUT", "/manifest-0", 0, True),
]
REMOVING = [("DELETE", "/.staging/", 0, False), ("DELETE", "/.staging/", 1, True)]


def _png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def map_url(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("map")
    for index in range(4):
        for side in ("natural", "restored"):
            storage.write_bytes(str(root / side / f"{index}.png"), _png(index + 10 * (side == "natural")))
    url = str(root / "map.safetensors")
    sides = ["--target", str(root / "natural"), "--source", str(root / "restored")]
    assert fit.main([*sides, "--map", url, "--vae", "pixels", "--paired", "--patch_size", "1"]) == 0
    return url


def _finished(layout: OutputLayout) -> set[tuple[str, str]]:
    """Names and digests of the images that the manifest has in a shard, and of those that are staged."""
    found = {
        (listed.uri.rpartition("/")[2], storage.read_bytes(listed.uri))
        for listed in listing.list_folder(layout.written_folder(0.0))
    }
    rows = _rows(layout)
    for shard in layout.find_shards(0.0):
        for name, data in shards.read_shard(shard.url):
            if rows.get(name.removesuffix(".png")) == hashlib.sha256(data).hexdigest():
                found.add((name, data))
    return {(name, hashlib.sha256(data).hexdigest()) for name, data in found}


def _rows(layout: OutputLayout) -> dict[str, str]:
    rows = {}
    for manifest in layout.find_manifests():
        with storage.open_file(manifest.url) as file:
            rows |= {row["key"]: row["sha256"] for row in pq.read_table(file).to_pylist()}
    return rows


def _run_killed(forked: ForkedJobs, command: list[str], output: str, moment: tuple[str, str, int, bool]) -> int:
    method, part, passed, done = moment
    seen = []

    def kill(command: str, path: str, body: bytes) -> str | None:
        if command != method or part not in path:
            return None
        seen.append(path)
        if len(seen) <= passed:
            return None
        if len(seen) == passed + 1:
            forked.kill()
            return "reset after" if done else "reset before"
        return "reset before"

    with faulty_store(output, override=kill):
        settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        return forked.run("transport", *command, **settings).returncode


def test_killed_at_ten_moments_of_packing_and_resuming_nothing_finished_is_lost(s3, map_url, forked, tmp_path):
    kind = "webdataset"  # what is written when is the same for Parquet
    root = f"{s3}/{uuid.uuid4().hex[:8]}"
    layout = OutputLayout.of(f"{root}/out", [0.0], kind=kind)
    sharded = ["--map", map_url, "--output_format", kind, "--output_shards", "3", "--direct_num_workers", "1"]
    command = ["--input", f"{root}/in", "--output", layout.root, *sharded, "--resume"]
    rounds = [(range(8), [*MAKING, *PACKING[:2], *REMOVING[1:]]), (range(6, 12), [*PACKING, *REMOVING[:1]])]
    seen: set[tuple[str, str]] = set()
    killed = 0
    for number, (images, moments) in enumerate(rounds):
        for index in images:
            for folder in (f"{root}/in", str(tmp_path / "in")):
                storage.write_bytes(f"{folder}/{index}.png", _png(100 * number + index))
        time.sleep(1.1)  # S3 tells whole seconds
        fresh = tmp_path / f"fresh{number}"
        assert transport.main(["--input", str(tmp_path / "in"), "--output", str(fresh), *sharded]) == 0
        expected = _finished(OutputLayout.of(str(fresh), [0.0], kind=kind))
        seen &= expected  # those whose source was changed are no longer asked for
        for moment in moments:
            assert _run_killed(forked, command, layout.root, moment) == -signal.SIGKILL, moment
            killed += 1
            finished = _finished(layout)
            assert seen <= finished, moment
            seen |= finished & expected
        assert _run_killed(forked, command, layout.root, ("NONE", "", 0, False)) == 0
        assert _finished(layout) == expected
        for shard in OutputLayout.of(str(fresh), [0.0], kind=kind).find_shards(0.0):
            assert storage.read_bytes(f"{layout.folder(0.0)}/{shard.name}") == Path(shard.url).read_bytes()
        assert not list(listing.list_folder(layout.staging))
        seen = expected
    assert killed == 10
