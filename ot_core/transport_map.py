"""The closed-form optimal transport map between two Gaussians, and their squared 2-Wasserstein distance.

Everything here is float64 numpy on (D, D) matrices; equation numbers are those of Freirich, Michaeli and
Meir (2021), arXiv 2107.02555, which Adrai et al. (2023), arXiv 2306.02342, apply to latent patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ot_core.statistics import Array, GaussianStatistics

#: Eigenvalues of a covariance below this share of its largest one count as zero.
RANK_TOLERANCE = 1e-10


@dataclass(frozen=True, eq=False)
class TransportMap:
    """y = matrix (x - source_mean) + target_mean + w, with w ~ N(0, noise_covariance) where there is one.

    Attributes:
        matrix: (D, D) float64; it is, or with a metric metric @ matrix is, symmetric positive semi-definite, unless the
            source covariance is singular.
        source_mean: (D,) float64.
        target_mean: (D,) float64.
        noise_covariance: (D, D) float64, or None where the source covariance is invertible.
        metric: (D, D) float64, symmetric positive definite: the cost of moving x to y is (y - x)^T metric (y - x); None
            is the identity, as in the paper.
        invariant: (k, D) float64, directions whose distribution restoring keeps, so that a difference there is one
            of content; the target is matched to the source there. None keeps the target as it is.
    """

    matrix: Array
    source_mean: Array
    target_mean: Array
    noise_covariance: Array | None = None
    metric: Array | None = None
    invariant: Array | None = None

    @classmethod
    def fit(
        cls,
        source: GaussianStatistics,
        target: GaussianStatistics,
        *,
        metric: Array | None = None,
        invariant: Array | None = None,
        rounding: Array | None = None,
    ) -> TransportMap:
        """Solves the map that carries N(source) to N(target) at the least cost.

        With an invertible source covariance Ks (eq. 17):
            T = Ks^(-1/2) (Ks^(1/2) Kt Ks^(1/2))^(1/2) Ks^(-1/2).
        With a singular one (eq. 19), where ^+ is the pseudo-inverse:
            T = Kt^(1/2) (Kt^(1/2) Ks Kt^(1/2))^(1/2) Kt^(-1/2)+ Ks^+, and noise of covariance Kt - T Ks T^T.
        With a metric G the same holds for G^(1/2) x in the place of x. Any metric's map has the same image, N(target).

        Args:
            source: statistics of dimension D, of at least 2 vectors.
            target: the same.
            metric: (D, D), see the class; `ot_core.decoder_geometry` measures it.
            invariant: (k, D), see the class and `matched`.
            rounding: (D, D), the covariance of what rounding an image to 8 bits adds to a latent patch
                (`ot_core.rounding`); bounds the map's gains, see `bounded`. None bounds nothing.

        Raises:
            ValueError: if the dimensions differ.
        """
        if source.dimension != target.dimension:
            raise ValueError(f"source has dimension {source.dimension}, target {target.dimension}: expected equal")
        if invariant is not None and invariant.shape[1:] != (source.dimension,):
            raise ValueError(f"invariant has shape {invariant.shape}, expected (k, {source.dimension})")
        for name, matrix in (("metric", metric), ("rounding", rounding)):
            if matrix is not None and matrix.shape != (source.dimension, source.dimension):
                raise ValueError(f"{name} has shape {matrix.shape}, expected ({source.dimension}, {source.dimension})")
        goal = target if invariant is None else matched(source, target, invariant)
        ks, kt = source.covariance(), goal.covariance()
        if rounding is not None:
            ks = bounded(ks, kt, rounding)
        matrix, noise_covariance = _optimal_matrix_in(metric, ks, kt)
        return cls(matrix, source.mean, goal.mean, noise_covariance, metric, invariant)

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.matrix.shape[0])

    @property
    def method(self) -> str:
        """Which of `ot_core.choices.METHODS` it was fitted with."""
        if self.metric is None:
            return "paper"
        return "pixels" if self.invariant is None else "matched"

    def distance_squared(self, a: GaussianStatistics, b: GaussianStatistics) -> float:
        """Squared 2-Wasserstein distance between two sets; b is matched to a where there are invariants."""
        return gelbrich_distance_squared(a, b if self.invariant is None else matched(a, b, self.invariant))

    def __call__(self, samples: Array) -> Array:
        """Maps samples (n, D) to (n, D), without the noise term."""
        return (samples - self.source_mean) @ self.matrix.T + self.target_mean


def gelbrich_distance_squared(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """|ma - mb|^2 + tr(Ka + Kb - 2 (Kb^(1/2) Ka Kb^(1/2))^(1/2)), in squared units of the vectors.

    The squared 2-Wasserstein distance between the two Gaussians, and a lower bound of it for any two
    distributions of these moments (Gelbrich, 1990). Never negative.
    """
    ka, kb = a.covariance(), b.covariance()
    root = _power(kb, 0.5)
    cross = np.linalg.eigvalsh(_symmetric(root @ ka @ root))
    covariance_term = np.trace(ka) + np.trace(kb) - 2 * np.sqrt(np.clip(cross, 0, None)).sum()
    return float(max(0.0, np.sum((a.mean - b.mean) ** 2) + covariance_term))


def matched(source: GaussianStatistics, target: GaussianStatistics, invariant: Array) -> GaussianStatistics:
    """The target's statistics, had it the source's distribution of the invariants P x.

    With A = Kt P^T (P Kt P^T)^-1, the regression of x on P x in the target, and Ks and Kt the covariances:
        m = mt + A P (ms - mt),    K = Kt - A P Kt P^T A^T + A P Ks P^T A^T.
    As if the target's vectors had been weighted until their invariants are distributed like the source's.

    Args:
        source: of dimension D.
        target: of dimension D.
        invariant: P, (k, D).
    """
    ks, kt = source.covariance(), target.covariance()
    cross = kt @ invariant.T
    regression = cross @ np.linalg.pinv(_symmetric(invariant @ cross), hermitian=True)
    mean = target.mean + regression @ (invariant @ (source.mean - target.mean))
    covariance = kt - regression @ cross.T + regression @ (invariant @ ks @ invariant.T) @ regression.T
    return GaussianStatistics(target.count, mean, _symmetric(covariance) * (target.count - 1))


def bounded(ks: Array, kt: Array, rounding: Array) -> Array:
    """The source's covariance, raised where the map to the target's would draw rounding as detail.

    In coordinates in which rounding is white and Ks is diagonal, s_i is the source's variance in units of rounding's,
    and t_i the target's. The map's gain there is about (t_i / s_i)^(1/2). It shall not pass s_i^(1/2): then rounding,
    once amplified, stays below what the source holds in that direction. So s_i becomes max(s_i, t_i / max(s_i, 1)).
    A direction that varies no more than rounding does is not amplified at all.

    Args:
        ks: covariance of the source, (D, D).
        kt: covariance of the target, (D, D).
        rounding: covariance of rounding, (D, D).

    Returns:
        (D, D); Ks itself where no gain is too large.
    """
    least = RANK_TOLERANCE * float(np.trace(rounding)) / len(rounding)
    root = np.linalg.cholesky(_symmetric(rounding) + least * np.eye(len(rounding)))

    def whitened(covariance: Array) -> Array:
        return _symmetric(np.linalg.solve(root, np.linalg.solve(root, covariance).T))

    s, directions = np.linalg.eigh(whitened(ks))
    t = np.einsum("ji,jk,ki->i", directions, whitened(kt), directions)
    lacking = np.clip(t / np.maximum(s, 1) - s, 0, None)
    if not lacking.any():
        return ks
    back = root @ directions
    return _symmetric(ks + (back * lacking) @ back.T)


def _optimal_matrix_in(metric: Array | None, ks: Array, kt: Array) -> tuple[Array, Array | None]:
    """T and, where Ks is singular, the covariance of the noise that makes T Ks T^T up to Kt."""
    eigenvalues = np.linalg.eigvalsh(ks)
    if eigenvalues[0] > RANK_TOLERANCE * eigenvalues[-1]:
        return _matrix_from_invertible(metric, ks, kt), None
    if metric is None:
        return _matrix_from_singular(ks, kt)
    root, inverse_root = _power(metric, 0.5), _power(metric, -0.5)
    matrix, noise = _matrix_from_singular(_symmetric(root @ ks @ root), _symmetric(root @ kt @ root))
    return inverse_root @ matrix @ root, _symmetric(inverse_root @ noise @ inverse_root)


def _matrix_from_invertible(metric: Array | None, ks: Array, kt: Array) -> Array:
    """T without the products of covariances that eq. 17 takes roots of, which would lose half of the digits.

    With Ks = M M^T, Kt = R^T R and the singular value decomposition R G M = W S V^T:
        T = R^T W V^T M^(-1).
    Then T Ks T^T = Kt, and G T = M^(-T) V S V^T M^(-1) is symmetric positive semi-definite, which make T the map.
    """
    m = np.linalg.cholesky(ks)
    values, vectors = np.linalg.eigh(kt)  # Kt may be singular
    r = (vectors * np.sqrt(np.clip(values, 0, None))).T
    w, _, vt = np.linalg.svd(r @ m if metric is None else r @ metric @ m)
    matrix: Array = np.linalg.solve(m.T, (r.T @ w @ vt).T).T
    return _symmetric(matrix) if metric is None else matrix


def _matrix_from_singular(ks: Array, kt: Array) -> tuple[Array, Array]:
    root = _power(kt, 0.5)
    matrix = root @ _power(root @ ks @ root, 0.5) @ _power(kt, -0.5) @ _power(ks, -1.0)
    return matrix, _power(kt - matrix @ ks @ matrix.T, 1.0)


def _power(matrix: Array, exponent: float) -> Array:
    """Power of a symmetric positive semi-definite matrix; negative exponents give the pseudo-inverse's."""
    values, vectors = np.linalg.eigh(_symmetric(matrix))
    positive = values > RANK_TOLERANCE * max(float(values[-1]), 0.0)
    powers = np.zeros_like(values)
    powers[positive] = values[positive] ** exponent
    if exponent > 0:  # small eigenvalues are noise for an inverse, but information for a root
        powers = np.clip(values, 0, None) ** exponent
    return (vectors * powers) @ vectors.T


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2
