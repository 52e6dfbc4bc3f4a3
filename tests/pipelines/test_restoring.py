"""A degraded archive becomes a better one in a single job, with a map fitted on natural photographs alone."""

import json

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from PIL import Image

from ot_core import Degradation, decode_image, load_restorer, read_map
from pipelines import evaluate, fit, transport
from transforms import ListImages, ReadImages, RestoreImages, WriteImages

RESTORER = "tests.pipelines.restorers:median"
SPEC = "blur:0.6,noise:12"


@pytest.fixture(scope="module")
def archive(photo, tmp_path_factory):
    """Natural images, and degraded ones of others: colour and grey, of several sizes, one with transparency."""
    root, degradation = tmp_path_factory.mktemp("archive"), Degradation(SPEC)
    for index in range(12):
        image = Image.fromarray(photo(48 + 8 * (index % 3), 64 + index, seed=index))
        folder = "natural" if index < 6 else "original"
        image = image.convert("L") if index % 4 == 3 else image
        for name in (folder, "degraded"):
            (root / name).mkdir(exist_ok=True)
        image.save(root / folder / f"{index}.png")
        if folder == "original":
            decoded = decode_image((root / folder / f"{index}.png").read_bytes())
            degraded = Image.fromarray(degradation(decoded, f"{index}").pixels)
            if index == 8:
                degraded.putalpha(image.convert("L"))
            degraded = degraded.convert("L") if decoded.grey else degraded
            degraded.save(root / "degraded" / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def map_url(archive):
    url = str(archive / "map.safetensors")
    arguments = ["--target", str(archive / "natural"), "--degrade", SPEC, "--restorer", RESTORER, "--vae", "pixels"]
    assert fit.main([*arguments, "--map", url]) == 0
    return url


def _files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def _transport(source, map_url, output, *arguments):
    return transport.main(["--input", str(source), "--map", map_url, "--output", str(output), *arguments])


@pytest.fixture(scope="module")
def enhanced(archive, map_url):
    output = archive / "enhanced"
    assert _transport(archive / "degraded", map_url, output, "--restorer", RESTORER, "--keep_restored") == 0
    return output


def test_one_job_gives_the_bytes_of_restoring_in_a_job_and_transporting_in_a_second(archive, map_url, enhanced):
    restored = str(archive / "restored")
    with TestPipeline("FnApiRunner") as pipeline:
        refs, _ = pipeline | ListImages(str(archive / "degraded"))
        images, _ = refs | ReadImages()
        images, _ = images | RestoreImages(RESTORER)
        _ = images | WriteImages(restored)
    assert _files(archive / "restored/images") == _files(enhanced / "images/alpha=1.00")
    assert _transport(archive / "restored/images", map_url, archive / "second") == 0
    assert _files(archive / "second/images") == _files(enhanced / "images/alpha=0.00")
    assert len(_files(archive / "second/images")) == 6


def test_a_map_fitted_by_degrading_equals_one_of_files_degraded_and_restored_beforehand(archive, map_url, tmp_path):
    degradation, restorer = Degradation(SPEC), load_restorer(RESTORER)
    (tmp_path / "source").mkdir()
    for path in (archive / "natural").iterdir():
        image = decode_image(path.read_bytes())
        restored = Image.fromarray(restorer([degradation(image, path.stem).pixels])[0])
        (restored.convert("L") if image.grey else restored).save(tmp_path / "source" / path.name)
    url = str(tmp_path / "beforehand.safetensors")
    sides = ["--target", str(archive / "natural"), "--source", str(tmp_path / "source"), "--paired"]
    assert fit.main([*sides, "--vae", "pixels", "--map", url]) == 0
    found, expected = read_map(map_url), read_map(url)
    np.testing.assert_allclose(found.map.matrix, expected.map.matrix, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.source.scatter, expected.source.scatter, rtol=1e-12)
    assert (found.origin.degradation, found.origin.restorer) == (SPEC, RESTORER)
    assert (expected.origin.degradation, expected.origin.restorer) == ("", "")


def test_the_restorer_is_in_the_records_and_another_one_is_refused(archive, map_url, enhanced, tmp_path, capsys):
    job = json.loads((enhanced / "job.json").read_text())
    assert load_restorer(RESTORER).fingerprint in json.dumps(job)
    other = ["--restorer", "bicubic:1"]
    capsys.readouterr()
    assert _transport(archive / "degraded", map_url, tmp_path / "out", *other) == 2
    assert "was fitted for the restorer tests.pipelines.restorers:median" in capsys.readouterr().err
    assert _transport(archive / "degraded", map_url, tmp_path / "out", *other, "--allow_other_restorer") == 0


def test_resuming_does_nothing_twice(archive, map_url, enhanced, capsys):
    arguments = ["--restorer", RESTORER, "--keep_restored", "--resume"]
    assert _transport(archive / "degraded", map_url, enhanced, *arguments) == 0
    assert "6 images were there already" in capsys.readouterr().out


def test_larger_results_are_written_in_their_size(archive, tmp_path):
    url = str(tmp_path / "map.safetensors")
    fitted = ["--target", str(archive / "natural"), "--degrade", "bicubic:2", "--vae", "pixels", "--map", url]
    assert fit.main(fitted) == 0
    assert _transport(archive / "degraded", url, tmp_path / "out", "--restorer", "bicubic:2") == 0
    for path in (archive / "degraded").iterdir():
        with Image.open(path) as before, Image.open(tmp_path / "out/images" / path.name) as after:
            assert after.size == (2 * before.width, 2 * before.height)
            assert after.mode == before.mode


def test_what_a_restorer_makes_too_large_is_a_failure(archive, tmp_path):
    url = str(tmp_path / "map.safetensors")
    assert (
        fit.main(["--target", str(archive / "natural"), "--degrade", "bicubic:4", "--vae", "pixels", "--map", url]) == 0
    )
    arguments = ["--restorer", "bicubic:4", "--max_pixels", str(16 * 56 * 72), "--max_failure_fraction", "1"]
    assert _transport(archive / "degraded", url, tmp_path / "out", *arguments) == 0
    rows = pq.read_table(tmp_path / "out/failures-00000-of-00001.parquet").to_pylist()
    assert rows
    assert {(row["stage"], row["error_type"]) for row in rows} == {("restore", "too_large")}


def test_an_image_that_the_restorer_cannot_restore_is_one_failure(archive, map_url, tmp_path):
    arguments = ["--restorer", "tests.pipelines.restorers:refuses_grey", "--allow_other_restorer"]
    assert _transport(archive / "degraded", map_url, tmp_path / "out", *arguments) == 0
    rows = pq.read_table(tmp_path / "out/failures-00000-of-00001.parquet").to_pylist()
    assert [row["key"] for row in rows] == ["11", "7"]
    assert {(row["stage"], row["error_type"]) for row in rows} == {("restore", "restorer_error")}
    assert {row["message"] for row in rows} == {"ValueError: too dull"}
    assert len(_files(tmp_path / "out/images")) == 4


def test_evaluate_restores_the_baseline(archive, enhanced, tmp_path):
    candidates = ["--candidate", f"restored={archive / 'degraded'}", f"enhanced={enhanced}"]
    arguments = ["--reference", str(archive / "original"), "--vae", "pixels", "--restorer", RESTORER]
    assert evaluate.main([*arguments, *candidates, "--report", str(tmp_path / "report")]) == 0
    totals = {row["name"]: row for row in json.loads((tmp_path / "report/totals.json").read_text())["candidates"]}
    assert totals["restored"]["psnr_mean"] == pytest.approx(totals["enhanced alpha=1.00"]["psnr_mean"], abs=1e-9)


def test_one_pipeline_fits_and_transports(archive, map_url, enhanced, tmp_path):
    from transforms import FitTransportMap, LatentStatistics, TransportImages

    with TestPipeline("FnApiRunner") as pipeline:
        natural, _ = pipeline | "Natural" >> ListImages({"target": str(archive / "natural")})
        statistics, _ = natural | LatentStatistics.PerKey("pixels", degradation=SPEC, restorer=RESTORER)
        fitted, _ = statistics | FitTransportMap("pixels", method="pixels")
        degraded, _ = pipeline | "Degraded" >> ListImages(str(archive / "degraded"))
        side = beam.pvalue.AsSingleton(fitted)
        _ = degraded | TransportImages(side, str(tmp_path), restorer=RESTORER)
    expected = _files(enhanced / "images/alpha=0.00")
    found = _files(tmp_path / "images")
    assert found.keys() == expected.keys()
    for key in found:  # the map's last digits depend on the parts that the job gathers
        difference = np.subtract(*(np.asarray(Image.open(tmp)).astype(int) for tmp in _two(tmp_path, enhanced, key)))
        assert np.abs(difference).max() <= 1


def _two(output, enhanced, key):
    return output / "images" / key, enhanced / "images/alpha=0.00" / key


@pytest.mark.parametrize(
    ("restorer", "said"),
    [
        ("nothing.safetensors", "no such file"),
        ("tests.pipelines.restorers:nothing", "has no function"),
        ("tests.pipelines.restorers:wrong_scale", "says that its scale is 3, and enlarges by 2"),
        ("tests.pipelines.restorers:not_a_number", "NaN or infinity"),
        ("tests.pipelines.restorers:fails", "no image for me"),
        ("tests.pipelines.restorers:cuts", "expected an integer multiple"),
        ("somewhere", "expected a file ending in"),
    ],
)
def test_a_bad_restorer_is_told_in_one_line_before_any_work(archive, map_url, tmp_path, capsys, restorer, said):
    jobs = [
        (fit, ["--target", str(archive / "natural"), "--degrade", SPEC, "--map", str(tmp_path / "m.safetensors")]),
        (transport, ["--input", str(archive / "degraded"), "--map", map_url, "--output", str(tmp_path / "out")]),
        (evaluate, ["--reference", str(archive / "natural"), "--candidate", f"a={archive / 'degraded'}", "--report",
                    str(tmp_path / "report")]),
    ]  # fmt: skip
    for job, arguments in jobs:
        capsys.readouterr()
        assert job.main([*arguments, "--restorer", restorer]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error
        assert restorer in error
    assert not (tmp_path / "out/images").exists()
