"""Transport tells when its inputs are no longer like those that the map was fitted on."""

import dataclasses
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ot_core import GaussianStatistics, LatentTransport, latent_statistics, load_autoencoder, read_map, write_map
from ot_core.autoencoder import to_tensor
from ot_core.map_file import read_statistics
from pipelines import demo, fit, transport

CROP = 128
#: A drift that inputs of another quality exceed.
THRESHOLD = 0.1


def _crops(folder: Path, photos: list[Path], quality: int | None = None) -> str:
    """Two quarters of each photograph, compressed or not."""
    folder.mkdir()
    for path in photos:
        with Image.open(path) as photo:
            for corner, (x, y) in enumerate([(0, 0), (1, 1)]):
                crop = photo.convert("RGB").crop((x * CROP, y * CROP, (x + 1) * CROP, (y + 1) * CROP))
                if quality is not None:
                    compressed = io.BytesIO()
                    crop.save(compressed, "JPEG", quality=quality)
                    crop = Image.open(compressed)
                crop.save(folder / f"{path.stem}-{corner}.png")
    return str(folder)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Photographs and their compressions to fit with, others of the same quality, and these with noise."""
    root = tmp_path_factory.mktemp("archive")
    photos = sorted(demo.PHOTOS.glob("*.jpg"))
    fitted, others = photos[::3], [photo for index, photo in enumerate(photos) if index % 3][:12]
    target, source = _crops(root / "natural", fitted), _crops(root / "restored", fitted, 10)
    given = ["--target", target, "--source", source, "--map", f"{root}/map.safetensors", "--method", "paper"]
    assert fit.main([*given, "--vae", "pixels"]) == 0
    _crops(root / "q10", others, 10)
    shutil.copytree(root / "q10", root / "noisy")
    for index, path in enumerate(sorted((root / "noisy").iterdir())):
        pixels = np.asarray(Image.open(path)) + np.random.default_rng(index).normal(0, 12, (CROP, CROP, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return root


def _transport(archive: Path, given: str, output: Path, *flags: str, few: int | None = None) -> int:
    """Transports a folder, or the first few images of it."""
    names = [str(path) for path in sorted((archive / given).iterdir())[:few]] if few else [str(archive / given)]
    inputs = ["--input", *names, "--map", f"{archive}/map.safetensors", "--output", str(output)]
    return transport.main([*inputs, *flags])


@pytest.fixture(scope="module")
def drifted(archive) -> Path:
    """The output of a run over inputs with noise."""
    assert _transport(archive, "noisy", archive / "drifted") == 0
    return archive / "drifted"


def _drift(output: Path) -> dict:
    return json.loads((output / "drift.json").read_text())


def test_inputs_of_another_restorer_exceed_a_threshold_that_those_of_the_same_stay_under(archive, tmp_path, capsys):
    for given, code in (("q10", 0), ("noisy", 1)):
        output = tmp_path / given
        capsys.readouterr()
        assert _transport(archive, given, output, "--max_drift", str(THRESHOLD)) == code
        printed = capsys.readouterr()
        assert "24 images transported" in printed.out
        assert len(list((output / "images").iterdir())) == 24
        found, told = _drift(output), _drift(output)["inputs"]
        assert (found["limit"], told["images"], told["images_of_this_run"]) == (THRESHOLD, 24, 24)
        lines = [line for line in printed.err.splitlines() if "error" in line]
        if code:
            share = f"{told['relative']:.3f} of the map's distance"
            assert f"drift of inputs: {share}, unlike what the map was fitted on (24 images)" in printed.out
            (line,) = lines
            assert line.startswith(f"dot-transport: error: the inputs drifted by {share}")
            assert f"over --max_drift {THRESHOLD}" in line
            assert f"--source {output}/drift.safetensors --target {archive}/map.safetensors" in line
        else:
            assert lines == []
    same, other = _drift(tmp_path / "q10")["inputs"], _drift(tmp_path / "noisy")["inputs"]
    assert other["relative"] > 3 * same["relative"]
    assert (other["verdict"], other["from"]) == ("unlike", "source")
    assert other["p_value"] < 0.003 < same["p_value"]


@pytest.mark.parametrize("given", ["q10", "noisy"])
def test_of_a_few_images_the_job_says_that_it_cannot_judge(archive, given, tmp_path, capsys):
    assert _transport(archive, given, tmp_path, "--since", "2025-01-01", "--max_drift", "0.15", few=3) == 0
    told = _drift(tmp_path)["inputs"]
    assert (told["verdict"], told["images"]) == ("unknown", 3)
    assert told["by_chance"] > 0.15
    assert "drift of inputs: can't be judged from 3 images (chance alone gives up to" in capsys.readouterr().out


def test_of_a_map_that_does_not_tell_its_images_the_job_says_that_it_cannot_judge(archive, tmp_path, capsys):
    known = read_map(f"{archive}/map.safetensors")
    old = {part: dataclasses.replace(found, images=None) for part, found in known.statistics.items()}
    write_map(dataclasses.replace(known, statistics=old), f"{tmp_path}/old.safetensors")
    flags = ["--input", str(archive / "noisy"), "--output", str(tmp_path / "out"), "--max_drift", "0.15"]
    assert transport.main([*flags, "--map", f"{tmp_path}/old.safetensors"]) == 0
    told = _drift(tmp_path / "out")["inputs"]
    assert told["by_chance"] is told["p_value"] is None
    assert told["verdict"] == "unknown"
    assert (
        "old.safetensors doesn't say how much the images vary that it was fitted on; fit it again"
        in capsys.readouterr().out
    )


def test_the_statistics_are_those_of_all_patches_of_the_latents_however_they_are_batched(archive, tmp_path):
    for name, flags in (("usual", []), ("alone", ["--max_batch_pixels", "0"])):
        assert _transport(archive, "q10", tmp_path / name, "--precision", "float32", *flags, few=6) == 0
    usual, alone = (read_statistics(f"{tmp_path}/{name}/drift.safetensors") for name in ("usual", "alone"))
    assert usual.sides == ["results", "source"]
    for part, statistics in usual.statistics.items():
        assert statistics.count == alone.statistics[part].count
        assert statistics.images.count == alone.statistics[part].images.count
        np.testing.assert_allclose(statistics.mean, alone.statistics[part].mean, atol=1e-4)
        np.testing.assert_allclose(statistics.scatter, alone.statistics[part].scatter, rtol=1e-3, atol=1e-2)
    autoencoder, fitted = load_autoencoder("pixels"), read_map(f"{archive}/map.safetensors")
    transported = LatentTransport(fitted.map, fitted.space.patch_size)
    pixels = [np.asarray(Image.open(path)) for path in sorted((archive / "q10").iterdir())[:6]]
    latents = torch.cat([autoencoder.encode(to_tensor([one], autoencoder)) for one in pixels])
    for name, expected in (("source", latents), ("results", transported(latents))):
        by_hand = GaussianStatistics.total([latent_statistics(latent, fitted.space.patch_size) for latent in expected])
        found = GaussianStatistics.total(list(usual.of_side(name).values()))
        assert found.count == by_hand.count
        assert found.images.count == 6
        np.testing.assert_allclose(found.mean, by_hand.mean, atol=1e-4)
        np.testing.assert_allclose(found.images.mean, by_hand.images.mean, atol=1e-4)
        assert np.abs(found.scatter - by_hand.scatter).max() < 1e-4 * np.abs(by_hand.scatter).max()


def test_a_map_fitted_anew_from_the_statistics_finds_no_drift_any_more(archive, drifted, tmp_path):
    refitted, flags = str(tmp_path / "refitted.safetensors"), ["--source", f"{drifted}/drift.safetensors"]
    assert fit.main([*flags, "--target", f"{archive}/map.safetensors", "--method", "paper", "--map", refitted]) == 0
    given = ["--input", str(archive / "noisy"), "--map", refitted, "--output", str(tmp_path / "again")]
    assert transport.main([*given, "--max_drift", "0.01"]) == 0
    assert _drift(tmp_path / "again")["inputs"]["relative"] == 0
    assert read_map(refitted).noise_floor is not None
    assert read_map(refitted).source.images.count == 24


def test_statistics_add_to_a_map_too(archive, drifted, tmp_path):
    old, new = f"{archive}/map.safetensors", str(tmp_path / "new.safetensors")
    assert fit.main(["--add_to", old, "--source", f"{drifted}/drift.safetensors", "--map", new]) == 0
    seen = sum(part.count for part in read_statistics(f"{drifted}/drift.safetensors").of_side("source").values())
    assert read_map(new).source.count == read_map(old).source.count + seen
    assert read_map(new).target.count == read_map(old).target.count


def test_a_run_that_has_nothing_to_do_tells_no_drift(archive, drifted, tmp_path, capsys):
    shutil.copytree(drifted, tmp_path / "out", copy_function=shutil.copy2)
    assert _drift(tmp_path / "out")["inputs"] is not None
    capsys.readouterr()
    assert _transport(archive, "noisy", tmp_path / "out", "--resume", "--max_drift", "0") == 0
    assert "drift of" not in capsys.readouterr().out
    found = _drift(tmp_path / "out")
    assert found["inputs"] is found["results"] is None
    assert math.isfinite(found["map_distance_squared"])


def test_images_in_tiles_and_images_that_are_too_small_are_no_trouble(archive, tmp_path, photo):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(photo(700, 600)).save(folder / "large.png")
    Image.fromarray(photo(2, 2)).save(folder / "small.png")
    inputs = ["--input", str(folder), "--map", f"{archive}/map.safetensors", "--output", str(tmp_path / "out")]
    assert transport.main([*inputs, "--max_batch_pixels", "262144"]) == 0
    assert len(list((tmp_path / "out/images").iterdir())) == 2
    assert _drift(tmp_path / "out")["inputs"]["patches"] > 0
    assert _drift(tmp_path / "out")["inputs"]["images"] == 1  # the small one's latent has room for no patch


@pytest.fixture
def judged_when_resumed(archive, tmp_path, capsys):
    """Runs the job over images of the two folders into one output, and gives what it tells of the last run."""

    def run(*given: tuple[str, slice], flags: tuple[str, ...] = ("--resume",), code: int = 0) -> dict:
        names = [str(path) for name, some in given for path in sorted((archive / name).iterdir())[some]]
        inputs = ["--input", *names, "--map", f"{archive}/map.safetensors", "--output", str(tmp_path / "nights")]
        capsys.readouterr()
        assert transport.main([*inputs, *flags, "--max_drift", str(THRESHOLD)]) == code
        return _drift(tmp_path / "nights")["inputs"] | {"out": capsys.readouterr().out}

    return run


def test_a_night_of_few_images_is_judged_with_those_before(judged_when_resumed):
    first = judged_when_resumed(("q10", slice(0, 4)))
    assert (first["images"], first["verdict"]) == (4, "unknown")
    second = judged_when_resumed(("q10", slice(0, 7)))
    assert (second["images"], second["images_of_this_run"]) == (7, 3)
    assert "can't be judged from 7 images, 4 of them of earlier runs" in second["out"]


def test_few_images_after_a_sudden_drift_are_found_when_they_are_enough(judged_when_resumed):
    judged_when_resumed(("q10", slice(0, 4)))
    found = judged_when_resumed(("q10", slice(0, 4)), ("noisy", slice(4, 24)), code=1)
    assert (found["images"], found["images_of_this_run"], found["verdict"]) == (24, 20, "unlike")
