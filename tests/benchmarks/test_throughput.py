"""The benchmark of throughput, small, through its command line."""

import json

import fsspec
import pytest

from benchmarks import slow_storage, throughput
from ot_core import storage

PARTS = ("ceiling", "job", "paper_loop")


def test_speeds_ratios_and_memory_of_a_small_run_fit_together(tmp_path):
    command = ["--images", "4", "--size", "64", "80", "--repeat", "1", "--only", "ceiling", "job", "paper"]
    command += ["--latency_ms", "5", "--precision", "float32", "--threads", "1"]
    throughput.main([*command, "--json", str(tmp_path / "f.json"), "--output", str(tmp_path / "f.md")])
    found = json.loads((tmp_path / "f.json").read_text())

    assert found["images"] == 4
    assert found["precision"] == "float32"
    assert 4 * 64 * 64 <= found["megapixels"] * 1e6 <= 4 * 80 * 80
    for part in PARTS:
        speed = found[f"{part}_images_per_second"]
        assert speed > 0
        assert found[f"{part}_megapixels_per_second"] == pytest.approx(speed * found["megapixels"] / 4)
        assert found[f"{part}_startup_seconds"] > 0
    for other in ("ceiling", "paper_loop"):
        ratio = found["job_images_per_second"] / found[f"{other}_images_per_second"]
        assert found[f"job_over_{other}"] == pytest.approx(ratio)
    assert found["ray_images_per_second"] is None
    assert 50e6 < found["peak_rss_bytes"] < 20e9

    # Four images are read and written through a store that waits 5 ms a call.
    assert found["paper_loop_images_per_second"] < 1 / 0.010
    assert found["job_stage_seconds"]["read"] >= 4 * 0.005
    assert found["job_stage_seconds"]["write"] >= 4 * 0.005
    # Job and paper loop compute the same images.
    assert found["agreement_psnr"]["paper_loop"] > 45

    page = (tmp_path / "f.md").read_text()
    assert f"| dot-transport | {found['job_images_per_second']:.2f} (" in page
    assert "takes 5 ms a call" in page


def test_without_ray_its_row_says_so():
    summary = throughput._summary([], 0.0, 0.1)
    assert "not installed" in throughput._speeds(summary, ray_installed=False)
    assert "not installed" not in throughput._speeds(summary, ray_installed=True)


def test_medians_are_of_the_repeats_ratios_and_of_one_latency():
    runs = [
        {"part": part, "latency_ms": latency, "images_per_second": speed, "seconds": 1.0, "stage_seconds": {}}
        for latency, part, speeds in ((0, "job", (2, 4, 9)), (0, "ceiling", (4, 4, 10)), (50, "job", (1, 1, 1)))
        for speed in speeds
    ]
    summary = throughput._summary(runs, 0, megapixels_per_image=0.5)
    assert summary["job_images_per_second"] == 4
    assert summary["job_over_ceiling"] == pytest.approx(0.9)
    assert summary["ceiling_megapixels_per_second"] == 2
    assert summary["job_over_ray"] is None


def test_slow_storage_waits_once_a_call_and_writes_whole_files(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(slow_storage.time, "sleep", waits.append)
    monkeypatch.setenv(slow_storage.LATENCY, "20")
    slow_storage.SlowFileSystem.clear_instance_cache()
    url = f"slow://{tmp_path}/a/b.bin"
    storage.write_bytes(url, b"content")
    assert waits == [0.02]
    assert storage.read_bytes(url) == b"content"
    assert waits == [0.02] * 2
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.bin"]
    assert fsspec.filesystem("slow").unstrip_protocol(f"{tmp_path}/a/b.bin") == url
    slow_storage.SlowFileSystem.clear_instance_cache()
