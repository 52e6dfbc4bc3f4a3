from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ot_core import GaussianStatistics, fold, latent_statistics, patches, unfold

folds = st.sampled_from([(1, 1), (3, 1), (3, 3), (5, 1), (5, 3), (5, 5)])


def latent(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


class TestUnfold:
    def test_order_within_a_patch_is_channels_then_rows_then_columns(self):
        z = torch.arange(2 * 4 * 5, dtype=torch.float64).view(1, 2, 4, 5)
        unfolded = unfold(z, 3)
        assert unfolded.shape == (1, 18, 2, 3)
        for i in range(2):
            for j in range(3):
                torch.testing.assert_close(
                    unfolded[0, :, i, j], z[0, :, i : i + 3, j : j + 3].flatten(), rtol=0, atol=0
                )

    def test_only_patches_inside_the_latent_count(self):
        assert unfold(latent(2, 3, 7, 9), 5).shape == (2, 75, 3, 5)


class TestFold:
    @settings(max_examples=40)
    @given(folds, st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.5, 1.0, float("inf")]))
    def test_folding_the_patches_of_a_latent_gives_the_latent(self, sizes, height, width, sigma):
        patch_size, kernel_size = sizes
        z = latent(2, 3, height, width)
        padded = torch.nn.functional.pad(z, (patch_size // 2,) * 4, mode="replicate")
        folded = fold(unfold(padded, patch_size), patch_size, kernel_size, sigma)
        torch.testing.assert_close(folded, z, rtol=1e-12, atol=1e-12)

    def test_default_is_the_plain_average_of_all_patches_that_cover_a_position(self):
        """Patches of constant value 0, 1, 2 ... along a row: each position averages itself and its neighbours."""
        values = torch.arange(5, dtype=torch.float64)
        folded = fold(values.expand(9, 5).reshape(1, 9, 1, 5), patch_size=3)
        torch.testing.assert_close(folded.flatten(), torch.tensor([0.5, 1, 2, 3, 3.5], dtype=torch.float64))

    def test_kernel_of_one_takes_the_centre_of_each_patch(self):
        z = latent(1, 2 * 25, 4, 6)
        centres = z.view(1, 2, 5, 5, 4, 6)[:, :, 2, 2]
        torch.testing.assert_close(fold(z, 5, kernel_size=1), centres, rtol=0, atol=0)

    def test_gaussian_weights_have_the_given_standard_deviation(self):
        weights = patches.folding_weights(3, sigma=1.0)
        assert float(weights[1, 1]) == 1
        assert float(weights[1, 2]) == pytest.approx(np.exp(-0.5))
        assert float(weights[0, 2]) == pytest.approx(np.exp(-1))

    def test_a_wide_gaussian_is_uniform(self):
        z = latent(1, 2 * 9, 5, 6)
        torch.testing.assert_close(fold(z, 3, sigma=1e9), fold(z, 3), rtol=1e-12, atol=1e-12)


class TestStatistics:
    @pytest.mark.parametrize("patch_size", [1, 3, 5])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
    def test_are_those_of_all_patches_in_float64(self, patch_size, dtype):
        z = latent(2, 12, 9).to(dtype)
        z[1] += 3 * z[0]
        everything = unfold(z[None].double(), patch_size).flatten(2)[0].T.numpy()
        expected, actual = GaussianStatistics.of(everything), latent_statistics(z, patch_size)
        assert actual.count == expected.count == (12 - patch_size + 1) * (9 - patch_size + 1)
        np.testing.assert_allclose(actual.mean, expected.mean, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(actual.scatter, expected.scatter, rtol=1e-12, atol=1e-11)

    @settings(max_examples=40)
    @given(st.integers(0, 3000), st.integers(5, 14), st.integers(5, 14))
    def test_dont_change_when_gathered_in_bands(self, band_values, height, width):
        z = latent(2, height, width)
        whole = latent_statistics(z, 3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(patches, "_BAND_VALUES", band_values)
            banded = latent_statistics(z, 3)
        assert banded.count == whole.count
        np.testing.assert_allclose(banded.mean, whole.mean, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(banded.scatter, whole.scatter, rtol=1e-12, atol=1e-11)

    def test_latent_as_large_as_a_patch_has_one(self):
        z = latent(2, 3, 3)
        statistics = latent_statistics(z, 3)
        assert statistics.count == 1
        np.testing.assert_allclose(statistics.mean, z.flatten().numpy(), rtol=1e-15, atol=1e-15)
        np.testing.assert_allclose(statistics.scatter, 0, atol=1e-14)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_latent_that_is_not_finite_is_refused(self, value):
        z = latent(2, 6, 6)
        z[1, 5, 5] = value
        with pytest.raises(ValueError, match="finite"):
            latent_statistics(z, 3)

    def test_no_digits_are_lost_far_from_zero(self):
        z = latent(2, 12, 9)
        near, far = latent_statistics(z, 3), latent_statistics(z + 2**20, 3)
        np.testing.assert_allclose(far.scatter, near.scatter, rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("shape", [(4, 2, 9), (4, 9, 2), (4, 1, 1)])
    def test_latent_smaller_than_a_patch_has_none(self, shape):
        assert latent_statistics(latent(*shape), 3) is None


class TestSpectrum:
    """What is compared of single images: energies by channel and band, less contrast."""

    @pytest.mark.parametrize(("p", "bands"), [(1, 1), (3, 3), (5, 3)])
    def test_is_of_every_image_that_statistics_are_of(self, p, bands):
        images = [latent_statistics(latent(2, 12, 11, seed=seed), p) for seed in range(3)]
        assert all(one.images.mean.shape == (2 * bands,) for one in images)
        total = GaussianStatistics.total(images)
        assert total.images.count == 3
        np.testing.assert_allclose(total.images.mean, np.mean([one.images.mean for one in images], axis=0))

    def test_is_the_same_at_any_contrast_and_mean(self):
        z = latent(2, 12, 11)
        one, other = (latent_statistics(x, 3).images.mean for x in (z, 7 * z + 3))
        np.testing.assert_allclose(one, other, atol=1e-9)
        assert one.sum() == pytest.approx(0, abs=1e-9)

    def test_is_the_logarithm_of_what_the_cosine_transform_of_the_patches_varies_by(self):
        z = latent(2, 12, 11)
        coefficients = scipy.fft.dctn(unfold(z[None], 3)[0].numpy().reshape(2, 3, 3, -1), axes=(1, 2), norm="ortho")
        energies = coefficients.var(-1)
        orders = np.minimum(np.add.outer(range(3), range(3)), 2)
        expected = np.log([[energies[c][orders == band].mean() for band in range(3)] for c in range(2)]).ravel()
        np.testing.assert_allclose(latent_statistics(z, 3).images.mean, expected - expected.mean(), atol=1e-9)

    def test_what_does_not_vary_has_a_finite_one(self):
        assert not latent_statistics(torch.ones(2, 9, 9), 3).images.mean.any()
        z = torch.ones(2, 9, 9)
        z[1] = latent(9, 9)
        assert np.isfinite(latent_statistics(z, 3).images.mean).all()
