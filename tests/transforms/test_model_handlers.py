"""Handlers pickle, load once, and never let one image take its batch along."""

import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from ot_core import (
    DecodedImage,
    GaussianStatistics,
    LatentTransport,
    MapFileError,
    Part,
    TransportMap,
    UserError,
    latent_statistics,
    load_autoencoder,
    read_map,
    write_map,
)
from ot_core.autoencoder import Autoencoder
from ot_core.engine import Engine, threads_of_one_core
from tests.fitted_maps import fit
from transforms import LatentStatisticsModelHandler, TransportModelHandler, TransportOptions
from transforms.batching import _BatchByPixelsDoFn
from transforms.elements import Failure, ImageBatch, ImageRef, LoadedImage, TransportedImage
from transforms.model_handlers import FeatureModels
from transforms.transport_handler import TransportModel


class _Fussy(nn.Module):
    """Runs out of memory beyond a number of images, and can't bear images that begin with a pixel of value 1."""

    downsampling_factor = 4

    def __init__(self, largest_batch: int) -> None:
        super().__init__()
        self.largest_batch, self.batches = largest_batch, []

    def encode(self, x):
        self.batches.append(len(x))
        if len(x) > self.largest_batch:
            raise torch.OutOfMemoryError("no memory")
        if (x[:, 0, 0, 0] == 1).any():
            raise RuntimeError("can't bear it")
        return nn.functional.avg_pool2d(x, 4)

    def decode(self, z):
        return nn.functional.interpolate(z, scale_factor=4.0)


def batching(most_pixels: int = 2**20) -> Engine:
    """An engine that works by batches, as on a GPU."""
    return Engine("meta", most_pixels)


def _encoder(module: nn.Module) -> FeatureModels:
    return FeatureModels({"latent": Autoencoder(module, "fussy")}, batching())


def _batch(*first_pixels: int, size=(16, 24)) -> ImageBatch:
    images = []
    for index, value in enumerate(first_pixels):
        pixels = np.random.default_rng(index).integers(0, 250, (*size, 3), dtype=np.uint8)
        pixels[0, 0, 0] = value
        images.append(LoadedImage(ImageRef(f"k{index}", f"u{index}", "source"), DecodedImage(pixels), 0.0))
    return ImageBatch(tuple(images))


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost():
    model = _encoder(_Fussy(largest_batch=2))
    ((part, statistics),) = LatentStatisticsModelHandler(patch_size=1).run_inference(_batch(0, 0, 0, 0, 0), model)
    assert part == Part("source")
    assert statistics.count == 5 * 4 * 6
    assert max(model.by_feature["latent"]._module.batches[2:]) <= 3


def test_an_image_too_large_for_the_device_is_a_failure_by_name():
    model = _encoder(_Fussy(largest_batch=1))
    model.by_feature["latent"]._module.largest_batch = 0
    (failure,) = LatentStatisticsModelHandler(patch_size=1).run_inference(_batch(0), model)
    assert (failure.error_type, failure.stage) == ("out_of_memory", "encode")


def test_one_bad_image_costs_one_row_and_the_rest_of_its_batch_counts():
    model = _encoder(_Fussy(largest_batch=9))
    outcomes = LatentStatisticsModelHandler(patch_size=1).run_inference(_batch(0, 255, 0), model)
    assert [type(outcome) for outcome in outcomes] == [tuple, Failure]
    assert outcomes[0][1].count == 2 * 4 * 6
    assert outcomes[1].key == "k1"


def test_shapes_that_pad_differently_share_a_batch_without_mixing():
    model = _encoder(_Fussy(largest_batch=9))
    batch = ImageBatch((*_batch(0, size=(13, 24)), *_batch(0, size=(17, 20))))
    ((_, statistics),) = LatentStatisticsModelHandler(patch_size=1).run_inference(batch, model)
    assert statistics.count == 4 * 6 + 5 * 5


@pytest.fixture
def map_url(tmp_path, vae):
    autoencoder = load_autoencoder(vae)
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.random((1, 3, 64, 64), dtype=np.float32)) for _ in range(2)]
    source, target = (latent_statistics(autoencoder.encode(image)[0], 3) for image in images)
    url = str(tmp_path / "map.safetensors")
    write_map(fit(source, target, 3, vae, autoencoder.fingerprint), url)
    return url


def test_handlers_survive_pickling_and_still_work(map_url):
    handler = pickle.loads(pickle.dumps(TransportModelHandler(map_url, alphas=[0.0, 1.0])))
    batch = _batch(0, 0)
    results = handler.run_inference(batch, handler.load_model())
    assert [result.example.key for result in results] == ["k0", "k1"]
    for result, loaded in zip(results, batch, strict=True):
        assert isinstance(result.inference, TransportedImage)
        full, untouched = result.inference.pixels
        assert full.shape == untouched.shape == (16, 24, 3)
        np.testing.assert_array_equal(untouched, loaded.image.pixels)
        assert (full != untouched).any()


def test_pixels_are_weighed_without_pickling():
    assert TransportModelHandler("m").get_num_bytes(_batch(0, 0)) == 2 * 16 * 24 * 3


def test_a_map_is_refused_with_another_autoencoder(map_url):
    with pytest.raises(MapFileError, match="was fitted with the autoencoder"):
        TransportModelHandler(map_url, vae="default").load_model()


def test_a_map_never_makes_us_import_code(tmp_path, map_url):
    evil = read_map(map_url)
    evil = dataclasses.replace(evil, space=dataclasses.replace(evil.space, vae="os:getcwd"))
    url = str(tmp_path / "evil.safetensors")
    write_map(evil, url)
    with pytest.raises(MapFileError, match="which is code"):
        TransportModelHandler(url).load_model()


def _results(map_url, alphas=(0.0, 0.5), **options):
    handler = TransportModelHandler(map_url, alphas, precision="float32", options=TransportOptions(**options))
    (result,) = handler.run_inference(_batch(0, size=(64, 64)), handler.load_model())
    return result.inference


def test_interpolating_latents_agrees_with_pixels_at_the_ends_and_differs_between(map_url):
    pixels = _results(map_url, (0.0, 0.5)).pixels
    latents = _results(map_url, (0.0, 0.5, 1.0), interpolation="latents").pixels
    np.testing.assert_array_equal(latents[0], pixels[0])
    assert (latents[1] != pixels[1]).any()
    autoencoder = TransportModelHandler(map_url, precision="float32").load_model().autoencoder
    restored = _batch(0, size=(64, 64))[0].image.pixels
    tensor = torch.from_numpy(restored.transpose(2, 0, 1) / np.float32(255))[None]
    round_trip = autoencoder.decode(autoencoder.encode(tensor))[0].permute(1, 2, 0).numpy()
    assert np.abs(latents[2] / 255 - round_trip).max() < 0.6 / 255


def test_zero_shot_gives_an_image_the_targets_statistics_whatever_the_source_was(map_url):
    given = read_map(map_url)
    other = map_url.replace("map.", "other.")
    write_map(dataclasses.replace(given, statistics={**given.statistics, Part("source"): given.target}), other)
    one, two = (_results(url, zero_shot=True).pixels for url in (map_url, other))
    np.testing.assert_array_equal(one[0], two[0])
    assert (one[0] != _results(map_url).pixels[0]).any()


def test_zero_shot_refuses_an_image_without_patches(map_url):
    handler = TransportModelHandler(map_url, options=TransportOptions(zero_shot=True))
    (result,) = handler.run_inference(_batch(0, size=(2, 2)), handler.load_model())
    assert isinstance(result.inference, Failure)
    assert result.inference.error_type == "too_small"


def test_folding_weights_change_the_result(map_url):
    everything, middle, smooth = (
        _results(map_url, **options).pixels[0] for options in ({}, {"kernel_size": 1}, {"sigma": 0.5})
    )
    assert (everything != middle).any()
    assert (everything != smooth).any()
    np.testing.assert_array_equal(everything, _results(map_url, sigma=1e9).pixels[0])


def test_an_unknown_interpolation_is_a_mistake():
    with pytest.raises(UserError, match="interpolation spline"):
        TransportOptions(interpolation="spline")


class _Tight(nn.Module):
    """Runs out of memory beyond a number of pixels."""

    downsampling_factor = 4

    def __init__(self, most_pixels: int) -> None:
        super().__init__()
        self.most_pixels, self.largest = most_pixels, 0

    def encode(self, x):
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        if pixels > self.most_pixels:
            raise torch.OutOfMemoryError("no memory")
        self.largest = max(self.largest, pixels)
        return nn.functional.avg_pool2d(x, 4)

    def decode(self, z):
        return nn.functional.interpolate(z, scale_factor=4.0)


def _tight_model(most_pixels: int, budget: int = 2**21) -> TransportModel:
    rng = np.random.default_rng(0)
    source, target = (GaussianStatistics.of(rng.standard_normal((50, 27))) for _ in range(2))
    autoencoder = Autoencoder(_Tight(most_pixels), "tight")
    return TransportModel(autoencoder, {"": LatentTransport(TransportMap.fit(source, target), 3)}, batching(budget))


def test_an_image_that_does_not_fit_is_done_in_ever_smaller_tiles():
    batch = _batch(0, size=(1100, 900))
    roomy, tight = _tight_model(10**9), _tight_model(300_000)
    (whole,) = TransportModelHandler("m").run_inference(batch, roomy)
    (tiled,) = TransportModelHandler("m").run_inference(batch, tight)
    assert tight.autoencoder._module.largest <= 300_000
    difference = np.abs(whole.inference.pixels[0].astype(int) - tiled.inference.pixels[0])
    assert difference.max() <= 1  # this autoencoder sees nothing beyond its 4x4 squares
    (failure,) = TransportModelHandler("m").run_inference(batch, _tight_model(100_000))
    assert failure.inference.error_type == "out_of_memory"


def test_images_of_one_shape_are_not_worked_on_together_beyond_the_budget():
    budget = 2**18
    model = _tight_model(10**9, budget)
    predictions = TransportModelHandler("m").run_inference(_batch(0, 1, 2, size=(400, 400)), model)
    assert [p.inference.pixels[0].shape for p in predictions] == [(400, 400, 3)] * 3
    assert model.autoencoder._module.largest <= budget


@pytest.mark.parametrize("interpolation", ["pixels", "latents"])
def test_no_call_of_the_model_works_on_more_pixels_than_the_budget(interpolation):
    budget = 2**18
    model = _tight_model(10**9, budget)
    batcher = _BatchByPixelsDoFn(budget)
    batcher.setup()
    batcher.start_bundle()
    sizes = np.random.default_rng(1).integers(32, [1500, 2000], (40, 2))
    images = [_batch(0, size=size)[0]._replace(ref=ImageRef(f"{i}", "u")) for i, size in enumerate(sizes)]
    batches = [batch for image in images for batch in batcher.process(image)]
    batches += [windowed.value for windowed in batcher.finish_bundle()]
    handler = TransportModelHandler("m", (0.0, 0.5), options=TransportOptions(interpolation))
    results = {r.example.key: r.inference for batch in batches for r in handler.run_inference(batch, model)}
    assert model.autoencoder._module.largest <= budget
    for image in images:
        pixels = results[image.ref.key].pixels
        assert [p.shape for p in pixels] == [image.image.pixels.shape] * 2


def test_on_a_cpu_images_side_by_side_give_what_each_gives_alone(map_url):
    handler = TransportModelHandler(map_url, (0.0, 0.5), precision="float32")
    model = handler.load_model()
    sizes = [(40 + 8 * i, 64 + 20 * (i % 3)) for i in range(9)]
    images = [_batch(0, size=s)[0]._replace(ref=ImageRef(f"{i}", "u")) for i, s in enumerate(sizes)]
    with ThreadPoolExecutor(3, initializer=torch.set_num_threads, initargs=(1,)) as workers:
        model.engine.workers = workers
        together = handler.run_inference(ImageBatch(tuple(images)), model)
    alone = dataclasses.replace(model, engine=batching())
    expected = {i.ref.key: handler.run_inference(ImageBatch((i,)), alone)[0].inference.pixels for i in images}
    assert {result.example.key for result in together} == set(expected)
    for result in together:
        for a, b in zip(result.inference.pixels, expected[result.example.key], strict=True):
            assert np.abs(a.astype(int) - b).max() <= 1


def test_on_a_cpu_statistics_do_not_depend_on_what_images_share_a_batch_with(vae):
    handler = LatentStatisticsModelHandler(vae)
    latent = load_autoencoder(vae, precision="float32")
    images = [_batch(0, size=(40 + 8 * (i % 2), 64))[0] for i in range(6)]
    images = [image._replace(ref=ImageRef(f"{i}", "u", f"g{i}")) for i, image in enumerate(images)]
    with threads_of_one_core(2) as workers:
        engine = Engine("cpu", 2**20)
        engine.workers = workers
        models = FeatureModels({"latent": latent}, engine)
        together = dict(handler.run_inference(ImageBatch(tuple(images)), models))
        alone = dict(handler.run_inference(ImageBatch((image,)), models)[0] for image in images)
    assert sorted(together) == sorted(alone) == sorted(image.ref.part for image in images)
    for part, statistics in together.items():
        np.testing.assert_array_equal(statistics.mean, alone[part].mean)
        np.testing.assert_array_equal(statistics.scatter, alone[part].scatter)
