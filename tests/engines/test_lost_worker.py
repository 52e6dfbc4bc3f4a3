"""Losing a worker process: the job fails in one line, and the same command does what is missing."""

import random

import pytest

from tests.engines.conftest import manifest, written
from tests.engines.engines import running
from tests.processes import Killer


@pytest.mark.parametrize(("name", "kills"), [("portable", 3), ("prism pool", 1), ("flink cluster", 1)])
def test_nothing_is_lost_or_done_twice(name, kills, jobs, map_url, images, tmp_path, capfd, monkeypatch):
    moments = sorted(random.Random(7).sample(range(1, len(images) - 8), kills))
    output, codes = tmp_path / "out", []
    # Each image its own batch: the model then has done some of them at any moment, not none or all.
    command = (map_url, output, "--resume", "--max_batch_pixels=0")
    killer = Killer(tmp_path)
    for variable, value in killer.environment.items():
        monkeypatch.setenv(variable, value)  # of the processes that the engine starts
    with running(name, tmp_path) as engine:
        for moment in moments:
            before = len(list(output.glob("images/*.png")))
            killer.kill_at(max(moment, before + 1), output / "images")
            codes.append(jobs.transport(*command, *engine.flags))
            assert killer.has_killed
            last = capfd.readouterr().err.strip().splitlines()[-1]
            assert codes[-1] == 0 or last.startswith("dot-transport: error: the job failed on "), last
            assert codes[-1] == 0 or "; with --resume the same command does only what is missing" in last
            # Whole under its final name: what a killed worker was writing isn't there.
            assert written(output).items() <= images.items()
        if name != "flink cluster":  # which starts another worker by itself
            assert codes == [1] * kills
            assert len(written(output)) < len(images)
        assert jobs.transport(*command, *engine.flags) == 0
    assert written(output) == images
    assert manifest(output) == manifest(jobs.root / "out")
    assert not [path for path in output.rglob(".*") if path.is_file()]
