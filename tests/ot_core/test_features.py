"""What is drawn from images to measure distances on."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from ot_core import Autoencoder, Cause, GaussianStatistics, ImageError, TransportMap, UserError, ZeroShotTransport
from ot_core import features as module
from ot_core.autoencoder import to_tensor
from ot_core.features import InceptionFeatures, LatentFeatures, PixelFeatures, read_weights


@pytest.mark.parametrize("band_values", [2**22, 4000])
def test_pixel_features_are_the_squares_side_by_side(photo, band_values, monkeypatch):
    monkeypatch.setattr(module, "_BAND_VALUES", band_values)
    pixels = photo(43, 57)
    (found,) = PixelFeatures().statistics([pixels], None)
    squares = [
        pixels[top : top + 8, left : left + 8].reshape(-1) / 255 for top in range(0, 40, 8) for left in range(0, 56, 8)
    ]
    expected = GaussianStatistics.of(squares)
    assert found.count == 5 * 7
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance(), expected.covariance(), rtol=1e-9, atol=1e-15)
    (of_floats,) = PixelFeatures().statistics([pixels.astype(np.float32) / 255], None)
    np.testing.assert_allclose(of_floats.mean, expected.mean, rtol=1e-6)


def test_an_image_smaller_than_a_square_has_no_pixel_features(photo):
    (found,) = PixelFeatures().statistics([photo(7, 100)], None)
    assert isinstance(found, ImageError)
    assert found.cause == "too_small"


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_weights_never_make_us_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Evil()))
    torch.save({"fc.weight": _Evil()}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(UserError, match="can't be read"):
            read_weights(str(tmp_path / name), "inception_weights")
    assert not (tmp_path / "evil").exists()


def test_weights_of_another_network_are_refused_in_one_line(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not torch-fidelity's network") as error:
        InceptionFeatures(str(tmp_path / "other.pth")).load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_image_that_is_encoded_to_anything_infinite_fails_by_that_name(photo, value):
    class Overflowing(nn.Module):
        downsampling_factor = 8

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x >= 1, value, x)[..., ::8, ::8]

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return z.repeat_interleave(8, -1).repeat_interleave(8, -2)

    bad = photo(32, 32)
    bad[0, 0] = 255
    autoencoder = Autoencoder(Overflowing(), "overflowing")
    good, failure = LatentFeatures().statistics([photo(32, 32, seed=1) // 2, bad], autoencoder)
    assert isinstance(good, GaussianStatistics)
    assert isinstance(failure, ImageError)
    assert failure.cause == Cause.NOT_FINITE
    own = TransportMap.fit(good, good)
    with pytest.raises(ImageError, match="NaN or infinity"):
        ZeroShotTransport(own, 3, good)(autoencoder.encode(to_tensor([bad], autoencoder)))
