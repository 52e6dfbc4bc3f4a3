from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from ot_core import FittedMap, GaussianStatistics, LatentSpace, MapFileError, Part, map_file, read_map, write_map
from ot_core.fitted_map import LatentSets
from ot_core.map_file import read_statistics, write_statistics
from tests.fitted_maps import fit


def _parts(side: str, n: int = 4, seed: int = 0) -> dict[Part, GaussianStatistics]:
    rng = np.random.default_rng(seed)
    return {Part(side, i): GaussianStatistics.of(rng.standard_normal((30 + i, 18)) + math.pi) for i in range(n)}


SPACE = LatentSpace(3, 2, "some/vae", "ab" * 32)


def _map() -> FittedMap:
    return FittedMap.fit({**_parts("source"), **_parts("target", seed=1)}, SPACE)


def _assert_same(ours: GaussianStatistics, theirs: GaussianStatistics) -> None:
    assert ours.count == theirs.count
    np.testing.assert_array_equal(ours.mean, theirs.mean)
    np.testing.assert_array_equal(ours.scatter, theirs.scatter)
    assert (ours.images is None) == (theirs.images is None)
    if ours.images is not None:
        _assert_same(ours.images, theirs.images)


def _with_images(statistics: GaussianStatistics, count: int = 5) -> GaussianStatistics:
    images = GaussianStatistics.of(np.random.default_rng(count).standard_normal((count, 6)))
    return replace(statistics, images=images)


def test_statistics_come_back_exactly_on_every_store(store: str):
    groups = {**_parts("inputs"), Part("single", 0): GaussianStatistics.single(np.arange(18.0))}
    write_statistics(LatentSets(groups, SPACE), f"{store}/drift.safetensors")
    read = read_statistics(f"{store}/drift.safetensors")
    assert read.space == SPACE
    assert read.sides == ["inputs", "single"]
    assert read.statistics.keys() == groups.keys()
    for name, statistics in groups.items():
        _assert_same(read.statistics[name], statistics)
    assert list(read.of_side("inputs")) == [Part("inputs", index) for index in range(4)]
    assert read.of_side("nothing") == {}


def test_statistics_over_images_come_back_and_are_unknown_of_files_without(tmp_path: Path):
    groups = {name: _with_images(part, 3 + i) for i, (name, part) in enumerate(_parts("source").items())}
    url = str(tmp_path / "drift.safetensors")
    write_statistics(LatentSets(groups, SPACE, run="r1", verdict="like"), url)
    read = read_statistics(url)
    assert (read.run, read.verdict) == ("r1", "like")
    for name, statistics in groups.items():
        _assert_same(read.statistics[name], statistics)
    without = {key: tensor for key, tensor in load(Path(url).read_bytes()).items() if "images" not in key}
    Path(url).write_bytes(save(without, {"format_version": "1", "patch_size": "3", "latent_channels": "2"}))
    assert [one.images for one in read_statistics(url).statistics.values()] == [None] * 4
    assert read_statistics(url).run == ""


def test_the_images_of_a_map_come_back(tmp_path: Path):
    made = _map()
    without = Part("target")
    known = replace(made, statistics={k: v if k == without else _with_images(v) for k, v in made.statistics.items()})
    write_map(known, str(tmp_path / "map.safetensors"))
    read = read_map(str(tmp_path / "map.safetensors"))
    _assert_same(read.source, known.source)
    assert read.target.images is None
    assert read.statistics.keys() == known.statistics.keys()
    _assert_same(read.statistics[Part("target", 2)], known.statistics[Part("target", 2)])


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("source/1.images", np.array(0), "tensor source/1.images is 0, expected 1 to 31"),
        ("source/1.images", np.array(32), "tensor source/1.images is 32, expected 1 to 31"),
        ("source/1.images_mean", np.full(6, np.inf), "tensor source/1.images_mean holds NaN or infinity"),
        ("source/1.images_mean", np.zeros((6, 1)), "tensor source/1.images_mean is float64"),
        ("source/1.images_scatter", np.eye(5), "tensor source/1.images_scatter is float64"),
    ],
)
def test_images_that_make_no_sense_are_refused_by_name(name, tensor, message, tmp_path: Path):
    url = tmp_path / "drift.safetensors"
    groups = {part: _with_images(statistics) for part, statistics in _parts("source").items()}
    write_statistics(LatentSets(groups, SPACE), str(url))
    metadata = {"format_version": "1", "patch_size": "3", "latent_channels": "2"}
    url.write_bytes(save({**load(url.read_bytes()), name: tensor}, metadata))
    with pytest.raises(MapFileError, match=message):
        read_statistics(str(url))


def test_no_statistics_are_statistics_too(tmp_path: Path):
    write_statistics(LatentSets({}, SPACE), str(tmp_path / "none.safetensors"))
    assert read_statistics(str(tmp_path / "none.safetensors")).sides == []


def test_the_parts_of_a_map_come_back_and_are_its_statistics(tmp_path: Path):
    url, made = str(tmp_path / "map.safetensors"), _map()
    write_map(made, url)
    read = read_map(url)
    assert read.statistics.keys() == made.statistics.keys()
    for part, statistics in made.statistics.items():
        _assert_same(read.statistics[part], statistics)
    assert [found.count for found in read.parts_of("source").values()] == [30, 31, 32, 33]
    assert read_statistics(url).statistics.keys() == {**_parts("source"), **_parts("target")}.keys()


def test_of_a_map_without_parts_the_sides_are_its_statistics(tmp_path: Path):
    url = str(tmp_path / "map.safetensors")
    made = _map()
    write_map(fit(made.source, made.target, 3), url)
    sets = read_statistics(url)
    assert sets.sides == ["source", "target"]
    _assert_same(sets.of_side("source")[Part("source")], made.source)


def test_statistics_are_no_map(tmp_path: Path):
    url = str(tmp_path / "drift.safetensors")
    write_statistics(LatentSets(_parts("inputs"), SPACE), url)
    with pytest.raises(MapFileError, match=r"tensor map.matrix is missing|tensor source.count is missing"):
        read_map(url)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("source/1.count", np.array(5), "tensor source.count is 126, but its parts hold 100"),
        ("source/1.count", np.array(0), "tensor source/1.count is 0, expected at least 1"),
        ("target/0.mean", np.full(18, np.nan), "tensor target/0.mean holds NaN"),
        ("target/2.scatter", -np.eye(18), "tensor target/2.scatter isn't positive semi-definite"),
        ("target/2.scatter", np.eye(17), "tensor target/2.scatter is float64"),
    ],
)
def test_parts_that_make_no_sense_are_refused_by_name(name, tensor, message, tmp_path: Path):
    data = map_file.to_bytes(_map())
    metadata = {"format_version": "1", "patch_size": "3", "latent_channels": "2"}
    (tmp_path / "map.safetensors").write_bytes(save({**load(data), name: tensor}, metadata))
    with pytest.raises(MapFileError, match=message) as error:
        read_map(str(tmp_path / "map.safetensors"))
    assert "\n" not in str(error.value)


def test_missing_and_foreign_files_are_refused_by_name(tmp_path: Path):
    with pytest.raises(MapFileError, match=r"statistics .*: not found; expected a map or a statistics file"):
        read_statistics(str(tmp_path / "none.safetensors"))
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(MapFileError, match="not a safetensors file"):
        read_statistics(str(tmp_path / "text.safetensors"))
