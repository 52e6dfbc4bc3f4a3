"""The calculation of a fleet: what it reads, what follows from it, and that assumptions are called so."""

import json
import re
import subprocess
import sys

import pytest

from benchmarks import fleet

ROWS = {"row_bytes": 100.0, "row_seconds": 1e-5, "shuffled_bytes": 500}


def _given(**changed):
    return {name: about.default for name, about in fleet.ASSUMPTIONS.items()} | changed


def test_steps_are_read_from_the_results_of_the_other_benchmarks(tmp_path):
    (tmp_path / "throughput.json").write_text(
        json.dumps(
            {
                "job_stage_seconds": {"read": 1.0, "decode_image": 2.0, "encode_image": 3.0, "write": 4.0},
                "images": 10,
                "megapixels": 5,
                "job_startup_seconds": 6.0,
                "machine": {"cpu": "a processor"},
                "threads": 2,
            }
        )
    )
    overhead = [{"images": n, "overhead_seconds": 1 + 0.002 * n} for n in (100, 1000, 5000)]
    (tmp_path / "scale.json").write_text(json.dumps({"overhead": overhead}))
    (tmp_path / "listing.md").write_text(
        "3,000 objects in 2 buckets.\n\n| `list_images` | 1.0, 2.0, 3.0 | 2.0 | 0.7 |\n"
    )
    known = fleet.measured(tmp_path)
    assert known["read_seconds"] == 0.1
    assert known["write_seconds"] == 0.4
    assert known["decode_seconds_per_megapixel"] == 0.4
    assert known["encode_seconds_per_megapixel"] == 0.6
    assert known["beam_seconds"] == pytest.approx(0.002)
    assert known["listed_per_second"] == 1500
    assert fleet.gpu_images_per_second(tmp_path) is None
    (tmp_path / "throughput-gpu.json").write_text(json.dumps({"job_images_per_second": 33.0}))
    assert fleet.gpu_images_per_second(tmp_path) == 33
    (tmp_path / "listing.md").unlink()
    with pytest.raises(SystemExit, match=r"listing\.md: not there"):
        fleet.measured(tmp_path)


def test_the_slowest_part_decides():
    known = fleet.measured()
    slow_gpu = fleet.calculate(known, ROWS, _given(gpu_images_per_second=1))
    assert slow_gpu["bottleneck"] == "the GPU"
    assert slow_gpu["rate"] == 100
    assert slow_gpu["transport"] == 100_000
    assert slow_gpu["ramp"] == 0
    few_cores = fleet.calculate(known, ROWS, _given(gpu_images_per_second=1000, cores=2))
    assert "cores" in few_cores["bottleneck"]
    assert few_cores["rate"] == pytest.approx(100 * 2 / few_cores["core_seconds"])
    assert few_cores["cores_for_gpu"] == pytest.approx(1000 * few_cores["core_seconds"])
    assert few_cores["shards"] == 10
    assert few_cores["manifest"] == pytest.approx(few_cores["manifest_in_one"] / 10)


def test_a_bucket_that_doubles_reaches_any_rate():
    assert fleet.ramp_minutes(wanted=900, first=1000, doubling=20) == 0
    assert fleet.ramp_minutes(wanted=4000, first=1000, doubling=20) == 40
    store = {"first_writes_per_second": 1000, "doubling_minutes": 20}
    assert fleet.seconds_for(9e6, 900, store) == 10_000
    assert fleet.seconds_for(1e6, 4000, store) == 1000  # over before the bucket takes more
    assert fleet.seconds_for(1.2e6 + 2.4e6 + 4e6, 4000, store) == 1200 + 1200 + 1000


def test_a_row_of_the_manifest_is_measured_by_writing_one():
    rows = fleet.measure_rows(2000)
    assert 96 < rows["row_bytes"] < 400  # two digests of 48 random bytes in hexadecimal, and what repeats
    assert rows["row_seconds"] > 0
    assert 150 < rows["shuffled_bytes"] < 1000  # the reference, and the row with others of its kind, compressed


def test_the_page_tells_assumed_from_given(tmp_path):
    command = [sys.executable, "-m", "benchmarks.fleet", "--cores", "16", "--output", str(tmp_path / "fleet.md")]
    subprocess.run(command, check=True, capture_output=True)
    text = (tmp_path / "fleet.md").read_text()
    assert "| given | 16 cores a worker |" in text
    kinds = re.findall(r"^\| (assumed|given) \| .* \| `--(\w+)` \|$", text, re.MULTILINE)
    assert [name for _, name in kinds] == list(fleet.ASSUMPTIONS)
    assert [name for kind, name in kinds if kind == "given"] == ["cores"]
    assert "images/s of a GPU (assumed)." in text
