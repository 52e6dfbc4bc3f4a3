"""The benchmark for GPUs, small and on a CPU: all of it runs, and what fails is a row."""

import json

from benchmarks import gpu


def test_every_part_runs_and_the_page_holds_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "VARIANTS", (("float32", "none", True), ("float32", "no such mode", True)))
    command = ["--device", "cpu", "--size", "64", "--images", "4", "--channels", "32", "32", "32", "32"]
    gpu.main([*command, "--json", str(tmp_path / "f.json"), "--output", str(tmp_path / "f.md")])
    found, page = json.loads((tmp_path / "f.json").read_text()), (tmp_path / "f.md").read_text()
    fast, broken = found["ceiling"]
    assert fast["images_per_second"] > 0
    assert fast["flops"] > 1e9
    assert "error" in broken
    assert [row["latency_ms"] for row in found["job"]] == [0, 50]
    for row in found["job"]:
        assert f"{row['images_per_second']:.2f}" in page
    assert "conv" in fast["profile"]
    assert "failed: " in page


def test_when_the_time_is_up_rows_say_so(tmp_path):
    gpu.main(
        ["--device", "cpu", "--minutes", "0", "--channels", "32", "32", "32", "32", "--output", str(tmp_path / "f.md")]
    )
    assert (tmp_path / "f.md").read_text().count("no time left") == len(gpu.VARIANTS) + 2
