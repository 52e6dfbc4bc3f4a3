"""Statistics of some patches of latents, gathered beside the images."""

import functools
import json
import operator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
import torch
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.test_pipeline import TestPipeline

from ot_core import DecodedImage, FittedMap, GaussianStatistics, LatentSpace, LatentTransport, TransportMap, write_map
from ot_core.autoencoder import Autoencoder
from ot_core.engine import Engine
from ot_core.layout import OutputLayout
from ot_core.map_file import read_statistics
from ot_core.parts import PARTS, Part, number_of
from transforms import TransportImages, TransportModelHandler, WriteDrift, WriteManifest
from transforms.elements import Failure, GatheredStatistics, ImageBatch, ImageRef, LoadedImage
from transforms.transport_handler import TransportModel
from transforms.write_drift import ImageStatistics, gather


def _latents(n: int, side: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((n, 4, side, side), np.float32))


def test_parts_are_random_and_the_same_everywhere():
    found = [number_of(f"folder/{i}") for i in range(400)]
    assert {found.count(index) > 60 for index in range(PARTS)} == {True}
    assert number_of("folder/0") == 3


def _of_images(latents: torch.Tensor) -> list[ImageStatistics]:
    return [ImageStatistics.of(f"{i}", latent, latent + 1, 3) for i, latent in enumerate(latents)]


def test_gathering_keeps_kinds_and_parts_apart_and_takes_latents_of_any_size():
    latents = _latents(8, 30)
    images = _of_images(latents) + _of_images(latents[:, :, :10, :12])
    found = dict(gather(images).parts)
    expected = {Part("results", 0): [one.after for one in images]}
    for one in images:
        expected.setdefault(Part("source", number_of(one.key)), []).append(one.before)
    assert found.keys() == expected.keys()
    for name, several in expected.items():
        by_hand = functools.reduce(operator.add, several)
        assert found[name].count == by_hand.count
        assert found[name].images.count == len(several)
        np.testing.assert_allclose(found[name].mean, by_hand.mean, atol=1e-9)
        np.testing.assert_allclose(found[name].scatter, by_hand.scatter, atol=1e-6)
    of_groups = gather([one._replace(group=f"group {one.key}") for one in images]).parts
    expected_parts = [
        Part(side, index, f"group {i}")
        for i in range(8)
        for side, index in (("source", number_of(str(i))), ("results", 0))
    ]
    assert {part for part, _ in of_groups} == set(expected_parts)


def test_latents_that_are_not_finite_or_too_small_do_not_count():
    latents = _latents(3, 9)
    latents[1, 2, 3, 4] = torch.nan
    assert [one is None for one in _of_images(latents)] == [False, True, False]
    infinite = torch.full((4, 9, 9), torch.inf)
    assert ImageStatistics.of("k", _latents(1, 9)[0], infinite, 3) is None
    assert _of_images(_latents(2, 2)) == [None, None]
    assert gather([]).parts == ()


def test_statistics_leave_the_main_stage_merged_and_by_one_way(tmp_path):
    pipeline = beam.Pipeline(runner=FnApiRunner())
    images = pipeline | beam.Create([ImageRef("k", "u")])
    outcome = images | TransportImages(map="m", output=OutputLayout.of(str(tmp_path), [0.0]), statistics=True)
    _ = outcome.statistics | WriteDrift("m", str(tmp_path), after=outcome.records | WriteManifest(str(tmp_path)))
    _, stages = FnApiRunner().create_stages(pipeline.to_runner_api())
    names = [[transform.unique_name for transform in stage.transforms] for stage in stages]
    (main,) = (of_stage for of_stage in names if any("/WriteImages/" in name for name in of_stage))
    ways = [name for name in main if "Statistics" in name]
    assert [name.partition("MergeStatistics/")[2] for name in ways] == [
        "OfKind",
        "Merge/Precombine",
        "Merge/Group/Write",
    ]


def test_what_leaves_the_main_stage_is_half_a_matrix_for_each_part_whatever_the_images():
    dimension, coder = 9 * 4, beam.coders.registry.get_coder(tuple[Part, GaussianStatistics])
    for n in (2, 30):
        encoded = [coder.encode(group) for group in gather(_of_images(_latents(n, 20))).parts]
        assert len(encoded) <= PARTS + 1
        for one in encoded:
            assert len(one) < 8 * (dimension * (dimension + 1) / 2 + dimension + 12 * 13 / 2 + 12) + 1000


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
        Autoencoder(_Mean(), "mean"), {"": LatentTransport(TransportMap.fit(source, target), 3)}, Engine("meta", 2**20)
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
        model.engine.workers = workers
        *images, gathered = handler.run_inference(_batch(24), model)
    model.engine.workers = None
    assert len(images) == 24
    assert isinstance(gathered.inference, GatheredStatistics)
    assert gathered.example is None
    *_, expected = handler.run_inference(_batch(24), model)
    found, expected = dict(gathered.inference.parts), dict(expected.inference.parts)
    assert found.keys() == expected.keys()
    for part, statistics in found.items():
        assert statistics.count == expected[part].count
        np.testing.assert_allclose(statistics.mean, expected[part].mean, atol=1e-6)
        np.testing.assert_allclose(statistics.scatter, expected[part].scatter, rtol=1e-4, atol=1e-3)
        assert statistics.images.count == expected[part].images.count > 0


def test_images_that_fail_do_not_count_and_a_batch_of_failures_gives_no_statistics(model):
    handler = TransportModelHandler("m", statistics=True)

    def broken(z):
        raise RuntimeError("broken")

    model.autoencoder._decode = broken
    outcomes = handler.run_inference(_batch(3), model)
    assert [type(outcome.inference) for outcome in outcomes] == [Failure] * 3


def test_nothing_is_gathered_unless_asked_for(model):
    assert len(TransportModelHandler("m").run_inference(_batch(3), model)) == 3


def _write_drift(folder: Path, keys: range, **options: object) -> dict:
    """Statistics of some images, written for a map that they may be the source of; gives what is told of the inputs."""
    sides = {side: gather(_of_images(_latents(12, 20) * scale)).parts for side, scale in (("source", 1), ("target", 2))}
    parts = {part._replace(side=side): s for side, found in sides.items() for part, s in found if part.side == "source"}
    write_map(FittedMap.fit(parts, LatentSpace(3, 4)), str(folder / "m.safetensors"))
    with TestPipeline(runner="FnApiRunner") as pipeline:
        parts = gather(_of_images(_latents(40, 20)[keys.start : keys.stop])).parts
        _ = pipeline | beam.Create(parts) | WriteDrift(str(folder / "m.safetensors"), str(folder), **options)
    return json.loads((folder / "drift.json").read_text())["inputs"]


def test_runs_are_added_where_they_go_on_with_an_output_and_replaced_where_they_do_not(tmp_path):
    for keys, resume, images in [(range(12, 15), True, 3), (range(15, 17), True, 5), (range(17, 18), False, 1)]:
        told = _write_drift(tmp_path, keys, resume=resume, limit=0.0)
        assert (told["images"], told["images_of_this_run"], told["verdict"]) == (images, len(keys), "unknown")
        kept = read_statistics(str(tmp_path / "drift.safetensors")).of_side("source")
        assert sum(found.images.count for found in kept.values()) == images


@pytest.mark.parametrize("damage", [b"", b"text"])
def test_statistics_of_earlier_runs_that_cannot_be_read_end_nothing(tmp_path, damage):
    (tmp_path / "drift.safetensors").write_bytes(damage)
    assert _write_drift(tmp_path, range(12, 15), resume=True)["images"] == 3
