"""No direction of a latent patch is amplified whose variance rounding explains."""

import numpy as np
import pytest

from ot_core import GaussianStatistics, TransportMap, load_autoencoder
from ot_core.rounding import rounding_covariance
from ot_core.transport_map import bounded

RNG = np.random.default_rng(0)


def statistics(deviations: list[float], count: int = 4000) -> GaussianStatistics:
    return GaussianStatistics.of(RNG.standard_normal((count, len(deviations))) * deviations)


@pytest.mark.parametrize("signal", [1.0, 1.5, 3.0, 10.0])
def test_the_gain_stays_below_the_ratio_of_signal_to_rounding(signal: float) -> None:
    source, target = statistics([signal, 50.0]), statistics([1000.0, 60.0])
    fitted = TransportMap.fit(source, target, rounding=np.eye(2))
    assert fitted.matrix[0, 0] == pytest.approx(signal, rel=0.1)
    assert fitted.matrix[1, 1] == pytest.approx(60 / 50, rel=0.1)


def test_what_varies_less_than_rounding_is_not_amplified() -> None:
    fitted = TransportMap.fit(statistics([0.3, 50.0]), statistics([1000.0, 60.0]), rounding=np.eye(2))
    assert fitted.matrix[0, 0] <= 1.1


def test_a_map_with_enough_evidence_is_the_map_without_the_rule() -> None:
    mixing = RNG.standard_normal((3, 3))
    source = GaussianStatistics.of(RNG.standard_normal((500, 3)) @ mixing)
    target = GaussianStatistics.of(RNG.standard_normal((500, 3)) * 2)
    rounding = 1e-3 * mixing.T @ mixing
    assert bounded(source.covariance(), target.covariance(), rounding) is not None
    np.testing.assert_array_equal(
        TransportMap.fit(source, target, rounding=rounding).matrix, TransportMap.fit(source, target).matrix
    )


def test_the_rule_does_not_depend_on_the_coordinates() -> None:
    change = RNG.standard_normal((3, 3))
    ks, kt, rounding = np.diag([2.0, 1.1, 90.0]), np.diag([100.0, 300.0, 80.0]), np.eye(3)
    raised = bounded(ks, kt, rounding)
    moved = bounded(*(change @ covariance @ change.T for covariance in (ks, kt, rounding)))
    np.testing.assert_allclose(moved, change @ raised @ change.T, rtol=1e-6)


def test_rounding_is_measured_to_be_what_it_is_in_pixels() -> None:
    source = GaussianStatistics.of(RNG.standard_normal((5000, 27)) * 0.2)
    measured = rounding_covariance(load_autoencoder("pixels"), source, 3)
    grey_level = 2 / 255  # pixels are in [-1, 1] there
    np.testing.assert_allclose(measured, np.eye(27) * grey_level**2 / 12, atol=0.15 * grey_level**2 / 12)


def test_a_shape_that_does_not_suit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rounding has shape \(3, 3\), expected \(2, 2\)"):
        TransportMap.fit(statistics([1, 1]), statistics([1, 1]), rounding=np.eye(3))
