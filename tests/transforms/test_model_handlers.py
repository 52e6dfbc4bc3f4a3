"""Handlers pickle, load once, and never let one image take its batch along."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from ot_core import DecodedImage, MapFileError, TransportMap, latent_statistics, read_map, write_map
from ot_core.autoencoder import Autoencoder
from transforms import LatentStatisticsModelHandler, TransportModelHandler
from transforms.elements import Failure, ImageBatch, ImageRef, LoadedImage, TransportedImage


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


def _batch(*first_pixels: int, size=(16, 24)) -> ImageBatch:
    images = []
    for index, value in enumerate(first_pixels):
        pixels = np.random.default_rng(index).integers(0, 250, (*size, 3), dtype=np.uint8)
        pixels[0, 0, 0] = value
        images.append(LoadedImage(ImageRef(f"k{index}", f"u{index}", "source"), DecodedImage(pixels), 0.0))
    return ImageBatch(tuple(images))


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost():
    model = Autoencoder(_Fussy(largest_batch=2), "fussy")
    ((group, statistics),) = LatentStatisticsModelHandler(patch_size=1).run_inference(_batch(0, 0, 0, 0, 0), model)
    assert group == "source"
    assert statistics.count == 5 * 4 * 6
    assert max(model._module.batches[2:]) <= 3


def test_an_image_too_large_for_the_device_is_a_failure_by_name():
    model = Autoencoder(_Fussy(largest_batch=1), "fussy")
    model._module.largest_batch = 0
    (failure,) = LatentStatisticsModelHandler(patch_size=1).run_inference(_batch(0), model)
    assert (failure.error_type, failure.stage) == ("out_of_memory", "encode")


def test_one_bad_image_costs_one_row_and_the_rest_of_its_batch_counts():
    model = Autoencoder(_Fussy(largest_batch=9), "fussy")
    outcomes = LatentStatisticsModelHandler(patch_size=1).run_inference(_batch(0, 255, 0), model)
    assert [type(outcome) for outcome in outcomes] == [tuple, Failure]
    assert outcomes[0][1].count == 2 * 4 * 6
    assert outcomes[1].key == "k1"


def test_shapes_that_pad_differently_share_a_batch_without_mixing():
    model = Autoencoder(_Fussy(largest_batch=9), "fussy")
    batch = ImageBatch((*_batch(0, size=(13, 24)).images, *_batch(0, size=(17, 20)).images))
    ((_, statistics),) = LatentStatisticsModelHandler(patch_size=1).run_inference(batch, model)
    assert statistics.count == 4 * 6 + 5 * 5


@pytest.fixture
def map_url(tmp_path, vae):
    autoencoder = LatentStatisticsModelHandler(vae).load_model()
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.random((1, 3, 64, 64), dtype=np.float32)) for _ in range(2)]
    source, target = (latent_statistics(autoencoder.encode(image)[0], 3) for image in images)
    url = str(tmp_path / "map.safetensors")
    write_map(TransportMap.fit(source, target, patch_size=3, vae=vae, vae_sha256=autoencoder.fingerprint), url)
    return url


def test_handlers_survive_pickling_and_still_work(map_url):
    handler = pickle.loads(pickle.dumps(TransportModelHandler(map_url, alphas=[0.0, 1.0])))
    batch = _batch(0, 0)
    results = handler.run_inference(batch, handler.load_model())
    assert [result.example.key for result in results] == ["k0", "k1"]
    for result, loaded in zip(results, batch.images, strict=True):
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
    evil = TransportMap(**{**evil.__dict__, "vae": "os:getcwd"})
    url = str(tmp_path / "evil.safetensors")
    write_map(evil, url)
    with pytest.raises(MapFileError, match="which is code"):
        TransportModelHandler(url).load_model()
