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
    source, target = (np.linalg.eigvalsh(expected[f"{side}.scatter"]) for side in ("source", "target"))
    # Engines merge statistics in whatever order they come, and sums of floats depend on it in their last bits. The
    # matrix has two roots of the source's covariance in its denominator, and one of the product of both within.
    condition = source[-1] / source[0] * np.sqrt(source[-1] / source[0] * target[-1] / target[0])
    for name, value in expected.items():
        error = np.abs(found[name] - value).max() / np.abs(value).max()
        allowed = max(1e-12, 1e-15 * condition) if name == "map.matrix" else 1e-12
        print(f"{name}: {error:.1e}, allowed {allowed:.1e}")
        assert error <= allowed, f"{name}: {error:.1e}"


def test_every_engine_writes_the_same_bytes_and_each_image_once(engine, jobs, map_url, images, tmp_path, capsys):
    assert jobs.transport(map_url, tmp_path / "out", *engine.flags) == 0
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
