"""The algebra of the map between two Gaussians."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ot_core import FittedMap, GaussianStatistics, LatentSpace, Part, TransportMap, gelbrich_distance_squared
from ot_core.transport_map import matched

COUNT = 1001
seeds = st.integers(0, 2**32 - 1)
dimensions = st.integers(1, 12)


def gaussian(mean, covariance) -> GaussianStatistics:
    return GaussianStatistics(COUNT, np.asarray(mean, float), np.asarray(covariance, float) * (COUNT - 1))


def orthogonal(rng: np.random.Generator, dimension: int) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((dimension, dimension)))
    return q * np.sign(np.diag(r))


def random_gaussian(seed: int | list[int], dimension: int, rank: int | None = None) -> GaussianStatistics:
    """Eigenvalues from 0.1 to 10, of which all but the first `rank` are zero; by default none."""
    rng = np.random.default_rng(seed)
    values = 10 ** rng.uniform(-1, 1, dimension)
    if rank is not None:
        values[rank:] = 0
    q = orthogonal(rng, dimension)
    return gaussian(rng.normal(0, 3, dimension), (q * values) @ q.T)


def fit(source: GaussianStatistics, target: GaussianStatistics) -> TransportMap:
    return TransportMap.fit(source, target)


def relative(actual, expected) -> float:
    return float(np.linalg.norm(np.subtract(actual, expected)) / np.linalg.norm(expected))


def nearly(distance: float, *between: GaussianStatistics, digits: int = 9) -> object:
    """A distance up to the rounding of what it is a difference of; roots of zero halve the digits."""
    scale = sum(np.trace(g.covariance()) + np.sum(g.mean**2) for g in between)
    return pytest.approx(distance, abs=10.0**-digits * scale)


def perturbed(statistics: GaussianStatistics, seed: int) -> GaussianStatistics:
    """As sums in another order have it: each product off by up to half a unit in its last place."""
    noise = np.random.default_rng(seed).uniform(-1, 1, statistics.scatter.shape) * 2.0**-53
    scatter = statistics.scatter * (1 + np.tril(noise) + np.tril(noise, -1).T)
    return GaussianStatistics(statistics.count, statistics.mean, scatter)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[GaussianStatistics, GaussianStatistics]:
    """Two different ones of the same dimension."""
    seed, dimension = draw(seeds), draw(dimensions)
    return random_gaussian([seed, 0], dimension), random_gaussian([seed, 1], dimension)


class TestMap:
    @pytest.mark.parametrize("metric", [False, True])
    def test_rounding_of_the_statistics_is_not_magnified(self, metric):
        """The covariances of latents of photographs have such eigenvalues."""
        rng, values = np.random.default_rng(0), np.geomspace(1, 10**-4.5, 60)
        bases = [orthogonal(rng, 60) for _ in range(3)]
        source, target, cost = (gaussian(np.zeros(60), (q * values) @ q.T) for q in bases)
        known = {"metric": cost.covariance() + 0.01 * np.eye(60)} if metric else {}
        matrix = TransportMap.fit(source, target, **known).matrix
        other = TransportMap.fit(perturbed(source, 1), perturbed(target, 2), **known).matrix
        assert 0 < np.abs(other - matrix).max() < 1e-12 * np.abs(matrix).max()

    @given(pairs())
    def test_carries_the_source_covariance_to_the_target_covariance(self, pair):
        source, target = pair
        matrix = fit(source, target).matrix
        assert relative(matrix @ source.covariance() @ matrix.T, target.covariance()) < 1e-9

    @given(pairs())
    def test_carries_the_source_mean_to_the_target_mean(self, pair):
        source, target = pair
        mapped = fit(source, target)(source.mean[None])[0]
        np.testing.assert_array_equal(mapped, target.mean)

    @given(pairs())
    def test_is_symmetric_and_positive_semi_definite(self, pair):
        """Which makes it the optimal one among the maps that carry the one Gaussian to the other."""
        transport_map = fit(*pair)
        np.testing.assert_array_equal(transport_map.matrix, transport_map.matrix.T)
        values = np.linalg.eigvalsh(transport_map.matrix)
        assert values[0] >= -1e-12 * values[-1]
        assert transport_map.noise_covariance is None

    @given(seeds, dimensions)
    def test_is_the_identity_when_source_equals_target(self, seed, dimension):
        both = random_gaussian(seed, dimension)
        assert relative(fit(both, both).matrix, np.eye(dimension)) < 1e-9

    @given(pairs())
    def test_of_swapped_sides_is_its_inverse(self, pair):
        source, target = pair
        there, back = fit(source, target).matrix, fit(target, source).matrix
        assert relative(back @ there, np.eye(len(there))) < 1e-9

    @given(pairs())
    def test_mean_squared_displacement_is_the_distance(self, pair):
        """E |T(x - ms) + mt - x|^2 = |ms - mt|^2 + tr((T - I) Ks (T - I)^T)."""
        source, target = pair
        transport_map = fit(source, target)
        step = transport_map.matrix - np.eye(source.dimension)
        cost = np.sum((source.mean - target.mean) ** 2) + np.trace(step @ source.covariance() @ step.T)
        assert transport_map.distance_squared(source, target) == nearly(cost, source, target)

    @given(seeds, dimensions)
    def test_between_commuting_covariances_scales_each_axis(self, seed, dimension):
        rng = np.random.default_rng(seed)
        ks, kt = 10 ** rng.uniform(-2, 2, (2, dimension))
        mean_s, mean_t = rng.standard_normal((2, dimension))
        source, target = gaussian(mean_s, np.diag(ks)), gaussian(mean_t, np.diag(kt))
        assert relative(fit(source, target).matrix, np.diag(np.sqrt(kt / ks))) < 1e-9
        closed_form = np.sum((mean_s - mean_t) ** 2) + np.sum((np.sqrt(ks) - np.sqrt(kt)) ** 2)
        assert gelbrich_distance_squared(source, target) == nearly(closed_form, source, target)

    def test_carries_samples_to_samples_of_the_target_moments(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((500, 4)) @ rng.standard_normal((4, 4)) + 3
        y = rng.standard_normal((700, 4)) @ rng.standard_normal((4, 4)) - 5
        mapped = fit(GaussianStatistics.of(x), GaussianStatistics.of(y))(x)
        assert relative(mapped.mean(axis=0), y.mean(axis=0)) < 1e-12
        assert relative(np.cov(mapped.T), np.cov(y.T)) < 1e-9


class TestSingularSource:
    @given(seeds, st.integers(2, 12), st.data())
    def test_noise_adds_what_the_map_cant_carry(self, seed, dimension, data):
        rank = data.draw(st.integers(0, dimension - 1))
        source, target = random_gaussian([seed, 0], dimension, rank), random_gaussian([seed, 1], dimension)
        transport_map = fit(source, target)
        carried = transport_map.matrix @ source.covariance() @ transport_map.matrix.T
        assert relative(carried + transport_map.noise_covariance, target.covariance()) < 1e-9

    @given(seeds, st.integers(2, 12), st.data())
    def test_noise_covariance_is_a_covariance_of_the_missing_rank(self, seed, dimension, data):
        rank = data.draw(st.integers(0, dimension - 1))
        source, target = random_gaussian([seed, 0], dimension, rank), random_gaussian([seed, 1], dimension)
        noise = fit(source, target).noise_covariance
        values = np.linalg.eigvalsh(noise)
        largest = np.linalg.eigvalsh(target.covariance())[-1]
        np.testing.assert_allclose(noise, noise.T, atol=1e-12 * largest)
        assert values[0] >= -1e-9 * largest
        assert np.abs(values[:rank]).max(initial=0) < 1e-9 * largest

    @given(seeds, st.integers(2, 12), st.data())
    def test_distance_is_the_cost_of_map_and_noise(self, seed, dimension, data):
        rank = data.draw(st.integers(0, dimension - 1))
        source, target = random_gaussian([seed, 0], dimension, rank), random_gaussian([seed, 1], dimension)
        transport_map = fit(source, target)
        step = transport_map.matrix - np.eye(dimension)
        cost = np.sum((source.mean - target.mean) ** 2) + np.trace(step @ source.covariance() @ step.T)
        cost += np.trace(transport_map.noise_covariance)
        assert transport_map.distance_squared(source, target) == nearly(cost, source, target, digits=7)

    def test_fewer_vectors_than_dimensions_make_one(self):
        rng = np.random.default_rng(0)
        source = GaussianStatistics.of(rng.standard_normal((5, 8)))
        target = GaussianStatistics.of(rng.standard_normal((100, 8)))
        transport_map = fit(source, target)
        assert transport_map.noise_covariance is not None
        assert np.linalg.matrix_rank(transport_map.noise_covariance, tol=1e-9) == 8 - 4


class TestDistance:
    @given(pairs())
    def test_is_symmetric(self, pair):
        assert gelbrich_distance_squared(*pair) == nearly(gelbrich_distance_squared(*pair[::-1]), *pair)

    @given(pairs(), seeds)
    def test_doesnt_change_under_a_common_rotation_and_shift(self, pair, seed):
        rng = np.random.default_rng(seed)
        rotation, shift = orthogonal(rng, pair[0].dimension), rng.normal(0, 10, pair[0].dimension)
        moved = [gaussian(rotation @ g.mean + shift, rotation @ g.covariance() @ rotation.T) for g in pair]
        assert gelbrich_distance_squared(*moved) == nearly(gelbrich_distance_squared(*pair), *pair)

    @given(seeds, dimensions)
    def test_is_zero_between_equals_and_never_negative(self, seed, dimension):
        both = random_gaussian(seed, dimension)
        assert 0 <= gelbrich_distance_squared(both, both) < 1e-12 * np.trace(both.covariance())

    @given(pairs())
    def test_is_positive_between_different_gaussians(self, pair):
        source, target = pair
        assert gelbrich_distance_squared(source, target) > 0

    @given(seeds, dimensions)
    def test_its_root_obeys_the_triangle_inequality(self, seed, dimension):
        a, b, c = (random_gaussian([seed, i], dimension) for i in range(3))
        ab, bc, ac = (gelbrich_distance_squared(*pair) ** 0.5 for pair in ((a, b), (b, c), (a, c)))
        assert ac <= (ab + bc) * (1 + 1e-9)

    def test_between_equal_covariances_is_that_of_the_means(self):
        covariance = random_gaussian(0, 3).covariance()
        a, b = gaussian([0, 0, 0], covariance), gaussian([3, 4, 12], covariance)
        assert gelbrich_distance_squared(a, b) == pytest.approx(169)


class TestRefusals:
    def test_different_dimensions(self):
        with pytest.raises(ValueError, match="source has dimension 9, target 18"):
            TransportMap.fit(random_gaussian(0, 9), random_gaussian(0, 18))

    def test_a_space_that_doesnt_suit_the_statistics(self):
        sides = {Part("source"): random_gaussian(0, 10), Part("target"): random_gaussian(1, 10)}
        with pytest.raises(ValueError, match="source has dimension 10, expected 9"):
            FittedMap.fit(sides, LatentSpace(3, 1))

    @pytest.mark.parametrize("patch_size", [-1, 0, 2])
    def test_a_patch_size_that_isnt_odd(self, patch_size):
        with pytest.raises(ValueError, match=f"patch_size {patch_size}: expected a positive odd number"):
            LatentSpace(patch_size, 4)

    def test_a_side_of_one_vector(self):
        one = GaussianStatistics.of(np.ones((1, 4)))
        with pytest.raises(ValueError, match="at least 2 vectors"):
            TransportMap.fit(one, random_gaussian(0, 4))


class TestMetric:
    """A map whose cost is measured by a metric other than the identity."""

    @given(pairs(), seeds)
    def test_still_carries_the_source_to_the_target(self, pair, seed):
        source, target = pair
        metric = random_gaussian(seed, source.dimension).covariance()
        matrix = TransportMap.fit(source, target, metric=metric).matrix
        assert relative(matrix @ source.covariance() @ matrix.T, target.covariance()) < 1e-9

    @given(pairs(), seeds)
    def test_costs_no_more_in_it_than_the_map_in_another(self, pair, seed):
        source, target = pair
        metric = random_gaussian(seed, source.dimension).covariance()

        def cost(fitted: TransportMap) -> float:
            change = fitted.matrix - np.eye(source.dimension)
            return float(np.trace(change.T @ metric @ change @ source.covariance()))

        assert cost(TransportMap.fit(source, target, metric=metric)) <= cost(fit(source, target)) * (1 + 1e-9)

    @given(seeds, dimensions)
    def test_leaves_equal_distributions_alone(self, seed, dimension):
        same, metric = random_gaussian([seed, 0], dimension), random_gaussian([seed, 1], dimension).covariance()
        assert relative(TransportMap.fit(same, same, metric=metric).matrix, np.eye(dimension)) < 1e-9

    @given(pairs())
    def test_the_identity_is_the_papers_map(self, pair):
        source, target = pair
        identity = TransportMap.fit(source, target, metric=np.eye(source.dimension))
        assert relative(identity.matrix, fit(source, target).matrix) < 1e-12

    def test_noise_makes_up_for_a_singular_source(self):
        source, target = random_gaussian(0, 6, rank=3), random_gaussian(1, 6)
        fitted = TransportMap.fit(source, target, metric=random_gaussian(2, 6).covariance())
        assert fitted.noise_covariance is not None
        reached = fitted.matrix @ source.covariance() @ fitted.matrix.T + fitted.noise_covariance
        assert relative(reached, target.covariance()) < 1e-6

    def test_of_another_dimension_is_refused(self):
        with pytest.raises(ValueError, match="metric has shape"):
            TransportMap.fit(random_gaussian(0, 3), random_gaussian(1, 3), metric=np.eye(4))


class TestInvariant:
    """Directions that the restorer keeps: differences there are content."""

    @staticmethod
    def marginal(statistics, invariant):
        return invariant @ statistics.mean, invariant @ statistics.covariance() @ invariant.T

    @given(seeds, st.integers(3, 12), st.integers(1, 2))
    def test_the_matched_target_has_the_sources_distribution_there(self, seed, dimension, k):
        source, target = random_gaussian([seed, 0], dimension), random_gaussian([seed, 1], dimension)
        invariant = np.random.default_rng(seed).standard_normal((k, dimension))
        for actual, expected in zip(
            self.marginal(matched(source, target, invariant), invariant), self.marginal(source, invariant), strict=True
        ):
            np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-7)

    @given(seeds, st.integers(3, 12))
    def test_the_rest_given_the_invariants_stays_the_targets(self, seed, dimension):
        source, target = random_gaussian([seed, 0], dimension), random_gaussian([seed, 1], dimension)
        invariant = np.random.default_rng(seed).standard_normal((2, dimension))

        def conditional(covariance):
            cross = covariance @ invariant.T
            return covariance - cross @ np.linalg.solve(invariant @ cross, cross.T)

        found = matched(source, target, invariant).covariance()
        np.testing.assert_allclose(conditional(found), conditional(target.covariance()), rtol=1e-6, atol=1e-6)

    @given(seeds, st.integers(3, 12))
    def test_a_target_that_agrees_there_is_left_as_it_is(self, seed, dimension):
        source = random_gaussian([seed, 0], dimension)
        invariant = np.eye(dimension)[:1]
        target = random_gaussian([seed, 1], dimension)
        mean, covariance = target.mean.copy(), target.covariance().copy()
        mean[0], scale = source.mean[0], np.sqrt(source.covariance()[0, 0] / covariance[0, 0])
        covariance[0] *= scale
        covariance[:, 0] *= scale
        target = gaussian(mean, covariance)
        found = matched(source, target, invariant)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.covariance(), covariance, rtol=1e-9, atol=1e-9)

    def test_the_map_reaches_the_matched_target(self):
        source, target = random_gaussian(0, 6), random_gaussian(1, 6)
        fitted = TransportMap.fit(source, target, invariant=np.eye(6)[:2])
        goal = matched(source, target, np.eye(6)[:2])
        np.testing.assert_array_equal(fitted.target_mean, goal.mean)
        assert relative(fitted.matrix @ source.covariance() @ fitted.matrix.T, goal.covariance()) < 1e-9
        assert fitted.distance_squared(source, target) == gelbrich_distance_squared(source, goal)

    def test_content_is_not_learnt(self):
        """Two sides of the same kind that show differently bright things: nothing to do."""
        rng = np.random.default_rng(0)
        mixing = rng.standard_normal((4, 4))

        def side(brightness: float, contrast: float) -> GaussianStatistics:
            hidden = rng.standard_normal((200_000, 4))
            hidden[:, 0] = brightness + contrast * hidden[:, 0]
            return GaussianStatistics.of(hidden @ mixing.T)

        source, target = side(0, 1), side(3, 2)
        invariant = np.linalg.inv(mixing)[:1]
        change = np.eye(4) - TransportMap.fit(source, target, invariant=invariant).matrix
        assert np.abs(change).max() < 0.02
        assert np.abs(np.eye(4) - fit(source, target).matrix).max() > 0.2

    def test_of_another_dimension_is_refused(self):
        with pytest.raises(ValueError, match="invariant has shape"):
            TransportMap.fit(random_gaussian(0, 3), random_gaussian(1, 3), invariant=np.eye(4))
