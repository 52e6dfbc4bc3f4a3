"""The benchmark of scale, small, through its command line."""

import json
import xml.etree.ElementTree as ET

import pytest

from benchmarks import log_chart, scale, scale_accumulator


def test_overhead_is_the_jobs_time_less_the_plain_loops(tmp_path):
    command = ["--only", "overhead", "--images", "10", "--repeat", "1", "--output", str(tmp_path / "scale")]
    scale.main(command)
    found = json.loads((tmp_path / "scale.json").read_text())
    (row,) = found["overhead"]
    assert row["job_seconds"] > 0
    assert row["plain_seconds"] > 0
    assert row["overhead_seconds"] == pytest.approx(row["job_seconds"] - row["plain_seconds"])
    assert row["overhead_milliseconds_per_image"] == pytest.approx(100 * row["overhead_seconds"])
    assert "10 |" in (tmp_path / "scale.md").read_text()
    assert ET.parse(tmp_path / "scale.svg").getroot().tag.endswith("svg")


def test_accumulators_keep_their_size():
    rows = [scale_accumulator.accumulator({"patches": count, "dimension": 36}) for count in (1, 20_001)]
    for row in rows:
        assert row["accumulator_bytes"] < 8 * 36 * 37 / 2 + 2000  # half of a symmetric matrix
        assert row["patch_bytes"] == 8 * 36 * row["patches"]
        assert min(row["gather_seconds"], row["add_input_seconds"], row["merge_seconds"]) > 0
        assert row["peak_rss_bytes"] >= row["rss_before_bytes"] > 50e6
    assert rows[1]["accumulator_bytes"] > 8 * 36 * 37 / 2
    assert "| 20001 |" in "\n".join(scale._accumulator_lines({"accumulators": rows, "dimension": 36}))
    assert ET.fromstring(log_chart.page(scale._charts({"accumulators": rows}))).tag.endswith("svg")


def test_the_page_says_whether_targets_are_kept():
    rows = [
        {
            "images": count,
            "job_seconds": seconds,
            "job_milliseconds_per_image": 1000 * seconds / count,
            "plain_milliseconds_per_image": 1.0,
            "overhead_milliseconds_per_image": 1000 * seconds / count - 1,
            "overhead_seconds": seconds - count / 1000,
        }
        for count, seconds in ((100, 0.6), (1000, 2.4))
    ]
    lines = "\n".join(scale._overhead_lines({"overhead": rows, "size": 32, "repeat": 3}))
    assert "at 1000 images: MISSED. Each image beyond 100 adds 1.00 ms" in lines
    kept = [*rows[:1], {**rows[1], "overhead_milliseconds_per_image": 0.9}]
    assert "kept" in "\n".join(scale._overhead_lines({"overhead": kept, "size": 32, "repeat": 3}))

    memory = {"images": [500, 20_000], "size": 128, "seconds": [1.0, 40.0], "peak_rss_bytes": [400e6, 436e6]}
    assert "grows by 9.0%; target, less than 10%: kept" in "\n".join(scale._memory_lines({**memory, "growth": 0.09}))
    assert "MISSED" in "\n".join(scale._memory_lines({**memory, "growth": 0.11}))
