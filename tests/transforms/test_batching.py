"""Batches are bounded by pixels and hold one padded shape."""

import itertools

import numpy as np
import pytest

from ot_core import DecodedImage
from ot_core.hardware import chosen_device
from transforms.batching import _BatchByPixelsDoFn
from transforms.elements import ImageRef, LoadedImage


def _image(height: int, width: int) -> LoadedImage:
    return LoadedImage(ImageRef("k", "u"), DecodedImage(np.zeros((height, width, 3), np.uint8)), 0.0)


def _run(images, max_pixels):
    """Batches in order, with the most pixels that were ever waiting."""
    batcher = _BatchByPixelsDoFn(max_pixels)
    batcher.setup()
    batcher.start_bundle()
    batches, most_waiting, waiting = [], 0, 0
    for image in images:
        given = list(batcher.process(image))
        waiting += _pixels([image]) - sum(_pixels(batch) for batch in given)
        most_waiting = max(most_waiting, waiting)
        batches += given
    batches += [windowed.value for windowed in batcher.finish_bundle()]
    return batches, most_waiting


def _pixels(images):
    return sum(-(-i.image.pixels.shape[0] // 8) * 8 * (-(-i.image.pixels.shape[1] // 8) * 8) for i in images)


@pytest.mark.parametrize("max_pixels", [0, 64 * 64, 10 * 64 * 64])
def test_every_image_is_in_one_batch_that_respects_the_limit(max_pixels):
    sizes = [(64, 64), (57, 64), (200, 100), (8, 8), (64, 64)] * 20
    images = [_image(*size) for size in sizes]
    batches, most_waiting = _run(images, max_pixels)
    assert sorted(map(id, itertools.chain(*batches))) == sorted(map(id, images))
    for batch in batches:
        assert len(batch) == 1 or _pixels(batch) <= max_pixels
        assert len({(-(-i.image.pixels.shape[0] // 8), -(-i.image.pixels.shape[1] // 8)) for i in batch}) == 1
    assert most_waiting <= 4 * max_pixels


def test_zero_makes_every_image_its_own_batch():
    batches, _ = _run([_image(8, 8)] * 5, 0)
    assert [len(batch) for batch in batches] == [1] * 5


def test_what_waits_stays_bounded_when_every_image_has_another_shape():
    images = [_image(8 * (1 + i % 40), 8 * (1 + i // 40)) for i in range(1600)]
    _, most_waiting = _run(images, 40_000)
    assert most_waiting <= 4 * 40_000


def test_batches_fill_up_to_the_limit():
    batches, _ = _run([_image(64, 64)] * 10, 4 * 64 * 64)
    assert [len(batch) for batch in batches] == [4, 4, 2]


@pytest.mark.skipif(chosen_device() != "cpu", reason="a GPU batches images of one shape")
def test_on_a_cpu_batches_hold_any_shape_by_default():
    images = [_image(200 + 50 * (i % 5), 300) for i in range(60)]
    batches, most_waiting = _run(images, None)
    assert sorted(map(id, itertools.chain(*batches))) == sorted(map(id, images))
    assert max(_pixels(batch) for batch in batches) <= 2**21
    assert len(batches) < 5
    assert most_waiting <= 2**21
