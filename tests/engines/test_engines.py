"""Both jobs on every engine that is at hand: the same work, the same results."""

import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.engines.conftest import manifest, written


@pytest.fixture(scope="module")
def fitted(engine, jobs, tmp_path_factory):
    """URL of the map that an engine fits."""
    url = str(tmp_path_factory.mktemp("map") / "map.safetensors")
    assert jobs.fit(url, *engine.flags) == 0
    return url


def test_every_engine_fits_the_same_map(fitted, map_url):
    expected, found = load_file(map_url), load_file(fitted)
    assert found.keys() == expected.keys()
    # Engines merge statistics in whatever order they come, and sums of floats depend on it in their last bits.
    for name, value in expected.items():
        error = np.abs(found[name] - value).max() / np.abs(value).max()
        print(f"{name}: {error:.1e}")
        assert error <= 1e-12, f"{name}: {error:.1e}"


def test_every_engine_writes_the_same_bytes_and_each_image_once(engine, jobs, map_url, images, tmp_path, capsys):
    assert jobs.transport(map_url, tmp_path / "out", "--verbose", *engine.flags) == 0
    assert written(tmp_path / "out") == images
    rows = manifest(tmp_path / "out")
    assert [row["key"] for row in rows] == sorted(jobs.keys)
    assert rows == manifest(jobs.root / "out")

    printed = capsys.readouterr().out
    assert f"images: {len(jobs.keys)} listed, {len(jobs.keys)} read, {len(jobs.keys)} written;" in printed
    assert "0 failures" in printed
    batches = re.search(r"batches: (\d+), of [0-9.]+ images on average, (\d+) at most", printed)
    loads = re.search(r"load model +(\d+)", printed)
    assert batches
    assert loads
    if "--direct_num_workers=2" in engine.flags:  # both processes had work, so listing doesn't hold on to what it lists
        assert int(batches[1]) >= 2
        assert int(batches[2]) < len(jobs.keys)
        assert int(loads[1]) == 2
    else:
        assert int(loads[1]) == 1
