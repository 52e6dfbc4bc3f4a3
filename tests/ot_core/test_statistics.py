from __future__ import annotations

import operator
import pickle
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ot_core import GaussianStatistics, read_map, write_map
from tests.fitted_maps import fit


def relative(actual, expected) -> float:
    return float(np.linalg.norm(np.subtract(actual, expected)) / max(np.linalg.norm(expected), 1e-300))


@st.composite
def samples_and_splits(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray]]:
    """Correlated samples (n, D), and the same samples split into shuffled parts."""
    n, dimension = draw(st.integers(2, 60)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale, shift = 10.0 ** draw(st.integers(-6, 6)), draw(st.sampled_from([0.0, 1.0, 100.0]))
    x = scale * (rng.standard_normal((n, dimension)) @ rng.standard_normal((dimension, dimension)) + shift)
    cuts = sorted(draw(st.sets(st.integers(1, n - 1), max_size=12)))
    parts = np.split(x[rng.permutation(n)], cuts)
    return x, draw(st.permutations(parts))


class TestMerging:
    @given(samples_and_splits())
    def test_the_total_of_many_equals_the_whole_and_single_vectors_need_no_scatter(self, case):
        x, parts = case
        singles = [GaussianStatistics.single(vector) for vector in parts[0]]
        total = GaussianStatistics.total([*singles, *map(GaussianStatistics.of, parts[1:])])
        whole = GaussianStatistics.of(x)
        assert total.count == whole.count
        assert relative(total.mean, whole.mean) < 1e-12
        assert relative(total.scatter, whole.scatter) < 1e-12

    def test_the_total_of_different_dimensions_is_refused(self):
        parts = [GaussianStatistics.single([1.0]), GaussianStatistics.single([1.0, 2.0])]
        with pytest.raises(ValueError, match="don't add"):
            GaussianStatistics.total(parts)

    @given(samples_and_splits())
    def test_merging_in_any_split_and_order_equals_the_whole(self, case):
        x, parts = case
        whole = GaussianStatistics.of(x)
        merged = reduce(operator.add, map(GaussianStatistics.of, parts))
        assert merged.count == whole.count
        assert relative(merged.mean, whole.mean) < 1e-12
        assert relative(merged.scatter, whole.scatter) < 1e-12

    @given(samples_and_splits())
    def test_merging_as_a_tree_equals_merging_in_a_row(self, case):
        parts = [GaussianStatistics.of(part) for part in case[1]]
        row = reduce(operator.add, parts)
        while len(parts) > 1:
            parts = [reduce(operator.add, parts[i : i + 2]) for i in range(0, len(parts), 2)]
        assert parts[0].count == row.count
        assert relative(parts[0].mean, row.mean) < 1e-12
        assert relative(parts[0].scatter, row.scatter) < 1e-12

    def test_different_dimensions_dont_add(self):
        with pytest.raises(ValueError, match="dimension 2 and 3"):
            GaussianStatistics.of(np.ones((4, 2))) + GaussianStatistics.of(np.ones((4, 3)))

    def test_adding_anything_else_is_a_type_error(self):
        with pytest.raises(TypeError):
            GaussianStatistics.of(np.ones((4, 2))) + 1


class TestDefinition:
    @given(samples_and_splits())
    def test_mean_and_unbiased_covariance(self, case):
        x, _ = case
        statistics = GaussianStatistics.of(x)
        assert statistics.dimension == x.shape[1]
        assert relative(statistics.mean, x.mean(axis=0)) < 1e-12
        assert relative(statistics.covariance(), np.atleast_2d(np.cov(x.T))) < 1e-11

    @given(samples_and_splits())
    def test_scatter_is_exactly_symmetric(self, case):
        scatter = reduce(operator.add, map(GaussianStatistics.of, case[1])).scatter
        np.testing.assert_array_equal(scatter, scatter.T)

    def test_float32_samples_are_multiplied_in_float64(self):
        x = np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32)
        assert relative(GaussianStatistics.of(x).covariance(), np.cov(x.T.astype(np.float64))) < 1e-13

    @pytest.mark.parametrize(
        "samples",
        [np.zeros((0, 3)), np.zeros(3), np.zeros((2, 2, 2)), [[1.0, np.nan]], [[np.inf, 1.0], [0.0, 1.0]]],
        ids=["none", "a vector", "three axes", "NaN", "infinity"],
    )
    def test_refuses_what_has_no_finite_statistics(self, samples):
        with pytest.raises(ValueError, match="samples: expected"):
            GaussianStatistics.of(samples)

    def test_one_vector_has_a_mean_but_no_covariance(self):
        one = GaussianStatistics.of([[1.0, 2.0]])
        np.testing.assert_array_equal(one.mean, [1.0, 2.0])
        with pytest.raises(ValueError, match="at least 2 vectors, got 1"):
            one.covariance()


class TestDigits:
    """Data of spread 1 about a mean of 10^4: adding the mean changes no digit of the data, nor of the covariance."""

    shift = 1e4

    @pytest.fixture(scope="class")
    def centred(self) -> np.ndarray:
        """Spread 1, in steps of 2^-30, so that the sum with the shift is exact."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((20_000, 6)) @ np.linalg.cholesky(0.5 + 0.5 * np.eye(6)).T
        x = np.rint(x * 2**30) / 2**30
        np.testing.assert_array_equal((x + self.shift) - self.shift, x)
        return x

    @pytest.fixture(scope="class")
    def covariance(self, centred: np.ndarray) -> np.ndarray:
        """Of the unshifted data, in extended precision."""
        x = centred.astype(np.longdouble)
        x = x - x.mean(axis=0)
        return (x.T @ x / (len(x) - 1)).astype(np.float64)

    def test_a_large_mean_costs_no_digits(self, centred, covariance):
        assert relative(GaussianStatistics.of(centred + self.shift).covariance(), covariance) < 1e-11

    @pytest.mark.parametrize("parts", [2, 100, 5000])
    def test_nor_when_merged_from_many_parts(self, centred, covariance, parts):
        pieces = map(GaussianStatistics.of, np.array_split(centred + self.shift, parts))
        assert relative(reduce(operator.add, pieces).covariance(), covariance) < 1e-11

    def test_nor_when_parts_have_different_means(self, centred, covariance):
        """Sorted parts: the spread lies between the parts, not within them."""
        x = centred[np.argsort(centred[:, 0])] + self.shift
        pieces = map(GaussianStatistics.of, np.array_split(x, 100))
        assert relative(reduce(operator.add, pieces).covariance(), covariance) < 1e-11

    def test_nor_through_a_map_file(self, centred, covariance, tmp_path: Path):
        url = str(tmp_path / "map.safetensors")
        halves = [reduce(operator.add, map(GaussianStatistics.of, np.array_split(centred + self.shift, 100)))] * 2
        write_map(fit(*halves, 1), url)
        read = read_map(url)
        assert relative(read.source.covariance(), covariance) < 1e-11
        assert relative((read.source + read.target).scatter, 2 * covariance * (len(centred) - 1)) < 1e-11

    def test_the_mean_itself_is_rounded_once(self, centred):
        mean = GaussianStatistics.of(centred + self.shift).mean
        exact = (centred.astype(np.longdouble).mean(axis=0) + self.shift).astype(np.float64)
        np.testing.assert_allclose(mean, exact, rtol=2.0**-52)


def _of_images(*values: float) -> GaussianStatistics:
    """Of as many images of two vectors each, and of one number for each."""
    of = [replace(GaussianStatistics.of([[v, 1], [2 * v, v]]), images=GaussianStatistics.single([v])) for v in values]
    return GaussianStatistics.total(of)


def test_statistics_over_the_images_add_with_those_of_their_vectors():
    for total in (_of_images(1, 2, 4, 9), _of_images(1, 2) + _of_images(4, 9), _of_images(9) + _of_images(4, 2, 1)):
        assert total.count == 8
        assert total.images.count == 4
        assert total.images.mean == pytest.approx([4])
        assert total.images.scatter == pytest.approx(np.array([[9 + 4 + 0 + 25]]))


def test_images_are_unknown_of_a_sum_with_any_of_unknown_images():
    unknown = GaussianStatistics.of([[1.0, 2.0]])
    assert (unknown + _of_images(1)).images is (_of_images(1) + unknown).images is None
    assert GaussianStatistics.total([_of_images(1), unknown, _of_images(2)]).images is None


def test_half_of_the_scatter_is_pickled_and_it_comes_back_exactly():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, 200)) @ rng.standard_normal((200, 200))
    whole = replace(GaussianStatistics.of(vectors), images=_of_images(1, 2).images)
    pickled = pickle.dumps(whole)
    assert len(pickled) < 0.52 * whole.scatter.nbytes
    back = pickle.loads(pickled)
    assert (back.count, back.images.count) == (50, 2)
    np.testing.assert_array_equal(back.mean, whole.mean)
    np.testing.assert_array_equal(back.scatter, whole.scatter)
    np.testing.assert_array_equal(back.images.scatter, whole.images.scatter)
    single = GaussianStatistics.single(np.arange(1000.0))
    assert len(pickle.dumps(single)) < 9000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(single)).scatter, single.scatter)
