from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load, save

from ot_core import (
    FittedMap,
    GaussianStatistics,
    LatentSpace,
    MapFileError,
    TransportMap,
    map_file,
    read_map,
    write_map,
)
from tests.fitted_maps import fit

ARRAYS = ["matrix", "source_mean", "target_mean"]


def make_map(rank: int = 18) -> FittedMap:
    """Of 2 channels and 3 x 3 patches; a rank below 18 gives it a noise covariance."""
    rng = np.random.default_rng(0)
    source = GaussianStatistics.of(rng.standard_normal((60, rank)) @ rng.standard_normal((rank, 18)) + math.pi)
    target = GaussianStatistics.of(rng.standard_normal((50, 18)) - math.e)
    return fit(source, target, 3, "some/vae", "ab" * 32)


REGULAR, SINGULAR = make_map(), make_map(rank=10)


def altered(tensors: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None) -> bytes:
    """A map file in which some tensors and metadata are replaced, or left out where the value is None."""
    data = map_file.to_bytes(SINGULAR)
    all_tensors = {**load(data), **(tensors or {})}
    all_metadata = {**read_metadata(data), **(metadata or {})}
    return save(
        {name: np.array(tensor, order="C") for name, tensor in all_tensors.items() if tensor is not None},
        {name: value for name, value in all_metadata.items() if value is not None},
    )


def read_metadata(data: bytes) -> dict[str, str]:
    size = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + size])["__metadata__"])


class TestRoundTrip:
    @pytest.mark.parametrize("written", [REGULAR, SINGULAR], ids=["regular", "singular"])
    def test_is_exact_on_every_store(self, written: FittedMap, store: str):
        url = f"{store}/maps/run 7.safetensors"
        write_map(written, url)
        read = read_map(url)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(read.map, name), getattr(written.map, name))
        if written.map.noise_covariance is None:
            assert read.map.noise_covariance is None
        else:
            np.testing.assert_array_equal(read.map.noise_covariance, written.map.noise_covariance)
        for side in ("source", "target"):
            ours, theirs = getattr(read, side), getattr(written, side)
            assert ours.count == theirs.count
            np.testing.assert_array_equal(ours.mean, theirs.mean)
            np.testing.assert_array_equal(ours.scatter, theirs.scatter)
        assert read.space == LatentSpace(3, 2, "some/vae", "ab" * 32)

    def test_same_map_gives_the_same_bytes(self):
        assert map_file.to_bytes(make_map()) == map_file.to_bytes(make_map())

    def test_a_read_map_can_be_refitted_and_merged(self, tmp_path: Path):
        write_map(REGULAR, str(tmp_path / "map.safetensors"))
        read = read_map(str(tmp_path / "map.safetensors"))
        refitted = TransportMap.fit(read.source, read.target)
        np.testing.assert_array_equal(refitted.matrix, REGULAR.map.matrix)
        assert (read.source + read.target).count == 110

    def test_writing_replaces_an_older_map(self, tmp_path: Path):
        url = str(tmp_path / "map.safetensors")
        write_map(SINGULAR, url)
        write_map(REGULAR, url)
        assert read_map(url).map.noise_covariance is None


class TestFormat:
    """What other tools rely on."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        write_map(SINGULAR, str(tmp_path / "map.safetensors"))
        return tmp_path / "map.safetensors"

    def test_tensors_and_their_types(self, path: Path):
        vector, matrix = ("float64", (18,)), ("float64", (18, 18))
        expected = {
            "source.count": ("int64", ()),
            "source.mean": vector,
            "source.scatter": matrix,
            "target.count": ("int64", ()),
            "target.mean": vector,
            "target.scatter": matrix,
            "map.matrix": matrix,
            "map.source_mean": vector,
            "map.target_mean": vector,
            "map.noise_covariance": matrix,
        }
        assert {name: (str(t.dtype), t.shape) for name, t in load(path.read_bytes()).items()} == expected

    def test_no_noise_covariance_where_none_applies(self):
        assert "map.noise_covariance" not in load(map_file.to_bytes(REGULAR))

    def test_metadata(self, path: Path):
        with safe_open(path, framework="np") as file:
            metadata = file.metadata()
        assert metadata == {
            "format_version": "1",
            "patch_size": "3",
            "latent_channels": "2",
            "vae": "some/vae",
            "vae_sha256": "ab" * 32,
            "created_by": metadata["created_by"],
        }
        assert metadata["created_by"]


class Trap:
    """Unpickling this leaves a mark."""

    sprung = False

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return setattr, (Trap, "sprung", True)


def torch_saved() -> bytes:
    buffer = io.BytesIO()
    torch.save({"map.matrix": torch.eye(18)}, buffer)
    return buffer.getvalue()


def changed(name: str, index: tuple[int, ...], value: float) -> dict[str, np.ndarray]:
    tensor = load(map_file.to_bytes(SINGULAR))[name].copy()
    tensor[index] = value
    return {name: tensor}


EVERY_TENSOR = sorted(load(map_file.to_bytes(REGULAR)))


class TestRefusals:
    def refused(self, data: bytes, tmp_path: Path) -> str:
        path = tmp_path / "run7.safetensors"
        path.write_bytes(data)
        with pytest.raises(MapFileError) as error:
            read_map(str(path))
        message = str(error.value)
        assert message.startswith(f"map {path}: ")
        assert "\n" not in message
        return message

    @pytest.mark.parametrize(
        "data",
        [
            pickle.dumps({"map.matrix": np.eye(18)}),
            torch_saved(),
            b"",
            b"{}",
            b"\x89PNG\r\n\x1a\n",
            map_file.to_bytes(REGULAR)[:-1],
            map_file.to_bytes(REGULAR)[:500],
            map_file.to_bytes(REGULAR)[:4],
            map_file.to_bytes(REGULAR) + b"more",
        ],
        ids=["pickle", "torch.save", "empty", "JSON", "PNG", "one byte short", "cut", "cut in length", "too long"],
    )
    def test_what_isnt_a_safetensors_file(self, data: bytes, tmp_path: Path):
        assert "not a safetensors file" in self.refused(data, tmp_path)

    def test_a_pickle_is_never_executed(self, tmp_path: Path):
        data = pickle.dumps(Trap())
        self.refused(data, tmp_path)
        assert not Trap.sprung
        pickle.loads(data)  # the trap works
        assert Trap.sprung

    def test_a_missing_file(self, store: str):
        with pytest.raises(MapFileError, match="not found; write one with dot-fit"):
            read_map(f"{store}/none.safetensors")

    def test_a_folder(self, tmp_path: Path):
        with pytest.raises(MapFileError, match="can't be read"):
            read_map(str(tmp_path))

    @pytest.mark.parametrize("name", EVERY_TENSOR)
    def test_a_missing_tensor_by_name(self, name: str, tmp_path: Path):
        assert f"tensor {name} is missing" in self.refused(altered({name: None}), tmp_path)

    @pytest.mark.parametrize("name", [*EVERY_TENSOR, "map.noise_covariance"])
    def test_a_wrong_shape_by_name(self, name: str, tmp_path: Path):
        dtype = np.int64 if name.endswith("count") else np.float64
        message = self.refused(altered({name: np.ones((5, 5), dtype)}), tmp_path)
        assert f"tensor {name} is {np.dtype(dtype)} (5, 5), expected" in message

    @pytest.mark.parametrize("name", [*EVERY_TENSOR, "map.noise_covariance"])
    def test_a_wrong_dtype_by_name(self, name: str, tmp_path: Path):
        tensor = load(map_file.to_bytes(SINGULAR))[name].astype(np.float32)
        assert f"tensor {name} is float32" in self.refused(altered({name: tensor}), tmp_path)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", [name for name in EVERY_TENSOR if not name.endswith("count")])
    def test_values_that_arent_finite_by_name(self, name: str, value: float, tmp_path: Path):
        index = (0, 0) if name.endswith(("scatter", "matrix")) else (0,)
        assert f"tensor {name} holds NaN or infinity" in self.refused(altered(changed(name, index, value)), tmp_path)

    @pytest.mark.parametrize("name", ["source.scatter", "target.scatter", "map.noise_covariance"])
    def test_an_asymmetric_matrix_by_name(self, name: str, tmp_path: Path):
        assert f"tensor {name} isn't symmetric" in self.refused(altered(changed(name, (0, 1), 9.0)), tmp_path)

    def test_an_asymmetric_map_of_an_invertible_source(self, tmp_path: Path):
        data = altered({**changed("map.matrix", (0, 1), 9.0), "map.noise_covariance": None})
        assert "tensor map.matrix isn't symmetric" in self.refused(data, tmp_path)

    @pytest.mark.parametrize("name", ["source.scatter", "target.scatter"])
    def test_a_scatter_with_a_negative_eigenvalue_by_name(self, name: str, tmp_path: Path):
        message = self.refused(altered(changed(name, (0, 0), -50.0)), tmp_path)
        assert f"tensor {name} isn't positive semi-definite" in message

    @pytest.mark.parametrize("count", [-3, 0, 1])
    def test_a_count_that_has_no_covariance(self, count: int, tmp_path: Path):
        message = self.refused(altered({"target.count": np.array(count)}), tmp_path)
        assert f"tensor target.count is {count}, expected at least 2" in message

    @pytest.mark.parametrize("value", ["2", "4"])
    def test_an_even_patch_size(self, value: str, tmp_path: Path):
        assert f"patch_size is {value}, expected an odd" in self.refused(altered(None, {"patch_size": value}), tmp_path)

    @pytest.mark.parametrize("value", [None, "", "0", "-3", "3.0", "three", "²", "9" * 5000])
    @pytest.mark.parametrize("name", ["patch_size", "latent_channels"])
    def test_sizes_that_arent_positive_integers(self, name: str, value: str | None, tmp_path: Path):
        assert f"metadata {name} is" in self.refused(altered(None, {name: value}), tmp_path)

    @pytest.mark.parametrize(("name", "value"), [("patch_size", "1"), ("latent_channels", "3")])
    def test_sizes_that_dont_suit_the_tensors(self, name: str, value: str, tmp_path: Path):
        assert "(18, 18), expected float64" in self.refused(altered(None, {name: value}), tmp_path)

    @pytest.mark.parametrize("value", [None, "0", "2", "1.0"])
    def test_an_unknown_format_version(self, value: str | None, tmp_path: Path):
        message = self.refused(altered(None, {"format_version": value}), tmp_path)
        assert "format_version is" in message
        assert "expected '1'" in message

    def test_a_safetensors_file_that_isnt_a_map(self, tmp_path: Path):
        assert "format_version is None" in self.refused(save({"weight": np.eye(3)}), tmp_path)

    @given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=8))
    def test_any_change_of_bytes_gives_a_consistent_map_or_a_refusal(self, changes: list[tuple[int, int]]):
        data = bytearray(map_file.to_bytes(SINGULAR))
        for position, value in changes:
            data[position % len(data)] = value
        try:
            read = map_file.from_bytes(bytes(data))
        except MapFileError:
            return
        assert read.map.matrix.shape == (18, 18)
        assert np.isfinite(read.source.covariance()).all()

    @given(st.integers(0, 1200), st.integers(0, 255))
    def test_any_change_of_the_header_gives_a_consistent_map_or_a_refusal(self, position: int, value: int):
        data = bytearray(map_file.to_bytes(SINGULAR))
        data[position] = value
        try:
            read = map_file.from_bytes(bytes(data))
        except MapFileError:
            return
        assert read.map.dimension == 18


class TestMetricAndNoiseFloor:
    """What maps carry beyond the paper's."""

    def whole(self) -> FittedMap:
        metric = np.diag(np.arange(1.0, 19.0))
        made = fit(REGULAR.source, REGULAR.target, 3, metric=metric, invariant=np.eye(18)[:2])
        return replace(made, noise_floor=1 / 3)

    def test_come_back_exactly(self, tmp_path: Path):
        write_map(self.whole(), str(tmp_path / "m.safetensors"))
        read = read_map(str(tmp_path / "m.safetensors"))
        np.testing.assert_array_equal(read.map.metric, self.whole().map.metric)
        np.testing.assert_array_equal(read.map.invariant, self.whole().map.invariant)
        np.testing.assert_array_equal(read.map.matrix, self.whole().map.matrix)
        assert read.noise_floor == 1 / 3

    @pytest.mark.parametrize(
        ("tensors", "metadata", "message"),
        [
            ({"map.metric": -np.eye(18)}, {}, "map.metric isn't positive definite"),
            ({"map.metric": np.eye(17)}, {}, "map.metric is float64"),
            ({"map.matrix": np.triu(np.ones((18, 18)))}, {}, "map.matrix doesn't suit map.metric"),
            ({"map.invariant": np.eye(17)}, {}, "map.invariant is float64"),
            ({"map.invariant": np.array(1.0)}, {}, "map.invariant is float64"),
            ({}, {"noise_floor": "much"}, "noise_floor is 'much'"),
        ],
    )
    def test_are_refused_by_name_where_they_make_no_sense(self, tensors, metadata, message, tmp_path: Path):
        data = map_file.to_bytes(self.whole())
        path = tmp_path / "m.safetensors"
        path.write_bytes(save({**load(data), **tensors}, {**read_metadata(data), **metadata}))
        with pytest.raises(MapFileError, match=message):
            read_map(str(path))
