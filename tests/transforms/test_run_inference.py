"""Beam's RunInference takes each of our handlers by itself, on images in memory, with its own arguments."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pytest
import torch
from apache_beam.metrics import MetricsFilter
from apache_beam.ml.inference.base import RunInference
from apache_beam.testing.util import assert_that
from numpy.typing import NDArray

from ot_core import Cause, DecodedImage, Restorer, latent_statistics, load_autoencoder, write_map
from ot_core.device import DeviceLostError
from ot_core.engine import Engine
from ot_core.features import LatentFeatures
from tests.fitted_maps import fit
from transforms import (
    Failure,
    FeatureStatisticsModelHandler,
    ImageRef,
    LatentStatisticsModelHandler,
    LoadedImage,
    RestoreModelHandler,
    TransportedImage,
    TransportModelHandler,
)
from transforms.metrics import METRICS_NAMESPACE
from transforms.model_handlers import ImageModelHandler
from transforms.restore_images import RestoreModel

COUNT = 7


class _Case(NamedTuple):
    """A handler, our counter of what it does, and how to count the images in what inference gave."""

    make: Callable[..., ImageModelHandler]
    counter: str
    images: Callable[[list[Any]], int]


@pytest.fixture(scope="module")
def map_url(photo, tmp_path_factory) -> str:
    autoencoder = load_autoencoder("pixels")
    sides = [latent_statistics(autoencoder.encode(_tensor(photo(48, 48, seed=seed)))[0], 3) for seed in (1, 2)]
    url = str(tmp_path_factory.mktemp("maps") / "map.safetensors")
    write_map(fit(*sides, 3, "pixels", autoencoder.fingerprint), url)
    return url


def _tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def _restored(results: list[Any]) -> int:
    assert all(isinstance(result.inference, LoadedImage) for result in results)
    assert {result.inference.size for result in results} <= {(48, 64), (64, 48)}
    return len(results)


def _transported(results: list[Any]) -> int:
    assert all(isinstance(result.inference, TransportedImage) for result in results)
    return len(results)


def _in_statistics(results: list[Any]) -> int:
    pixels = sum(statistics.count for _, statistics in results)
    assert pixels % (24 * 32) == 0
    return pixels // (24 * 32)


@pytest.fixture(params=["transport", "latent", "features", "restore"])
def case(request, map_url) -> _Case:
    latent = {"latent": LatentFeatures("pixels", 1)}
    return {
        "transport": _Case(lambda **k: TransportModelHandler(map_url, **k), "images_transported", _transported),
        "latent": _Case(lambda **k: LatentStatisticsModelHandler("pixels", 1, **k), "images_encoded", _in_statistics),
        "features": _Case(lambda **k: FeatureStatisticsModelHandler(latent, **k), "images_encoded", _in_statistics),
        "restore": _Case(lambda **k: RestoreModelHandler("bicubic:2", **k), "images_restored", _restored),
    }[request.param]


def _run(case: _Case, images: list[Any], **arguments: Any) -> Any:
    """Runs inference on images; gives the job's metrics once what came out is counted."""

    def check(results: list[Any]) -> None:
        assert case.images(results) == len(images)

    pipeline = beam.Pipeline("FnApiRunner")
    assert_that(pipeline | beam.Create(images) | RunInference(case.make(**arguments)), check)
    result = pipeline.run()
    result.wait_until_finish()
    return result.metrics()


def _arrays(photo) -> list[NDArray[np.uint8]]:
    return [photo(24, 32, seed=index) if index % 2 else photo(32, 24, seed=index) for index in range(COUNT)]


def _loaded(photo) -> list[LoadedImage]:
    images = enumerate(_arrays(photo))
    return [LoadedImage(ImageRef(f"{i}", f"u{i}", "source"), DecodedImage(pixels), 0.0) for i, pixels in images]


def _counter(found: Any, name: str) -> int:
    counters = found.query(MetricsFilter().with_namespace(METRICS_NAMESPACE).with_name(name))["counters"]
    return sum(counter.committed for counter in counters)


def _distribution(found: Any, name: str) -> Any:
    (one,) = found.query(MetricsFilter().with_namespace(METRICS_NAMESPACE).with_name(name))["distributions"]
    return one.committed


@pytest.mark.parametrize("images", [_arrays, _loaded], ids=["arrays", "loaded"])
def test_images_in_memory_are_batched_by_beam_whose_metrics_count_images(case, images, photo):
    found = _run(case, images(photo), min_batch_size=2, max_batch_size=3)
    assert _counter(found, "num_inferences") == COUNT == _counter(found, case.counter)
    sizes = _distribution(found, "batch_size")
    assert (sizes.sum, sizes.max <= 3, sizes.count < COUNT) == (COUNT, True, True)
    weighed = _distribution(found, "inference_request_batch_byte_size")
    assert weighed.sum == COUNT * 24 * 32 * 3


def test_copies_of_the_model_are_shared_among_processes(case, photo):
    found = _run(case, _loaded(photo), model_copies=2)
    assert _counter(found, "num_inferences") == COUNT == _counter(found, case.counter)


def test_environment_variables_are_set_before_the_model_is_loaded(case, photo, monkeypatch):
    monkeypatch.setenv("DOT_TEST_OF_ENVIRONMENT", "before")
    handler, seen = case.make(env_vars={"DOT_TEST_OF_ENVIRONMENT": "set"}), []
    load = type(handler).load

    def watched(self: ImageModelHandler) -> Any:
        seen.append(os.environ["DOT_TEST_OF_ENVIRONMENT"])
        return load(self)

    monkeypatch.setattr(type(handler), "load", watched)
    _run(case, _arrays(photo)[:1], env_vars={"DOT_TEST_OF_ENVIRONMENT": "set"})
    assert seen == ["set"]


def test_the_arguments_of_batches_reach_beam(case):
    handler = case.make(min_batch_size=2, max_batch_size=3)
    assert handler.batch_elements_kwargs() == {"min_batch_size": 2, "max_batch_size": 3}
    assert case.make(model_copies=2).model_copies() == 2


class _Fussy(Restorer):
    """Raises an error for images that begin with a pixel of value 1, and for too many at once."""

    def __init__(self, error: Exception, most: int = 99) -> None:
        super().__init__("fussy", "0" * 64, alone=False)
        self.scale, self._error, self._most, self.batches = 1, error, most, []

    def _restored(self, images, max_pixels):
        self.batches.append(len(images))
        if len(images) > self._most or any(pixels[0, 0, 0] == 1 for pixels in images):
            raise self._error
        return images


def _predictions(restorer: Restorer, *first_pixels: int, device: str = "cuda") -> list[Any]:
    """What the handler gives for images; by batches, as on a GPU, unless the device is a CPU."""
    images = [np.full((16, 16, 3), first, np.uint8) for first in first_pixels]
    loaded = [LoadedImage(ImageRef(f"{i}", f"u{i}"), DecodedImage(image), 0.0) for i, image in enumerate(images)]
    handler = RestoreModelHandler("bicubic:1", device="cpu")
    model = RestoreModel(restorer, Engine("cpu" if device == "cpu" else "meta", 2**18))
    return [prediction.inference for prediction in handler.run_inference(loaded, model)]


@pytest.mark.parametrize("error", [ValueError("too\ndull"), KeyError("too dull"), FileNotFoundError("too dull")])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_an_error_of_the_restorer_costs_one_image_and_is_called_its(error, device):
    results = _predictions(_Fussy(error), 0, 0, 1, 0, device=device)
    (failure,) = [result for result in results if isinstance(result, Failure)]
    assert (failure.key, failure.stage, failure.error_type) == ("2", "restore", Cause.RESTORER_ERROR)
    assert failure.message.startswith(type(error).__name__)
    assert "too dull" in failure.message
    assert sorted(result.ref.key for result in results if isinstance(result, LoadedImage)) == ["0", "1", "3"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), MemoryError(), RuntimeError("CUDA out of memory")])
def test_a_restorer_that_runs_out_of_memory_gets_half_of_the_images(error):
    restorer = _Fussy(error, most=2)
    results = _predictions(restorer, *[0] * 8)
    assert all(isinstance(result, LoadedImage) for result in results)
    assert restorer.batches == [8, 4, 2, 2, 4, 2, 2]
    (failure,) = _predictions(_Fussy(error), 1)
    assert failure.error_type == Cause.OUT_OF_MEMORY


def test_a_device_lost_to_the_restorer_is_no_error_of_an_image():
    with pytest.raises(DeviceLostError):
        _predictions(_Fussy(RuntimeError("CUDA error: an illegal memory access was encountered")), 0, 1)
