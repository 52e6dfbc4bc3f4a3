"""A decoder's geometry, against decoders whose geometry is known."""

import numpy as np
import pytest
import torch
from torch import nn

from ot_core import Autoencoder, GaussianStatistics, TransportMap, decoder_geometry, load_autoencoder


class Linear(nn.Module):
    """A decoder with f = 2 that paints 6 x 6 pixels for every latent position, so that neighbours overlap."""

    downsampling_factor = 2

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kernel = nn.Parameter(0.01 * torch.randn(2, 3, 6, 6, generator=generator))

    def encode(self, x):
        return nn.functional.avg_pool2d(x, 2)[:, :2]

    def decode(self, z):
        return nn.functional.conv_transpose2d(z, self.kernel, stride=2, padding=2)


def statistics(dimension: int, scale: float = 1.0) -> GaussianStatistics:
    return GaussianStatistics.of(scale * np.random.default_rng(0).standard_normal((400, dimension)))


def test_of_a_linear_decoder_is_exact():
    model = Linear()
    geometry = decoder_geometry(Autoencoder(model, "linear"), statistics(18), patch_size=3)
    metric = geometry.metric
    rng = np.random.default_rng(1)
    changes = rng.standard_normal((20, 18))
    fields = torch.zeros(20, 2, 11, 11)
    fields[:, :, 4:7, 4:7] = torch.from_numpy(changes.reshape(20, 2, 3, 3)).float()
    with torch.no_grad():
        decoded = model.decode(fields).double()
    energies, colours = decoded.square().sum((1, 2, 3)).numpy(), decoded.sum((2, 3)).numpy()
    isotropic = 0.05 / 1.05
    predicted = np.einsum("nd,de,ne->n", changes, metric - isotropic * np.eye(18), changes)
    np.testing.assert_allclose(predicted / predicted.mean(), energies / energies.mean(), rtol=1e-3)
    linear = changes @ geometry.colour.T
    np.testing.assert_allclose(linear / np.abs(linear).mean(), colours / np.abs(colours).mean(), atol=1e-3)


def test_of_pixels_is_the_identity_and_the_mean_colour():
    geometry = decoder_geometry(load_autoencoder("pixels"), statistics(27, scale=0.1), patch_size=3)
    np.testing.assert_allclose(geometry.metric, np.eye(27), atol=1e-4)
    means = np.repeat(np.eye(3), 9, axis=1)
    np.testing.assert_allclose(geometry.colour / geometry.colour.max(), means, atol=1e-4)


@pytest.mark.parametrize("patch_size", [1, 3])
def test_is_positive_definite_and_the_same_in_every_run(patch_size, vae):
    autoencoder = load_autoencoder(vae)
    first, second = (decoder_geometry(autoencoder, statistics(4 * patch_size**2), patch_size) for _ in range(2))
    np.testing.assert_array_equal(first.metric, second.metric)
    np.testing.assert_array_equal(first.colour, second.colour)
    np.testing.assert_array_equal(first.metric, first.metric.T)
    assert np.linalg.eigvalsh(first.metric)[0] > 0.01
    assert np.trace(first.metric) == pytest.approx(len(first.metric))


def test_a_map_in_the_metric_of_the_default_autoencoder_changes_pixels_less_for_the_same_result():
    autoencoder = load_autoencoder()
    rng = np.random.default_rng(3)
    source, target = (
        GaussianStatistics.of(rng.standard_normal((500, 32)) @ rng.standard_normal((32, 32))) for _ in "st"
    )
    metric = decoder_geometry(autoencoder, target, patch_size=1).metric
    assert np.linalg.eigvalsh(metric)[0] > 0.01
    costs = []
    for choice in (metric, None):
        fitted = TransportMap.fit(source, target, metric=choice)
        np.testing.assert_allclose(
            fitted.matrix @ source.covariance() @ fitted.matrix.T, target.covariance(), rtol=1e-6
        )
        change = np.eye(32) - fitted.matrix
        costs.append(np.trace(change.T @ metric @ change @ source.covariance()))
    assert costs[0] < 0.95 * costs[1]
