"""How far a job is: told at a terminal, in a log, and for programs; of this process and of those that it starts."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from pipelines import fit, transport
from pipelines.progress import JsonLines, Lines, Seen, Step, _step
from transforms import metrics


def _phase(counters, **stages):
    return _step(Seen(counters, stages), "encoding", False, 3.0, 2.0).phase


def test_phases_follow_one_another():
    listed = {metrics.IMAGES_LISTED: 4}
    read = {**listed, metrics.IMAGES_READ: 4}
    assert _phase({}) == _phase(listed) == "listing"
    assert _phase(listed, load_model=1) == "loading model"
    assert _phase(read) == _phase({**read, metrics.IMAGES_ENCODED: 2}, load_model=0) == "encoding"
    assert _phase({**read, metrics.IMAGES_ENCODED: 4}, fit=1) == "solving"
    assert _phase({**read, metrics.IMAGES_ENCODED: 3, metrics.FAILURES: 1}) == "writing"


def test_rate_and_rest_are_those_of_images_that_came_to_something():
    counters = {metrics.IMAGES_LISTED: 12, metrics.IMAGES_OLDER: 2, metrics.IMAGES_WRITTEN: 3, metrics.FAILURES: 1}
    step = _step(Seen(counters, {}), "transporting", False, 9.0, 2.0)
    assert (step.done, step.left, step.rate, step.seconds_left) == (4, 6, 2.0, 3.0)
    assert _step(Seen(counters, {}), "transporting", True, 9.0, 2.0).left is None
    twice = _step(Seen(counters, {}), "encoding", False, 9.0, 2.0, times=2)
    assert (twice.done, twice.left) == (2, 8)


def test_images_that_the_model_is_done_with_are_done():
    counters = {
        metrics.IMAGES_LISTED: 9,
        metrics.THROUGH_MODEL: 4,
        metrics.IMAGES_SKIPPED: 2,
        metrics.IMAGES_WRITTEN: 1,
    }
    assert _step(Seen(counters, {}), "transporting", False, 9.0, 2.0).done == 6
    assert [image for image, _ in metrics.through_model([(1, 1.0), (2, ValueError())])] == [1, 2]


def test_a_line_is_printed_where_something_has_changed(capsys):
    lines = Lines("dot-test")
    for done in (1, 1, 2):
        lines.tell(Step("encoding", done, 122 - done, 1.0, 5.0))
    assert capsys.readouterr().err.splitlines() == [
        "dot-test: encoding, 1 of 122 images, 1.00 images/s, 2:01 left",
        "dot-test: encoding, 2 of 122 images, 1.00 images/s, 2:00 left",
    ]


def test_programs_get_an_object_a_line(capsys):
    JsonLines("dot-test").tell(Step("listing", 0, None, 0.0, 1.25))
    assert json.loads(capsys.readouterr().err) == {
        "job": "dot-test", "phase": "listing", "done": 0, "left": None,
        "images_per_second": 0.0, "seconds": 1.2, "seconds_left": None,
    }  # fmt: skip


@pytest.fixture
def archive(tmp_path, photo):
    (tmp_path / "in").mkdir()
    for index in range(4):
        Image.fromarray(photo(64, 64, seed=index)).save(tmp_path / f"in/{index}.png")
    sides = ["--target", str(tmp_path / "in"), "--source", str(tmp_path / "in"), "--vae", "pixels"]
    assert fit.main([*sides, "--map", str(tmp_path / "map.safetensors"), "--quiet"]) == 0
    return tmp_path


def _transport(archive, *flags):
    inputs = ["--input", str(archive / "in"), "--map", str(archive / "map.safetensors")]
    return transport.main([*inputs, "--output", str(archive / "out"), *flags])


def test_a_quiet_job_says_nothing(archive, capfd):
    capfd.readouterr()
    assert _transport(archive, "--quiet") == 0
    assert capfd.readouterr() == ("", "")


def test_a_job_tells_its_last_state(archive, capfd):
    assert _transport(archive, "--progress", "json") == 0
    steps = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert (steps[-1]["job"], steps[-1]["done"], steps[-1]["left"]) == ("dot-transport", 4, 0)


def test_processes_leave_their_tallies():
    program = "from transforms import metrics; metrics.count('images_read', 3); metrics._leave()"
    before = metrics.tally()["images_read"]
    with metrics.shared_tally():
        for _ in range(2):
            subprocess.run([sys.executable, "-c", program], check=True)
        assert metrics.tally()["images_read"] == before + 6
    assert metrics.tally()["images_read"] == before
    assert "DOT_TALLY" not in os.environ
