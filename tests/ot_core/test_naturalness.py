"""Measures that see a weave, a lost spectrum, and edges."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ot_core.naturalness import edge_energy, grid_power, log_spectral_distance

RNG = np.random.default_rng(0)


def photograph_like(side: int = 192) -> NDArray[np.uint8]:
    """Power falls with the square of the frequency."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = np.inf
    plane = np.fft.ifft2(np.fft.fft2(RNG.standard_normal((side, side))) / frequency).real
    grey = 128 + 40 * plane / plane.std() + RNG.standard_normal((side, side))
    return np.repeat(grey.clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=2)


def woven(image: NDArray[np.uint8], period: int) -> NDArray[np.uint8]:
    """With a faint pattern of a period."""
    pattern = 4 * RNG.choice([-1.0, 1.0], (period, period))
    tiled = np.tile(pattern, (image.shape[0] // period, image.shape[1] // period))[..., None]
    return (image + tiled).clip(0, 255).round().astype(np.uint8)


def test_equal_images_differ_by_nothing() -> None:
    image = photograph_like()
    assert log_spectral_distance([image], [image]) == 0
    assert edge_energy([image], [image]) == (1, 1, 1, 1)


def test_halving_the_contrast_costs_six_decibels() -> None:
    image = photograph_like()
    faint = (128 + (image.astype(float) - 128) / 2).astype(np.uint8)
    assert log_spectral_distance([faint], [image]) == pytest.approx(6, abs=1)


def test_a_faint_weave_is_seen_at_its_own_period() -> None:
    images = [photograph_like() for _ in range(3)]
    assert grid_power(images) == pytest.approx(1, abs=0.3)
    assert grid_power([woven(image, 4) for image in images]) > 2
    assert grid_power([woven(image, 8) for image in images], period=8) > 2
    odd = images[0][3:, 5:]  # whatever the image's size and phase
    assert grid_power([woven(images[0], 4)[3:, 5:]]) > 1.5 * grid_power([odd])


def test_noise_has_no_weave() -> None:
    noise = RNG.integers(0, 256, (128, 160, 3)).astype(np.uint8)
    assert grid_power([noise]) == pytest.approx(1, abs=0.3)


def test_a_noisy_edge_is_told_by_its_side() -> None:
    image = photograph_like()
    dashed = image.copy()
    dashed[-4:, ::2] = 255 - dashed[-4:, ::2]
    top, bottom, left, right = edge_energy([dashed], [image])
    assert bottom > 5
    assert max(top, left, right) < 1.5


def test_images_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 64x64"):
        grid_power([photograph_like(48)])
