"""Natural scene statistics."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ot_core import GaussianStatistics, ImageError
from ot_core.scenes import DIMENSION, SceneFeatures, _asymmetric, niqe, scene_features

PHOTOS = sorted((Path(__file__).parents[2] / "pipelines" / "demo_photos").glob("*.jpg"))

Pixels = NDArray[np.uint8]


def of(images: list[Pixels]) -> GaussianStatistics:
    found = SceneFeatures().statistics(images, None)
    return GaussianStatistics.total([one for one in found if isinstance(one, GaussianStatistics)])


@pytest.mark.parametrize(("shape", "draw"), [(2.0, "normal"), (1.0, "laplace")])
def test_the_shape_of_a_known_distribution_is_found(shape: float, draw: str) -> None:
    values = getattr(np.random.default_rng(0), draw)(size=(3, 400, 400))
    shapes, left, right, mean = _asymmetric(values)
    np.testing.assert_allclose(shapes, shape, rtol=0.03)
    # A generalised Gaussian of shape 2 and deviation 1 has a scale of the square root of 2; one of shape 1, of 1.
    np.testing.assert_allclose([left, right], np.sqrt(shape), rtol=0.03)
    np.testing.assert_allclose(mean, 0, atol=0.02)


def test_different_sides_have_different_scales() -> None:
    values = np.random.default_rng(0).standard_normal((1, 500, 500))
    _, left, right, mean = _asymmetric(np.where(values < 0, values, 3 * values))
    assert right[0] == pytest.approx(3 * left[0], rel=0.05)
    assert mean[0] > 0


def test_a_square_has_36_numbers_and_what_is_left_over_is_not_looked_at() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
    found = scene_features(pixels)
    assert found.shape == (2, DIMENSION)
    np.testing.assert_array_equal(found, scene_features(pixels[:96, :192]))
    np.testing.assert_allclose(found, scene_features(pixels.astype(np.float32) / 255), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("level", [0, 127, 255])
def test_a_flat_image_has_finite_features(level: int) -> None:
    assert np.isfinite(scene_features(np.full((96, 96, 3), level, np.uint8))).all()


def test_a_small_image_has_none() -> None:
    (found,) = SceneFeatures().statistics([np.zeros((95, 200, 3), np.uint8)], None)
    assert isinstance(found, ImageError)


def test_what_spoils_photographs_takes_them_away_from_natural_ones() -> None:
    photos = [np.asarray(Image.open(path).convert("RGB")) for path in PHOTOS]
    natural, others = of(photos[::2]), photos[1::2]
    undamaged = niqe(of(others), natural)
    assert niqe(natural, natural) == 0

    def jpeg(image: Image.Image) -> Image.Image:
        image.save(buffer := io.BytesIO(), "JPEG", quality=10)
        return Image.open(buffer).convert("RGB")

    damages = {
        "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
        "compressed": jpeg,
        "enlarged": lambda image: image.resize((image.width // 3, image.height // 3)).resize(image.size),
    }
    for name, damage in damages.items():
        damaged = [np.asarray(damage(Image.fromarray(photo))) for photo in others]
        assert niqe(of(damaged), natural) > 1.5 * undamaged, name
