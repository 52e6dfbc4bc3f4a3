from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ot_core import GaussianStatistics, LatentTransport, TransportMap, blend
from tests.ot_core.definition import by_definition


def samples(n: int, dimension: int, rank: int | None = None, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, dimension])
    rank = dimension if rank is None else rank
    return rng.standard_normal((n, rank)) @ rng.standard_normal((rank, dimension)) + rng.standard_normal(dimension)


def sides(channels: int, patch_size: int, rank: int | None = None) -> list[GaussianStatistics]:
    dimension = channels * patch_size**2
    return [GaussianStatistics.of(samples(400, dimension, *one)) for one in ((rank, 1), (None, 2))]


def fitted(channels: int, patch_size: int, rank: int | None = None) -> TransportMap:
    return TransportMap.fit(*sides(channels, patch_size, rank))


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


class TestDefinition:
    @pytest.mark.parametrize("sigma", [math.inf, 0.8])
    @pytest.mark.parametrize(("patch_size", "kernel_size"), [(1, 1), (3, 1), (3, 3), (5, 3), (5, 5)])
    @pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (6, 5)])
    def test_transport_is_the_definition_in_float64_and_near_it_in_float32(
        self, patch_size, kernel_size, sigma, height, width
    ):
        transport_map, z = fitted(2, patch_size), latents(1, 2, height, width)
        expected = by_definition(transport_map, patch_size, z[0].numpy(), kernel_size, sigma)
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            transport = LatentTransport(transport_map, patch_size, dtype=dtype, kernel_size=kernel_size, sigma=sigma)
            error = np.linalg.norm(transport(z)[0].numpy() - expected)
            assert error < tolerance * np.linalg.norm(expected)

    def test_kernel_is_the_whole_patch_and_uniform_by_default(self):
        transport_map, z = fitted(2, 3), latents(1, 2, 6, 5)
        default = LatentTransport(transport_map, 3, dtype=torch.float64)(z)[0].numpy()
        np.testing.assert_allclose(default, by_definition(transport_map, 3, z[0].numpy(), 3, math.inf), rtol=1e-9)

    @pytest.mark.parametrize("rank", [18, 10])
    def test_each_latent_of_a_batch_is_transported_by_itself(self, rank):
        transport, z = LatentTransport(fitted(2, 3, rank), 3, dtype=torch.float64), latents(4, 2, 5, 4)
        alone = torch.cat([transport(one[None]) for one in z])
        torch.testing.assert_close(transport(z), alone, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_result_has_the_dtype_and_shape_of_the_latents(self, dtype):
        z = latents(2, 2, 7, 3).to(dtype)
        transported = LatentTransport(fitted(2, 3), 3)(z)
        assert (transported.dtype, transported.shape) == (dtype, z.shape)

    def test_latents_are_left_as_they_were(self):
        z = latents(1, 2, 6, 6)
        before = z.clone()
        LatentTransport(fitted(2, 3, rank=10), 3, dtype=torch.float64)(z, ["key"])
        assert torch.equal(z, before)

    def test_map_onto_itself_changes_nothing(self):
        same = GaussianStatistics.of(samples(400, 18))
        z = latents(1, 2, 8, 8)
        transport = LatentTransport(TransportMap.fit(same, same), 3, dtype=torch.float64)
        torch.testing.assert_close(transport(z), z, rtol=1e-9, atol=1e-9)

    def test_latent_patches_of_the_source_get_the_moments_of_the_target(self):
        """With p = 1 nothing is averaged, so the promise holds exactly for the latent that was fitted."""
        z = latents(1, 3, 40, 50)
        z[:, 1] += 0.7 * z[:, 0] + 2
        source, target = GaussianStatistics.of(z[0].flatten(1).T.numpy()), GaussianStatistics.of(samples(400, 3))
        transport = LatentTransport(TransportMap.fit(source, target), 1, dtype=torch.float64)
        moved = GaussianStatistics.of(transport(z)[0].flatten(1).T.numpy())
        np.testing.assert_allclose(moved.mean, target.mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(moved.covariance(), target.covariance(), rtol=1e-9, atol=1e-9)


class TestNoiseOfASingularMap:
    def test_same_key_gives_the_same_bytes(self):
        z = latents(1, 2, 9, 7)
        first, second = (LatentTransport(fitted(2, 3, rank=10), 3)(z, ["a/b"]) for _ in range(2))
        assert first.numpy().tobytes() == second.numpy().tobytes()

    def test_different_keys_give_different_noise(self):
        transport, z = LatentTransport(fitted(2, 3, rank=10), 3), latents(1, 2, 9, 7).expand(2, -1, -1, -1)
        a, b = transport(z, ["a", "b"])
        assert not torch.equal(a, b)

    def test_noise_depends_on_the_key_not_on_the_place_in_the_batch(self):
        transport = LatentTransport(fitted(2, 3, rank=10), 3, dtype=torch.float64)
        z = latents(3, 2, 9, 7)
        together = transport(z, ["a", "b", "c"])
        for one, key, expected in zip(z, "abc", together, strict=True):
            torch.testing.assert_close(transport(one[None], [key])[0], expected, rtol=1e-12, atol=1e-12)

    def test_noise_doesnt_touch_the_global_random_state(self):
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        LatentTransport(fitted(2, 3, rank=10), 3)(latents(1, 2, 9, 7), ["a"])
        assert torch.equal(torch.rand(3), expected)

    def test_noise_is_fresh_at_every_position_with_the_promised_covariance(self):
        """With p = 1 the noise of neighbours isn't averaged; a latent that is the mean everywhere shows it alone."""
        transport_map = fitted(3, 1, rank=1)
        mean = torch.from_numpy(transport_map.source_mean).view(1, 3, 1, 1).expand(1, 3, 200, 300)
        noise = LatentTransport(transport_map, 1, dtype=torch.float64)(mean, ["key"])[0].flatten(1).numpy()
        expected = transport_map.noise_covariance
        scale = np.linalg.norm(expected)
        assert np.linalg.norm(np.cov(noise) - expected) < 0.02 * scale
        assert np.abs(noise.mean(axis=1) - transport_map.target_mean).max() < 0.02 * math.sqrt(scale)
        centred = noise - noise.mean(axis=1, keepdims=True)
        neighbours = centred[:, 1:] @ centred[:, :-1].T / (noise.shape[1] - 1)
        assert np.linalg.norm(neighbours) < 0.02 * scale

    def test_transported_source_has_the_covariance_of_the_target(self):
        transport_map = fitted(3, 1, rank=1)
        source, target = (statistics.covariance() for statistics in sides(3, 1, rank=1))
        x = np.random.default_rng(5).multivariate_normal(transport_map.source_mean, source, 60_000, method="eigh")
        z = torch.from_numpy(x.T.reshape(1, 3, 200, 300).copy())
        moved = LatentTransport(transport_map, 1, dtype=torch.float64)(z, ["key"])[0].flatten(1).numpy()
        without_noise = transport_map.matrix @ source @ transport_map.matrix.T
        assert np.linalg.norm(np.cov(moved) - target) < 0.03 * np.linalg.norm(target)
        assert np.linalg.norm(without_noise - target) > 0.05 * np.linalg.norm(target)

    def test_a_batch_needs_one_key_for_each_latent(self):
        with pytest.raises(ValueError, match="zip"):
            LatentTransport(fitted(2, 3, rank=10), 3)(latents(2, 2, 5, 5), ["only one"])


def blended(restored: np.ndarray, transported: np.ndarray, alpha: float) -> np.ndarray:
    unit = restored / np.float32(255) if restored.dtype == np.uint8 else restored
    return blend(torch.from_numpy(unit), torch.from_numpy(transported), alpha).numpy()


class TestBlend:
    restored = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)

    def transported(self) -> np.ndarray:
        return np.random.default_rng(0).uniform(0, 1, self.restored.shape).astype(np.float32)

    def test_alpha_one_is_the_restored_image_exactly(self):
        np.testing.assert_array_equal(blended(self.restored, self.transported(), 1.0), self.restored)

    def test_alpha_zero_is_the_transported_image_rounded_to_8_bits(self):
        transported = self.transported()
        result = blended(self.restored, transported, 0.0)
        assert result.dtype == np.uint8
        assert np.abs(result / 255 - transported).max() <= 0.5 / 255 + 1e-6

    @given(st.floats(-1, 2), st.integers(0, 255), st.floats(0, 1, width=32))
    def test_any_alpha_interpolates_or_extrapolates_and_clamps(self, alpha, level, value):
        restored = np.full((1, 1, 3), level, np.uint8)
        result = blended(restored, np.full((1, 1, 3), value, np.float32), alpha)
        exact = np.clip(alpha * level + (1 - alpha) * value * 255, 0, 255)
        assert np.abs(result - exact).max() <= 0.5 + 1e-3

    def test_extrapolation_clamps_instead_of_wrapping_around(self):
        black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
        half = np.full((1, 1, 3), 0.5, np.float32)
        np.testing.assert_array_equal(blended(white, half, 2.0), white)
        np.testing.assert_array_equal(blended(black, half, 2.0), black)
        np.testing.assert_array_equal(blended(black, half, -1.0), white)

    def test_image_of_more_than_8_bits_is_blended_in_full_precision(self):
        restored = np.full((1, 1, 3), 100.4 / 255, np.float32)
        transported = np.full((1, 1, 3), 102.4 / 255, np.float32)
        assert blended(restored, transported, 0.5).tolist() == [[[101, 101, 101]]]
        assert blended(restored, transported, 0.9).tolist() == [[[101, 101, 101]]]
        assert blended(restored, transported, 1.0).tolist() == [[[100, 100, 100]]]
