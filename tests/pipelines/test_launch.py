"""What surrounds every job: how it ends, and what it tells."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from PIL import Image

from pipelines import fit, transport
from pipelines.command import told
from pipelines.flags import ArgumentParser, add_limits, add_model, add_run
from pipelines.launch import Job, launch
from pipelines.summary import Distribution, Measured, measured, summary
from transforms import metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def archive(tmp_path_factory, photo):
    root = tmp_path_factory.mktemp("archive")
    for side, first in (("natural", 0), ("restored", 10)):
        (root / side).mkdir()
        for index in range(6):
            Image.fromarray(photo(120, 160, seed=first + index)).save(root / side / f"{index}.png")
    (root / "restored" / "text.png").write_text("no image")
    return root


def _fit(archive, map_url, vae, *flags):
    sides = ["--target", str(archive / "natural"), "--source", str(archive / "restored")]
    return fit.main([*sides, "--map", str(map_url), "--vae", vae, *flags])


def _transport(archive, map_url, output, *flags):
    inputs = ["--input", str(archive / "restored"), "--map", str(map_url)]
    return transport.main([*inputs, "--output", str(output), *flags])


@pytest.mark.parametrize(
    "flags",
    [
        ["--pickle_library=cloudpickle"],
        ["--pickle_library=dill"],
        ["--runner=BundleBasedDirectRunner"],  # older than the default, and worker and launcher in one
    ],
)
def test_both_jobs_run_however_beam_pickles_and_runs_them(archive, vae, flags, tmp_path):
    assert _fit(archive, tmp_path / "map.safetensors", vae, *flags) == 0
    assert _transport(archive, tmp_path / "map.safetensors", tmp_path / "out", *flags) == 0
    assert _transport(archive, tmp_path / "map.safetensors", tmp_path / "usual") == 0
    images = {path.name: path.read_bytes() for path in (tmp_path / "out/images").iterdir()}
    assert images == {path.name: path.read_bytes() for path in (tmp_path / "usual/images").iterdir()}
    assert len(images) == 6


def test_the_summary_tells_images_bytes_batches_and_the_seconds_of_each_stage(archive, vae, tmp_path, capsys):
    assert _fit(archive, tmp_path / "map.safetensors", vae, "--verbose") == 0
    printed = capsys.readouterr().out
    given = _megabytes(archive / "natural", archive / "restored")
    assert f"images: 13 listed, 13 read, 12 encoded; {given} MB read, 0.0 MB written" in printed
    assert _stages(printed) >= {"list", "read", "decode image", "load model", "model, a batch", "fit"}
    assert _transport(archive, tmp_path / "map.safetensors", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "6 images in " in printed
    assert "1 failures" in printed
    assert "  1 not_an_image\n" in printed
    given, made = _megabytes(archive / "restored"), _megabytes(tmp_path / "out/images")
    assert f"images: 7 listed, 7 read, 6 written; {given} MB read, {made} MB written" in printed
    assert "batches: 1, of 6.0 images on average, 6 at most" in printed
    assert "\n  device: cpu (" in printed or "\n  device: cuda (" in printed
    assert "seconds of a stage" not in printed
    assert _transport(archive, tmp_path / "map.safetensors", tmp_path / "again", "--verbose") == 0
    assert _stages(capsys.readouterr().out) == {
        "list", "read", "decode image", "load model", "model, a batch", "encode image", "write"
    }  # fmt: skip


def _megabytes(*folders):
    return f"{sum(path.stat().st_size for folder in folders for path in folder.iterdir()) / 1e6:.1f}"


def _stages(printed):
    lines = printed[printed.index("seconds of a stage") :].splitlines()[1:]
    for line in lines:
        times, mean, largest, total = map(float, line[20:].split())
        assert mean <= largest <= total + 0.006
        assert abs(times * mean - total) < 0.01 + 0.001 * times
    return {line[:20].strip() for line in lines}


def test_what_several_steps_and_bundles_measure_is_put_together():
    def observe(value):
        metrics.observe(metrics.BATCH_SIZE, value)
        metrics.count(metrics.BYTES_READ, value)
        return value

    pipeline = TestPipeline(runner="FnApiRunner")
    _ = pipeline | "A" >> beam.Create([1, 2, 6]) | "B" >> beam.Map(observe) | "C" >> beam.Map(observe)
    found = measured(pipeline.run())
    assert found.counters == {"bytes_read": 18}
    assert found.distributions == {"batch_size": Distribution(6, 18, 6)}


def test_the_summary_of_a_job_that_did_nothing_and_of_one_on_a_gpu():
    assert summary(Measured({}, {}), 1.0).splitlines() == [
        "0 images in 1.0 s (0.00 images/s), 0 failures",
        "  images: none; 0.0 MB read, 0.0 MB written",
    ]
    memory = {metrics.DEVICE_MEMORY: Distribution(3, 3_000_000_000, 1_500_000_000)}
    assert "  device memory: 1500 MB at most" in summary(Measured({}, memory), 1.0).splitlines()


def _launch(build, *flags, prog="dot-test", report=lambda args, counters: ""):
    parser = ArgumentParser(prog, "A job of a test.")
    add_model(parser)
    add_limits(parser)
    add_run(parser)
    return launch(Job(lambda args: args, build, report), parser, flags)


def _nothing(pipeline, args):
    return pipeline | beam.Create([1])


def test_a_job_that_its_engine_gives_up_on_ends_in_one_line_and_exit_code_1(capsys):
    def fail(value):
        raise OSError(f"no disk\nfor {value}")

    assert _launch(lambda pipeline, args: pipeline | beam.Create(np.arange(3).tolist()) | "Fail" >> beam.Map(fail)) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]  # after the bar
    said, _, file = line.partition("; the whole story is in ")
    assert said.startswith("dot-test: error: the job failed on FnApiRunner: no disk for 0 [while running 'Fail")
    story = Path(file).read_text()
    Path(file).unlink()
    assert "Traceback" in story
    assert "in fail" in story


def test_a_job_whose_model_fails_in_another_process_is_told_by_that_process(capfd):
    def fail(value):
        raise KeyError(value)

    mode = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    assert _launch(lambda pipeline, args: pipeline | beam.Create(["x"]) | "Fail" >> beam.Map(fail), *mode) == 1
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("dot-test: error: the job failed on FnApiRunner: KeyError: \"x [while running 'Fail")
    Path(line.rpartition(" ")[2]).unlink()


def test_a_job_server_that_does_not_answer_is_named(capsys):
    with socket.socket() as taken:  # but not listening
        taken.bind(("127.0.0.1", 0))
        endpoint = f"localhost:{taken.getsockname()[1]}"
        portable = ["--runner=PortableRunner", f"--job_endpoint={endpoint}", "--job_server_timeout=1"]
        assert _launch(_nothing, *portable) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"dot-test: error: the job failed on PortableRunner: no job server answered at {endpoint}; " in line
    Path(line.rpartition(" ")[2]).unlink()


def test_a_full_disk_at_the_end_of_a_job_is_told_in_one_line(capsys):
    def write(value):
        Path("/dev/full").write_text("manifest")

    assert _launch(lambda pipeline, args: pipeline | beam.Create([1]) | "Write" >> beam.Map(write)) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"dot-test: error: the job failed on FnApiRunner: .*No space left .* \[while running 'Write", line)
    Path(line.rpartition(" ")[2]).unlink()


@pytest.mark.parametrize("stream", [None, "closed", "ascii"])
def test_what_cannot_be_told_changes_no_exit_code(stream, monkeypatch):
    printed = io.TextIOWrapper(io.BytesIO(), "ascii") if stream == "ascii" else io.StringIO() if stream else None
    if stream == "closed":
        printed.close()
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setattr(sys, "stderr", printed)
    assert _launch(_nothing, report=lambda args, counters: "output \xfc") == 0


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("odd"), KeyError("x")])
def test_results_that_cannot_be_read_back_are_a_warning(error, capsys):
    def report(args, counters):
        raise error

    assert _launch(_nothing, report=report) == 0
    printed = capsys.readouterr()
    assert f"dot-test: warning: the results can't be read back ({told(error)})" in printed.err.splitlines()
    assert "0 images in" in printed.out


def test_a_summary_that_cannot_be_written_in_the_end_is_a_warning(tmp_path, capsys):
    def build(pipeline, args):
        _nothing(pipeline, args)
        (tmp_path / "reports").rmdir()
        (tmp_path / "reports").write_text("a file by now")

    assert _launch(build, "--summary", str(tmp_path / "reports/night.json")) == 0
    printed = capsys.readouterr()
    assert f"dot-test: warning: --summary {tmp_path}/reports/night.json: not written (" in printed.err
    assert "0 images in" in printed.out


def test_what_one_job_counts_is_not_told_of_the_next_in_the_same_process(capsys):
    def count(n):
        def build(pipeline, args):
            def listed(value):
                metrics.count(metrics.IMAGES_LISTED, n)
                metrics.count(metrics.IMAGES_READ, n)

            return pipeline | beam.Create([1]) | "Count" >> beam.Map(listed)

        return build

    for n in (7, 3):
        assert _launch(count(n)) == 0
        printed = capsys.readouterr()
        assert f"images: {n} listed, {n} read; " in printed.out
        assert f", 0 of {n} images" in printed.err.splitlines()[-1]


def test_a_job_that_is_interrupted_ends_its_worker_processes_in_one_line(archive, vae, tmp_path):
    assert _fit(archive, tmp_path / "map.safetensors", vae) == 0
    command = [sys.executable, "-m", "pipelines.transport", "--input", str(archive / "restored")]
    command += ["--map", str(tmp_path / "map.safetensors"), "--output", str(tmp_path / "out")]
    command += ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    with process:
        while len(_group(process.pid)) < 3:  # itself and two workers, which are still importing Beam
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate()
    assert process.returncode == 130
    assert out == b""
    line = b"dot-transport: interrupted; with --resume the same command does only what is missing"
    assert err.splitlines()[-1] == line
    assert b"Traceback" not in err
    while _group(process.pid):  # killed, but not yet noticed
        time.sleep(0.01)


def _group(leader):
    """Processes of a group that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                found.append(stat.parent.name)
    return found
