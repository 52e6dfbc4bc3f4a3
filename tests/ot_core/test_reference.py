"""The reference files: computed by an independent implementation, which regularises by 1e-5."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from ot_core import GaussianStatistics, LatentTransport, TransportMap, gelbrich_distance_squared, latent_statistics
from tests.ot_core.definition import by_definition

CASES = ["c4_p3", "c4_p5", "c4_p5_k3_gauss", "c8_p1"]
#: Agreement with the reference implementation, and with the formula in float64.
REFERENCE, FORMULA = 1e-4, 1e-9


def difference(actual, expected) -> float:
    """Relative, in the norm."""
    return float(np.linalg.norm(np.subtract(actual, expected)) / np.linalg.norm(expected))


class Case:
    """One reference file, and what ot_core makes of its latents."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.file = dict(file)
        self.patch_size = int(self.file["patch_size"])
        self.folding = {"kernel_size": int(self.file["fold_kernel"]), "sigma": float(self.file["fold_sigma"])}
        self.source, self.target = self._statistics("source"), self._statistics("target")
        self.map = TransportMap.fit(self.source, self.target)
        self.query = self.file["query"]

    def latents(self, side: str) -> list[np.ndarray]:
        return [latent for batch in range(2) for latent in self.file[f"{side}_{batch}"]]

    def _statistics(self, side: str) -> GaussianStatistics:
        return reduce(add, (latent_statistics(torch.from_numpy(z), self.patch_size) for z in self.latents(side)))

    def patches(self, side: str) -> np.ndarray:
        """Every patch inside the latents, by loops: (n, D), channel-major."""
        p = self.patch_size
        return np.array(
            [
                z[:, i : i + p, j : j + p].ravel()
                for z in self.latents(side)
                for i in range(z.shape[1] - p + 1)
                for j in range(z.shape[2] - p + 1)
            ]
        )


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, shared: Path) -> Case:
    path = shared / "reference" / f"{request.param}.npz"
    if not path.is_file():
        pytest.skip(f"no reference file {path.name}")
    return Case(path)


def test_every_reference_file_is_tested(shared: Path):
    assert {path.stem for path in (shared / "reference").glob("*.npz")} == set(CASES)


@pytest.mark.parametrize("side", ["source", "target"])
class TestStatistics:
    def test_counts_equal_the_reference(self, case: Case, side: str):
        assert getattr(case, side).count == case.file[f"{side}_count"]

    def test_mean_and_covariance_agree_with_the_reference(self, case: Case, side: str):
        statistics = getattr(case, side)
        assert difference(statistics.mean, case.file[f"{side}_mean"]) < REFERENCE
        assert difference(statistics.covariance(), case.file[f"{side}_cov"]) < REFERENCE

    def test_mean_and_covariance_are_those_of_all_patches_by_the_formula(self, case: Case, side: str):
        statistics, patches = getattr(case, side), case.patches(side)
        assert statistics.count == len(patches)
        assert difference(statistics.mean, patches.mean(axis=0)) < FORMULA
        assert difference(statistics.covariance(), np.cov(patches.T)) < FORMULA


def formula(case: Case) -> tuple[np.ndarray, float]:
    """T and the squared distance by matrix square roots (Schur's method, not eigenvectors)."""
    x, y = case.patches("source"), case.patches("target")
    ks, kt = np.cov(x.T), np.cov(y.T)
    rs, rt = scipy.linalg.sqrtm(ks).real, scipy.linalg.sqrtm(kt).real
    inverse = np.linalg.inv(rs)
    matrix = inverse @ scipy.linalg.sqrtm(rs @ kt @ rs).real @ inverse
    cross = scipy.linalg.sqrtm(rt @ ks @ rt).real
    distance = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.trace(ks + kt - 2 * cross)
    return matrix, float(distance)


def test_map_agrees_with_the_reference(case: Case):
    assert case.map.noise_covariance is None
    assert difference(case.map.matrix, case.file["matrix"]) < REFERENCE
    assert difference(case.map.source_mean, case.file["source_mean"]) < REFERENCE
    assert difference(case.map.target_mean, case.file["target_mean"]) < REFERENCE


def test_distance_agrees_with_the_reference(case: Case):
    assert case.map.distance_squared(case.source, case.target) == pytest.approx(
        float(case.file["w2_squared"]), rel=REFERENCE
    )


def test_map_and_distance_are_those_of_the_formula(case: Case):
    matrix, distance = formula(case)
    assert difference(case.map.matrix, matrix) < FORMULA
    assert gelbrich_distance_squared(case.source, case.target) == pytest.approx(distance, rel=FORMULA)


class TestTransport:
    def test_transported_latent_agrees_with_the_reference(self, case: Case):
        for dtype in (torch.float64, torch.float32):
            transport = LatentTransport(case.map, case.patch_size, dtype=dtype, **case.folding)
            actual = transport(torch.from_numpy(case.query).to(dtype)).numpy()
            assert difference(actual, case.file["transported"]) < REFERENCE

    def test_float64_is_the_definition_and_float32_close_to_it(self, case: Case):
        expected = by_definition(case.map, case.patch_size, case.query[0], **case.folding)
        query = torch.from_numpy(case.query[:1])
        exact = LatentTransport(case.map, case.patch_size, dtype=torch.float64, **case.folding)(query).numpy()[0]
        fast = LatentTransport(case.map, case.patch_size, dtype=torch.float32, **case.folding)(query.float()).numpy()[0]
        assert difference(exact, expected) < FORMULA
        assert difference(fast, expected) < REFERENCE

    def test_matrix_half_way_to_the_identity_agrees_with_the_reference(self, case: Case):
        """Between the two means nothing is interpolated there: y = (T + I)/2 (x - ms) + mt."""
        half_way = replace(case.map, matrix=(case.map.matrix + np.eye(case.map.dimension)) / 2)
        transport = LatentTransport(half_way, case.patch_size, dtype=torch.float64, **case.folding)
        assert difference(transport(torch.from_numpy(case.query)).numpy(), case.file["transported_pg_0_5"]) < REFERENCE
