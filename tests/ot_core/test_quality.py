"""Figures of images are those of torchmetrics, whatever the image's size, and they add."""

import math

import numpy as np
import pytest
import torch
import torchmetrics
import torchvision

from ot_core import UserError
from ot_core.quality import Lpips, QualityTotals, measure, ssim

#: The second is worked on in two bands, the third is as small as SSIM allows.
SIZES = [(64, 96), (1100, 1300), (6, 9)]


def _tensor(pixels) -> torch.Tensor:
    unit = pixels.astype(np.float32) / 255 if pixels.dtype == np.uint8 else pixels
    return torch.from_numpy(unit.transpose(2, 0, 1))[None]


def _pair(photo, height: int, width: int, seed: int = 0):
    reference = photo(height, width, seed=seed)
    noise = np.random.default_rng(seed).normal(0, 12 + 5 * seed, reference.shape)
    return reference, np.clip(reference + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_psnr_and_ssim_are_those_of_torchmetrics(photo, size, kind):
    reference, candidate = _pair(photo, *size)
    if kind is np.float32:
        reference, candidate = (x.astype(np.float32) / 255 for x in (reference, candidate))
    found = measure(reference, candidate)
    pair = _tensor(candidate), _tensor(reference)
    expected = torchmetrics.image.StructuralSimilarityIndexMeasure(data_range=1.0)(*pair)
    assert found.ssim == pytest.approx(float(expected), rel=1e-4)
    expected = torchmetrics.image.PeakSignalNoiseRatio(data_range=1.0)(*pair)
    assert found.psnr == pytest.approx(float(expected), rel=1e-4)


def test_totals_pool_as_torchmetrics_does_and_in_any_split(photo):
    pairs = [_pair(photo, 40 + 8 * seed, 64, seed) for seed in range(4)]
    psnr = torchmetrics.image.PeakSignalNoiseRatio(data_range=1.0)
    parts = []
    for reference, candidate in pairs:
        psnr.update(_tensor(candidate), _tensor(reference))
        parts.append(QualityTotals.of(measure(reference, candidate), reference.shape[0] * reference.shape[1]))
    total = QualityTotals.sum([QualityTotals.sum(parts[2:]), QualityTotals.sum([]), *parts[:2]])
    assert total.count == 4
    assert total.psnr_pooled == pytest.approx(float(psnr.compute()), rel=1e-4)
    assert total.psnr.value == pytest.approx(np.mean([measure(*pair).psnr for pair in pairs]), rel=1e-9)
    assert total.psnr.value != pytest.approx(total.psnr_pooled, rel=1e-3)
    assert total.lpips.value is None


def test_equal_images_have_infinite_psnr_and_images_too_small_for_ssim_have_none(photo):
    same = measure(photo(32, 32), photo(32, 32))
    assert same.psnr == math.inf
    assert same.ssim == pytest.approx(1)
    assert ssim(photo(5, 80), photo(5, 80, seed=1)) is None


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """Random weights where torchvision looks for its own, so that torchmetrics' LPIPS needs no network."""
    folder = tmp_path_factory.mktemp("torch") / "hub/checkpoints"
    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(torchvision.models.alexnet().state_dict(), folder / "alexnet-owt-7be5be79.pth")
    return folder / "alexnet-owt-7be5be79.pth"


def test_lpips_is_that_of_torchmetrics(photo, alexnet, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(alexnet.parents[2]))
    reference, candidate = _pair(photo, 70, 90)
    expected = torchmetrics.functional.image.learned_perceptual_image_patch_similarity(
        _tensor(candidate), _tensor(reference), net_type="alex", normalize=True
    )
    lpips = Lpips(str(alexnet))
    assert measure(reference, candidate, lpips).lpips == pytest.approx(float(expected), rel=1e-4)
    assert lpips(reference[:31], candidate[:31]) is None
    assert lpips(reference[:32, :32], candidate[:32, :32]) > 0


def test_weights_of_something_else_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="expected torchvision's AlexNet"):
        Lpips(str(tmp_path / "other.pth"))
