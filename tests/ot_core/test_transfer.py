"""Pixels arrive on a device as the mathematics wants them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ot_core.transfer import fetched, sent, stacked, unit


def _padded(pixels: np.ndarray, height: int, width: int) -> torch.Tensor:
    x = torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255 if pixels.dtype == np.uint8 else 1))[None]
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]), mode="replicate")


def test_images_are_padded_by_replication_and_scaled(photo):
    images = [photo(13, 9, seed=0), photo(16, 16, seed=1), photo(9, 12, seed=2)]
    batch = stacked(images, 16, 16)
    assert batch.dtype == torch.uint8
    assert torch.equal(unit(batch), torch.cat([_padded(image, 16, 16) for image in images]))


def test_one_exact_image_makes_the_batch_exact(photo):
    images = [photo(8, 8), photo(8, 6).astype(np.float32) / 255 + np.float32(1e-4)]
    batch = stacked(images, 8, 8)
    assert batch.dtype == torch.float32
    assert torch.equal(unit(batch), torch.cat([_padded(image, 8, 8) for image in images]))


def test_an_image_of_that_size_is_not_copied(photo):
    pixels = photo(8, 8)
    assert np.shares_memory(stacked([pixels], 8, 8).numpy(), pixels)


def test_what_cannot_be_written_to_is_taken_all_the_same(photo):
    pixels = photo(8, 8)
    pixels.flags.writeable = False
    assert np.array_equal(stacked([pixels], 8, 8)[0].numpy(), pixels)


def test_there_and_back(photo):
    images = [photo(8, 8, seed=seed) for seed in range(3)]
    there = sent(stacked(images, 8, 8), torch.device("cpu"))
    assert np.array_equal(fetched(there)(), np.stack(images))


@pytest.mark.parametrize("count", [1, 2])
def test_pixels_are_taken_whatever_the_order_in_memory(photo, count):
    images = [photo(8, 8, seed=seed)[:, ::-1, ::-1] for seed in range(count)]
    assert np.array_equal(stacked(images, 8, 8).numpy(), np.stack(images))
