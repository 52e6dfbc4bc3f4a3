"""Statistics of windows of latents, gathered beside the images."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ot_core import DecodedImage, GaussianStatistics, LatentTransport, TransportMap, unfold
from ot_core.autoencoder import Autoencoder
from ot_core.noise import PARTS, part_of, split_group
from ot_core.patches import tiled_statistics
from transforms import TransportModelHandler
from transforms.elements import Failure, GatheredStatistics, ImageBatch, ImageRef, LoadedImage
from transforms.model_handlers import TransportModel
from transforms.samples import WINDOW, gather, windows_of


def _latents(n: int, side: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((n, 4, side, side), np.float32))


@pytest.mark.parametrize("patch_size", [1, 3, 5])
def test_patches_side_by_side_have_the_statistics_that_they_have_by_hand(patch_size):
    latents = 100 + _latents(5, 17)
    found = tiled_statistics(list(latents), patch_size)
    every = unfold(latents.double(), patch_size)[:, :, ::patch_size, ::patch_size]
    expected = GaussianStatistics.of(every.permute(0, 2, 3, 1).flatten(0, 2).numpy())
    assert found.count == expected.count == 5 * (17 // patch_size) ** 2
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
    assert np.abs(found.scatter - expected.scatter).max() < 1e-5 * np.abs(expected.scatter).max()


def test_small_latents_that_are_not_finite_or_hold_no_patch_do_not_count():
    latents = _latents(3, 9)
    latents[1, 2, 3, 4] = torch.nan
    assert tiled_statistics(list(latents), 3).count == 2 * 3 * 3
    assert tiled_statistics([latents[1]], 3) is None
    assert tiled_statistics(list(_latents(2, 2)), 3) is None


@pytest.mark.parametrize(("side", "size", "places"), [(40, 36, 25), (32, 30, 9), (120, WINDOW, 625)])
def test_a_window_lies_where_the_key_says_and_is_the_same_before_and_after(side, size, places):
    latents, keys = _latents(1, side).expand(60, -1, -1, -1), [f"key{i}" for i in range(60)]
    windows = windows_of(latents, -latents, keys, 3)
    found = set()
    for latent, window in zip(latents, windows, strict=True):
        assert window.before.shape == (4, size, size)
        torch.testing.assert_close(window.after, -window.before)
        room = side - size + 1
        corners = (latent[:, :room, :room] == window.before[:, :1, :1]).all(0).nonzero()
        found.add(tuple(corners[0].tolist()))
    assert len(found) > 0.8 * min(60, places)
    alone = windows_of(latents[7:8], latents[7:8], keys[7:8], 3)
    torch.testing.assert_close(alone[0].before, windows[7].before)


@pytest.mark.parametrize(("side", "size"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (6, 3), (8, 6)])
def test_small_latents_have_a_window_too(side, size):
    (window,) = windows_of(_latents(1, side), _latents(1, side), ["key"], 3)
    assert window.before.shape == (4, size, size)


def test_windows_do_not_keep_their_latents_in_memory():
    latents = _latents(2, 400)
    window = windows_of(latents, latents, ["a", "b"], 3)[0].before
    assert window.untyped_storage().nbytes() == 4 * 4 * WINDOW**2


def test_parts_are_random_and_the_same_everywhere():
    found = [part_of("source", f"folder/{i}") for i in range(400)]
    assert {found.count(f"source/{part}") > 60 for part in range(PARTS)} == {True}
    assert part_of("source", "folder/0") == "source/3"


def test_gathering_keeps_kinds_and_parts_apart_and_takes_windows_of_any_size():
    latents = _latents(8, 30)
    keys = [f"{i}" for i in range(8)]
    small = latents[:, :, :10, :12]
    both = [(key, "", pair) for key, pair in zip(keys, windows_of(latents, latents + 1, keys, 3), strict=True)]
    both += [(key, "", pair) for key, pair in zip(keys, windows_of(small, small + 1, keys, 3), strict=True)]
    found = dict(gather(both, 3).groups)
    in_groups = dict(gather([(key, f"group {key}", pair) for key, _, pair in both], 3).groups)
    assert {split_group(name)[1] for name in in_groups} == {f"group {key}" for key in keys}
    assert {split_group(name)[0] for name in in_groups} == set(found)
    assert {group.partition("/")[0] for group in found} == {"source", "results"}
    for kind in ("source", "results"):
        total = sum(statistics.count for group, statistics in found.items() if group.startswith(kind))
        assert total == 8 * (9 * 9 + 2 * 3)
    for group, statistics in found.items():
        if group.startswith("results"):
            before = found[group.replace("results", "source")]
            np.testing.assert_allclose(statistics.mean, before.mean + 1, atol=1e-6)
            np.testing.assert_allclose(statistics.scatter, before.scatter, atol=1e-2)


class _Mean(torch.nn.Module):
    downsampling_factor = 4

    def encode(self, x):
        return torch.nn.functional.avg_pool2d(x, 4)

    def decode(self, z):
        return torch.nn.functional.interpolate(z, scale_factor=4.0)


@pytest.fixture
def model() -> TransportModel:
    rng = np.random.default_rng(0)
    source, target = (GaussianStatistics.of(rng.standard_normal((50, 27))) for _ in range(2))
    return TransportModel(
        Autoencoder(_Mean(), "mean"), {"": LatentTransport(TransportMap.fit(source, target, patch_size=3))}
    )


def _batch(n: int) -> ImageBatch:
    rng = np.random.default_rng(1)
    images = []
    for index in range(n):
        pixels = rng.integers(0, 255, (60 + 8 * (index % 3), 80, 3), dtype=np.uint8)
        images.append(LoadedImage(ImageRef(f"k{index}", f"u{index}"), DecodedImage(pixels), 0.0))
    return ImageBatch(tuple(images))


def test_threads_gather_what_one_image_after_the_other_gives(model):
    handler = TransportModelHandler("m", statistics=True)
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as workers:
        *images, gathered = handler.run_inference(_batch(24), dataclasses.replace(model, workers=workers))
    assert len(images) == 24
    assert isinstance(gathered.inference, GatheredStatistics)
    assert gathered.example is None
    *_, expected = handler.run_inference(_batch(24), model)
    found, expected = dict(gathered.inference.groups), dict(expected.inference.groups)
    assert found.keys() == expected.keys()
    for group, statistics in found.items():
        assert statistics.count == expected[group].count
        np.testing.assert_allclose(statistics.mean, expected[group].mean, atol=1e-6)
        np.testing.assert_allclose(statistics.scatter, expected[group].scatter, rtol=1e-4, atol=1e-3)


def test_images_that_fail_do_not_count_and_a_batch_of_failures_gives_no_statistics(model):
    handler = TransportModelHandler("m", statistics=True)

    def broken(z):
        raise RuntimeError("broken")

    model.autoencoder._decode = broken
    outcomes = handler.run_inference(_batch(3), model)
    assert [type(outcome.inference) for outcome in outcomes] == [Failure] * 3


def test_nothing_is_gathered_unless_asked_for(model):
    assert len(TransportModelHandler("m").run_inference(_batch(3), model)) == 3
