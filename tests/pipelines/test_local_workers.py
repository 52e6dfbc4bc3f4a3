"""Worker processes on one machine: a job fails with the one that dies, and waits for none when it is over."""

import os
import signal
import threading
import time
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import BundleManager
from apache_beam.runners.portability.fn_api_runner.worker_handlers import WorkerHandler

from pipelines import local_workers
from pipelines.flags import ArgumentParser, add_limits, add_model, add_run
from pipelines.launch import Job, launch


@pytest.fixture
def ended(capfd):
    """Runs a function on 0 and 1, with two processes; gives the last line of the job, which fails, and its story."""

    def run(function, in_one=False):
        def build(pipeline, args):
            # Else each process has one of them.
            return pipeline | beam.Create([0, 1], reshuffle=not in_one) | "Work" >> beam.Map(function)

        parser = ArgumentParser("dot-test", "A job of a test.")
        for add in (add_model, add_limits, add_run):
            add(parser)
        mode = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
        assert launch(Job(lambda args: args, build, lambda args, found: ""), parser, mode) == 1
        line = capfd.readouterr().err.strip().splitlines()[-1]
        story = Path(line.rpartition(" ")[2])
        told = story.read_text()
        story.unlink()
        return line, told

    return run


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of gRPC's, which lost its client
def test_a_job_fails_with_a_worker_that_is_killed(ended):
    def work(number):
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    line, _ = ended(work)
    assert line.startswith(
        "dot-test: error: the job failed on FnApiRunner: a worker process is lost (Worker subprocess "
    )
    assert "; if memory ran out, use fewer --direct_num_workers; the whole story" in line


def test_a_worker_that_does_not_end_with_the_job_is_killed(ended, tmp_path, monkeypatch):
    def work(number):
        threading.Thread(target=time.sleep, args=(600,), daemon=False).start()  # as of an upload that hangs
        raise KeyError(number)

    monkeypatch.setattr(local_workers, "GRACE", 1.0)
    line, story = ended(work)
    assert "KeyError: 0 [while running 'Work']; the whole story" in line
    assert "did not end within 1 seconds of the job's end: it is killed" in story


def test_a_worker_that_connects_when_the_job_has_failed_ends_by_itself(ended, tmp_path, monkeypatch):
    late, failed = f"worker_{WorkerHandler._worker_id_counter + 1}", tmp_path / "failed"
    monkeypatch.setattr(BundleManager, "_uid_counter", 0)  # the other one gets the first bundle
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, time\n"
        f"if os.environ.get('WORKER_ID') == '{late}':\n"
        "    deadline = time.monotonic() + 60\n"
        f"    while not pathlib.Path({str(failed)!r}).exists() and time.monotonic() < deadline: time.sleep(0.01)\n"
        "    time.sleep(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = str(failed)

    def work(number):
        Path(path).touch()
        raise KeyError(number)

    line, story = ended(work, in_one=True)
    assert "KeyError: 0 [while running 'Work']; the whole story" in line
    assert "did not end within" not in story
