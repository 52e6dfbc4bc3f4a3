"""What surrounds every job: how it ends, and what it tells."""

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from PIL import Image

from pipelines import fit, options, transport
from pipelines.launch import launch
from pipelines.summary import Distribution, Measured, measured, summary
from transforms import metrics


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
    assert _fit(archive, tmp_path / "map.safetensors", vae) == 0
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
    assert _stages(printed) == {
        "list", "read", "decode image", "load model", "model, a batch", "gather statistics", "encode image", "write"
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


def _launch(build):
    parser = options.ArgumentParser("dot-test", "A job that fails.")
    options.add_common(parser)
    return launch(parser, [], lambda args: None, build, lambda args, counters: "")


def test_a_job_that_its_engine_gives_up_on_ends_with_one_line_and_exit_code_1(capsys):
    def fail(value):
        raise OSError(f"no disk\nfor {value}")

    assert _launch(lambda pipeline, args: pipeline | beam.Create(np.arange(3).tolist()) | "Fail" >> beam.Map(fail)) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("dot-test: error: the job failed on FnApiRunner: for 0 [while running 'Fail")
