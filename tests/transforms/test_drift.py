"""Statistics of some patches of latents, gathered beside the images."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ot_core import DecodedImage, GaussianStatistics, LatentTransport, TransportMap, unfold
from ot_core.autoencoder import Autoencoder
from ot_core.noise import PARTS, part_of
from ot_core.patches import spread_patches
from transforms import TransportModelHandler
from transforms.drift import SampledPatches, gather
from transforms.elements import Failure, GatheredStatistics, ImageBatch, ImageRef, LoadedImage
from transforms.model_handlers import TransportModel


def _latents(n: int, side: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((n, 4, side, side), np.float32))


@pytest.mark.parametrize(
    ("patch_size", "side", "stride"), [(1, 8, 1), (1, 9, 2), (3, 17, 3), (3, 24, 3), (3, 25, 4), (5, 400, 50)]
)
def test_patches_are_spread_over_the_latent_and_do_not_overlap(patch_size, side, stride):
    latents = _latents(2, side)
    every = unfold(latents, patch_size)[:, :, ::stride, ::stride]
    found = spread_patches(latents, patch_size)
    torch.testing.assert_close(found, every.permute(0, 2, 3, 1).flatten(1, 2), rtol=0, atol=0)
    assert found.shape[1] <= 8**2
    assert found.untyped_storage().nbytes() <= found.numel() * 4  # no view, which would keep the latents in memory


def test_no_patch_fits_into_a_latent_that_is_too_small():
    assert spread_patches(_latents(2, 2), 3).shape == (2, 0, 36)


def test_parts_are_random_and_the_same_everywhere():
    found = [part_of("source", f"folder/{i}") for i in range(400)]
    assert {found.count(f"source/{part}") > 60 for part in range(PARTS)} == {True}
    assert part_of("source", "folder/0") == "source/3"


def _sampled(latents: torch.Tensor) -> list[SampledPatches]:
    patches = spread_patches(latents, 3)
    return [SampledPatches(f"{i}", before, before + 1) for i, before in enumerate(patches)]


def test_gathering_keeps_kinds_and_parts_apart_and_takes_latents_of_any_size():
    latents = _latents(8, 30)
    sampled = _sampled(latents) + _sampled(latents[:, :, :10, :12])
    found = dict(gather(sampled).groups)
    for kind, shift in (("source", 0), ("results", 1)):
        for part in range(PARTS):
            expected = [s.before.numpy() + shift for s in sampled if part_of(kind, s.key) == f"{kind}/{part}"]
            if expected:
                by_hand = GaussianStatistics.of(np.concatenate(expected))
                one = found.pop(f"{kind}/{part}")
                assert one.count == by_hand.count
                np.testing.assert_allclose(one.mean, by_hand.mean, atol=1e-6)
                np.testing.assert_allclose(one.scatter, by_hand.scatter, atol=1e-4)
    assert found == {}
    of_groups = gather([one._replace(group=f"group {one.key}") for one in sampled]).groups
    assert {name for name, _ in of_groups} == {
        f"{part_of(kind, key)}/group {key}" for kind in ("source", "results") for key in map(str, range(8))
    }


def test_latents_that_are_not_finite_or_too_small_do_not_count():
    latents = _latents(3, 9)
    latents[1, 2, 3, 4] = torch.nan
    assert sum(statistics.count for _, statistics in gather(_sampled(latents)).groups) == 2 * 2 * 9
    assert gather(_sampled(_latents(2, 2))).groups == ()


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
