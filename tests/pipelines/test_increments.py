"""Statistics that were gathered before are as good as the images that they were gathered from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ot_core import read_map
from ot_core.autoencoder import DEFAULT_VAE
from ot_core.fitted_map import LatentSets
from ot_core.map_file import read_statistics, write_map, write_statistics
from ot_core.parts import SIDES, Part
from pipelines import demo, fit

#: Relative to the largest value.
TOLERANCE = 1e-12


@pytest.fixture(scope="module")
def archive(tmp_path_factory, photo):
    """Four folders each of natural and of restored photographs."""
    root = tmp_path_factory.mktemp("archive")
    for index in range(12):
        for side, pixels in (
            ("natural", photo(72, 96, seed=index)),
            ("restored", np.asarray(Image.fromarray(photo(72, 96, seed=20 + index)).reduce(2).resize((96, 72)))),
        ):
            folder = root / f"{side}{index // 3}"
            folder.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def _fit(archive: Path, name: str, vae: str, sides: dict[str, list[str]], *flags: str) -> int:
    inputs = [word for side, folders in sides.items() for word in (f"--{side}", *(str(archive / f) for f in folders))]
    return fit.main([*inputs, "--map", str(archive / f"{name}.safetensors"), "--vae", vae, *flags])


def _both(*indices: int) -> dict[str, list[str]]:
    return {"target": [f"natural{i}" for i in indices], "source": [f"restored{i}" for i in indices]}


@pytest.fixture(scope="module")
def first(archive, vae) -> str:
    assert _fit(archive, "first", vae, _both(0)) == 0
    return str(archive / "first.safetensors")


def _assert_close(a: np.ndarray, b: np.ndarray, name: str) -> None:
    assert np.abs(a - b).max() <= TOLERANCE * np.abs(b).max(), (name, np.abs(a - b).max() / np.abs(b).max())


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Four folders each of photographs and of their compressions."""
    root = tmp_path_factory.mktemp("photographs")
    for index, path in enumerate(sorted(demo.PHOTOS.glob("*.jpg"))[:12]):
        with Image.open(path) as photo:
            crop = photo.convert("RGB").crop((0, 0, 192, 192))
        for side, quality in (("natural", 100), ("restored", 10)):
            folder = root / f"{side}{index // 3}"
            folder.mkdir(exist_ok=True)
            crop.save(folder / f"{index}.jpg", quality=quality)
    return root


@pytest.mark.parametrize("method", ["matched", "paper"])
def test_four_increments_give_the_map_of_all_at_once(photographs, method):
    """Sums in another order differ in the last digits of float64, so this is about what the rest makes of those."""
    known = ["--method", method]
    assert _fit(photographs, "whole", DEFAULT_VAE, _both(0, 1, 2, 3), *known) == 0
    assert _fit(photographs, "grown", DEFAULT_VAE, _both(0), *known) == 0
    for sides in (_both(1), {"source": ["restored2", "restored3"]}, {"target": ["natural2", "natural3"]}):
        assert _fit(photographs, "grown", DEFAULT_VAE, sides, "--add_to", f"{photographs}/grown.safetensors") == 0
    whole, grown = read_map(f"{photographs}/whole.safetensors"), read_map(f"{photographs}/grown.safetensors")
    for side in ("source", "target"):
        ours, theirs = getattr(grown, side), getattr(whole, side)
        assert ours.count == theirs.count
        _assert_close(ours.mean, theirs.mean, f"{side}.mean")
        _assert_close(ours.scatter, theirs.scatter, f"{side}.scatter")
        ours, theirs = (fitted.parts_of(side).values() for fitted in (grown, whole))
        assert [part.count for part in ours] == [part.count for part in theirs]
    for name in ("matrix", "source_mean", "target_mean", "metric", "invariant"):
        if getattr(whole.map, name) is not None:
            _assert_close(getattr(grown.map, name), getattr(whole.map, name), name)
    assert whole.noise_floor is not None
    assert grown.noise_floor == pytest.approx(whole.noise_floor, rel=1e-9)


def test_no_old_image_is_read_again(archive, vae, first, capsys):
    capsys.readouterr()
    assert _fit(archive, "second", vae, _both(1), "--add_to", first) == 0
    printed = capsys.readouterr().out
    assert "6 images in" in printed
    assert f"with the statistics of {first}" in printed
    assert read_map(str(archive / "second.safetensors")).source.count == 2 * read_map(first).source.count


def test_autoencoder_patch_size_and_method_are_taken_from_the_map(archive, vae):
    assert _fit(archive, "small", vae, _both(0), "--patch_size", "1", "--method", "paper") == 0
    small, more = str(archive / "small.safetensors"), str(archive / "more.safetensors")
    assert fit.main(["--source", str(archive / "restored1"), "--add_to", small, "--map", more]) == 0
    read = read_map(more)
    assert (read.space.patch_size, read.map.metric, read.space.vae) == (1, None, vae)


def test_pairs_are_added_to_pairs(archive, vae, first):
    assert _fit(archive, "pairs", vae, _both(0), "--paired") == 0
    pairs = str(archive / "pairs.safetensors")
    sides = {"target": ["natural1", "natural2"], "source": ["restored1"]}
    assert _fit(archive, "more-pairs", vae, sides, "--paired", "--add_to", pairs) == 0
    read = read_map(str(archive / "more-pairs.safetensors"))
    assert read.source.count == read.target.count == 2 * read_map(pairs).source.count
    assert read.map.invariant is None


def test_of_a_map_without_random_parts_no_noise_floor_is_told(archive, vae, first):
    old = read_map(first)
    wholes = {Part(side): old.side(side) for side in SIDES}
    write_map(replace(old, statistics=wholes), str(archive / "old.safetensors"))
    assert _fit(archive, "newer", vae, _both(1), "--add_to", str(archive / "old.safetensors")) == 0
    newer = read_map(str(archive / "newer.safetensors"))
    assert newer.source.count == 2 * old.source.count
    assert newer.noise_floor is None
    assert not newer.parts_of("source")


def test_a_side_may_be_the_statistics_of_another_map(archive, vae, first):
    target = {"target": ["first.safetensors"], "source": ["restored2"]}
    assert _fit(archive, "other", vae, target) == 0
    np.testing.assert_array_equal(
        read_map(str(archive / "other.safetensors")).target.scatter, read_map(first).target.scatter
    )


def test_a_map_without_any_image_can_be_fitted_anew_by_another_method(archive, vae, first):
    sides = {"target": ["first.safetensors"], "source": ["first.safetensors"]}
    assert _fit(archive, "anew", vae, sides, "--method", "paper") == 0
    assert read_map(str(archive / "anew.safetensors")).map.metric is None


MISTAKES = {
    "another autoencoder": (["--vae", "pixels", "--source", "R"], "was fitted with the autoencoder"),
    "another patch size": (["--patch_size", "5", "--source", "R"], "has patches of size 3, not 5"),
    "another method": (["--method", "paper", "--source", "R"], "was fitted with matched; leave --method out"),
    "nothing to add": ([], "expected images to add"),
    "twice": (["--source", "M"], "given twice, so its statistics would count twice"),
    "one side paired": (["--source", "R", "--paired"], "expected images in both"),
    "no such map": (["--source", "R", "--add_to", "none.safetensors"], "not found"),
    "results as target": (["--target", "D", "--source", "R"], "holds statistics of source, not of a target"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_agree_is_one_line(archive, vae, first, mistake, capsys, tmp_path):
    known = read_statistics(first)
    drift = str(tmp_path / "drift.safetensors")
    write_statistics(LatentSets(known.of_side("source"), known.space), drift)
    names = {"R": str(archive / "restored1"), "M": first, "D": drift}
    flags, message = MISTAKES[mistake]
    usual = ["--add_to", first, "--map", str(tmp_path / "new.safetensors")]
    assert fit.main([*usual, *(names.get(flag, flag) for flag in flags)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "new.safetensors").exists()


def test_without_a_map_to_add_to_both_sides_are_needed(archive, vae, capsys):
    assert _fit(archive, "none", vae, {"target": ["natural0"]}) == 2
    assert "--source: expected images or statistics" in capsys.readouterr().err


def test_statistics_never_make_us_import_code(archive, first, capsys, tmp_path):
    known = read_map(first)
    evil = str(tmp_path / "evil.safetensors")
    write_map(replace(known, space=replace(known.space, vae="os:getcwd")), evil)
    inputs = ["--source", str(archive / "restored1"), "--add_to", evil, "--map", str(tmp_path / "new.safetensors")]
    assert fit.main(inputs) == 2
    assert "which is code" in capsys.readouterr().err
