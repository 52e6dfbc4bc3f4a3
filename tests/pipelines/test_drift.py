"""Transport tells when its inputs are no longer like those that the map was fitted on."""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ot_core import GaussianStatistics, LatentTransport, load_autoencoder, read_map
from ot_core.autoencoder import to_tensor
from ot_core.map_file import read_statistics
from ot_core.patches import spread_patches
from pipelines import demo, fit, transport

CROP = 128
#: What inputs of the fitted quality stay under and of another exceed, as a share of the map's distance. With so few
#: images chance is large; benchmarks/drift.py uses hundreds.
THRESHOLD = 0.5


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
    """Photographs and their compressions to fit with, and others of the same and of a better quality."""
    root = tmp_path_factory.mktemp("archive")
    photos = sorted(demo.PHOTOS.glob("*.jpg"))
    fitted, others = photos[::3], [photo for index, photo in enumerate(photos) if index % 3][:12]
    target, source = _crops(root / "natural", fitted), _crops(root / "restored", fitted, 10)
    given = ["--target", target, "--source", source, "--map", f"{root}/map.safetensors", "--method", "paper"]
    assert fit.main(given) == 0
    for quality in (10, 30):
        _crops(root / f"q{quality}", others, quality)
    return root


def _transport(archive: Path, given: str, output: Path, *flags: str) -> int:
    inputs = ["--input", str(archive / given), "--map", f"{archive}/map.safetensors", "--output", str(output)]
    return transport.main([*inputs, *flags])


@pytest.fixture(scope="module")
def drifted(archive) -> Path:
    """The output of a run over inputs of the better quality."""
    assert _transport(archive, "q30", archive / "drifted") == 0
    return archive / "drifted"


def _drift(output: Path) -> dict:
    return json.loads((output / "drift.json").read_text())


def test_inputs_of_another_quality_exceed_a_threshold_that_those_of_the_same_stay_under(archive, tmp_path, capsys):
    for given, code in (("q10", 0), ("q30", 1)):
        output = tmp_path / given
        capsys.readouterr()
        assert _transport(archive, given, output, "--max_drift", str(THRESHOLD)) == code
        printed = capsys.readouterr()
        assert "24 images transported" in printed.out
        assert len(list((output / "images").iterdir())) == 24
        found = _drift(output)["inputs"]["relative"]
        assert f"drift of inputs: {found:.3f} of the map's distance" in printed.out
        lines = [line for line in printed.err.splitlines() if "error" in line]
        if code:
            (line,) = lines
            assert line.startswith(f"dot-transport: error: the inputs drifted by {found:.3f} of the map's distance")
            assert f"over --max_drift {THRESHOLD}" in line
            assert f"--source {output}/drift.safetensors --target {archive}/map.safetensors" in line
        else:
            assert lines == []
    same, other = _drift(tmp_path / "q10")["inputs"], _drift(tmp_path / "q30")["inputs"]
    assert other["relative"] > 3 * same["relative"]


def test_the_statistics_are_those_of_patches_of_the_latents_however_they_are_batched(archive, tmp_path):
    for name, flags in (("usual", []), ("alone", ["--max_batch_pixels", "0"])):
        assert _transport(archive, "q30", tmp_path / name, "--precision", "float32", *flags) == 0
    usual, alone = (read_statistics(f"{tmp_path}/{name}/drift.safetensors") for name in ("usual", "alone"))
    assert usual.names == ["results", "source"]
    for group, statistics in usual.groups.items():
        assert statistics.count == alone.groups[group].count
        np.testing.assert_allclose(statistics.mean, alone.groups[group].mean, atol=1e-4)
        np.testing.assert_allclose(statistics.scatter, alone.groups[group].scatter, rtol=1e-3, atol=1e-2)
    autoencoder, transport_map = load_autoencoder(), read_map(f"{archive}/map.safetensors")
    transported = LatentTransport(transport_map)
    pixels = [np.asarray(Image.open(path)) for path in (archive / "q30").iterdir()]
    latents = torch.cat([autoencoder.encode(to_tensor([one], autoencoder)) for one in pixels])
    for name, expected in (("source", latents), ("results", transported(latents))):
        by_hand = GaussianStatistics.of(spread_patches(expected, transport_map.patch_size).flatten(0, 1).numpy())
        found = GaussianStatistics.total(list(usual.named(name).values()))
        assert found.count == by_hand.count
        np.testing.assert_allclose(found.mean, by_hand.mean, atol=1e-4)
        assert np.abs(found.scatter - by_hand.scatter).max() < 1e-4 * np.abs(by_hand.scatter).max()


def test_a_map_fitted_anew_from_the_statistics_finds_no_drift_any_more(archive, drifted, tmp_path):
    refitted, flags = str(tmp_path / "refitted.safetensors"), ["--source", f"{drifted}/drift.safetensors"]
    assert fit.main([*flags, "--target", f"{archive}/map.safetensors", "--method", "paper", "--map", refitted]) == 0
    given = ["--input", str(archive / "q30"), "--map", refitted, "--output", str(tmp_path / "again")]
    assert transport.main([*given, "--max_drift", "0.01"]) == 0
    assert read_map(refitted).noise_floor is not None


def test_statistics_add_to_a_map_too(archive, drifted, tmp_path):
    old, new = f"{archive}/map.safetensors", str(tmp_path / "new.safetensors")
    assert fit.main(["--add_to", old, "--source", f"{drifted}/drift.safetensors", "--map", new]) == 0
    seen = sum(part.count for part in read_statistics(f"{drifted}/drift.safetensors").named("source").values())
    assert read_map(new).source.count == read_map(old).source.count + seen
    assert read_map(new).target.count == read_map(old).target.count


def test_a_run_that_has_nothing_to_do_tells_no_drift(archive, drifted, tmp_path, capsys):
    shutil.copytree(drifted, tmp_path / "out", copy_function=shutil.copy2)
    assert _drift(tmp_path / "out")["inputs"] is not None
    capsys.readouterr()
    assert _transport(archive, "q30", tmp_path / "out", "--resume", "--max_drift", "0") == 0
    assert "drift of" not in capsys.readouterr().out
    found = _drift(tmp_path / "out")
    assert found["inputs"] is found["results"] is None
    assert math.isfinite(found["map_distance_squared"])


def test_images_in_tiles_and_images_that_are_too_small_are_no_trouble(archive, tmp_path, photo):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(photo(700, 600)).save(folder / "large.png")
    Image.fromarray(photo(8, 8)).save(folder / "small.png")
    inputs = ["--input", str(folder), "--map", f"{archive}/map.safetensors", "--output", str(tmp_path / "out")]
    assert transport.main([*inputs, "--max_batch_pixels", "262144"]) == 0
    assert len(list((tmp_path / "out/images").iterdir())) == 2
    assert _drift(tmp_path / "out")["inputs"]["patches"] == 8 * 8  # the small one's latent has room for none
