"""The benchmark of workers: what it counts, and what its page says."""

import os

import pytest

from benchmarks import workers


def test_the_rate_runs_from_the_first_image_written_to_the_last(tmp_path):
    for index, written in enumerate([100.0, 103.0, 101.0, 104.0]):
        path = tmp_path / f"{index}.png"
        path.write_bytes(b"")
        os.utime(path, (written, written))
    assert workers.rate(tmp_path) == pytest.approx(0.75)


def test_the_page_says_whether_the_target_is_kept():
    found = {"machine": {"cpu": "some", "cores": 2, "versions": {}}, "images": 4, "size": [256, 512], "repeat": 3}
    runs = [{"workers": 1, "images_per_second": [2.0, 9.0, 1.0]}, {"workers": 2, "images_per_second": [3.7, 3.7, 1.0]}]
    page = workers.render({**found, "runs": runs})
    assert "| 2 | 3.70 | 1.85 |" in page
    assert "Target, 1.8 times the speed with 2: kept (1.85)." in page
    runs[1]["images_per_second"] = [3.5, 3.5, 3.5]
    assert "MISSED (1.75)" in workers.render({**found, "runs": runs})
