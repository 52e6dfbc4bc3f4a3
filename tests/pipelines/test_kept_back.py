"""dot-fit keeps pairs back and says what its map does to them; dot-transport goes by that."""

import json

import numpy as np
import pytest
from PIL import Image

from ot_core import read_map
from pipelines import fit, maps, transport

FEW = 12


@pytest.fixture(scope="module")
def folders(photo, tmp_path_factory):
    """Natural photographs, the same in half of their contrast, and two that nothing is fitted on."""
    root = tmp_path_factory.mktemp("pairs")
    for name in ("natural/a", "natural/b", "faint/a", "faint/b", "input"):
        (root / name).mkdir(parents=True)
    for index in range(FEW + 2):
        pixels = photo(72, 80 + index, seed=index)
        faint = Image.fromarray((128 + (pixels.astype(float) - 128) / 2).round().astype(np.uint8))
        if index < FEW:
            Image.fromarray(pixels).save(root / "natural" / "ab"[index % 2] / f"{index}.png")
        faint.save(root / (f"faint/{'ab'[index % 2]}" if index < FEW else "input") / f"{index}.png")
    return root


def _fit(folders, name, *arguments, vae="pixels"):
    url = str(folders / f"{name}.safetensors")
    sides = ["--target", str(folders / "natural"), "--vae", vae]
    assert fit.main([*sides, "--map", url, *arguments]) == 0
    return url


@pytest.fixture(scope="module")
def paired(folders):
    return _fit(folders, "paired", "--source", str(folders / "faint"), "--paired")


def _transport(folders, map_url, name, *arguments):
    output = folders / name
    code = transport.main(["--input", str(folders / "input"), "--map", map_url, "--output", str(output), *arguments])
    return code, {path.name: np.asarray(Image.open(path)) for path in output.rglob("*.png")}


def test_a_map_that_undoes_the_restorer_helps_and_says_so(paired, capsys):
    check = read_map(paired).check
    assert check.alpha == 0
    assert dict(check.results)[0.0].psnr > check.restored.psnr + 6
    assert 1 <= check.pairs < FEW
    assert maps.main(["inspect", paired]) == 0
    assert "  helps: use alpha 0 (" in capsys.readouterr().out


def test_pairs_that_degrade_makes_are_kept_back_likewise(folders):
    check = read_map(_fit(folders, "degraded", "--degrade", "blur:1.5")).check
    assert check.pairs >= 1
    assert dict(check.results)[0.0].distance < check.restored.distance


def test_the_map_is_that_of_all_pairs(folders, paired):
    unchecked = read_map(
        _fit(folders, "unchecked", "--source", str(folders / "faint"), "--paired", "--check_pairs", "0")
    )
    assert unchecked.check is None
    np.testing.assert_array_equal(unchecked.map.matrix, read_map(paired).map.matrix)


def test_each_group_is_checked_on_its_own_pairs(folders):
    pattern = str(folders / "of-{group}.safetensors")
    sides = ["--target", str(folders / "natural"), "--source", str(folders / "faint"), "--paired", "--vae", "pixels"]
    assert fit.main([*sides, "--map", pattern, "--group_by", "folder:1"]) == 0
    for group in "ab":
        check = read_map(pattern.format(group=group)).check
        assert check is not None
        assert check.pairs < FEW // 2
        assert check.alpha == 0


def test_auto_is_the_default_where_the_map_knows_it(folders, paired):
    code, by_default = _transport(folders, paired, "default")
    assert code == 0
    assert _transport(folders, paired, "auto", "--alpha", "auto")[0] == 0
    assert json.loads((folders / "default" / "job.json").read_text())["alpha"] == [0.0]
    _, explicit = _transport(folders, paired, "explicit", "--alpha", "0")
    assert by_default.keys() == explicit.keys()
    assert all(np.array_equal(by_default[name], explicit[name]) for name in explicit)


def test_auto_without_a_check_is_one_line(folders, capsys):
    unpaired = _fit(folders, "unpaired", "--source", str(folders / "faint"))
    assert _transport(folders, unpaired, "never", "--alpha", "auto")[0] == 2
    assert "wasn't checked on pairs; fit with --degrade or --paired, or pass a number" in capsys.readouterr().err
    assert _transport(folders, unpaired, "unpaired")[0] == 0


def test_the_residual_adds_back_what_the_autoencoder_loses(folders):
    """Without transport, of which alpha 0 of the identity map would be an example, the image itself comes back."""
    same = ["--source", str(folders / "natural"), "--paired"]
    url = _fit(folders, "identity", *same, "--residual", "1", vae="default")
    assert read_map(url).residual == 1
    inputs = {path.name: np.asarray(Image.open(path)) for path in (folders / "input").glob("*.png")}
    _, whole = _transport(folders, url, "whole", "--alpha", "0", "--precision", "float32")
    _, lossy = _transport(folders, url, "lossy", "--alpha", "0", "--precision", "float32", "--residual", "0")
    for name, pixels in inputs.items():
        assert np.abs(whole[name].astype(int) - pixels).max() <= 1
        assert np.abs(lossy[name].astype(int) - pixels).max() > 1
