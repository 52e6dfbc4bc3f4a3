"""Each step of a degradation does what it says, and the same for the same key."""

import hashlib
import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ot_core import Cause, DecodedImage, Degradation, ImageError, UserError

FLAT = np.full((96, 96, 3), 128, np.uint8)


def _degrade(spec: str, pixels: np.ndarray, key: str = "k", grey: bool = False) -> np.ndarray:
    return Degradation(spec)(DecodedImage(pixels, grey=grey), key).pixels


def same(pixels: np.ndarray) -> np.ndarray:
    return pixels


def spoils_what_it_is_given(pixels: np.ndarray) -> np.ndarray:
    pixels[:] = 0
    return pixels


def fails(pixels: np.ndarray) -> np.ndarray:
    raise ValueError("no such\nlens")


def cuts(pixels: np.ndarray) -> np.ndarray:
    return pixels[1:]


def gives_text(pixels: np.ndarray) -> str:
    return "done"


not_a_function = 3


@pytest.mark.parametrize("deviation", [2, 25])
def test_noise_has_its_standard_deviation_and_no_mean(deviation):
    difference = _degrade(f"noise:{deviation}", FLAT).astype(float) - FLAT
    # Rounding to whole levels adds 1/12 to the variance; tolerances are five times the deviation of the estimates.
    count = difference.size
    assert difference.var() == pytest.approx(deviation**2 + 1 / 12, rel=5 * np.sqrt(2 / count))
    assert abs(difference.mean()) < 5 * deviation / np.sqrt(count)
    channels = difference.reshape(-1, 3).T
    assert np.abs(np.corrcoef(channels)[np.triu_indices(3, 1)]).max() < 5 / np.sqrt(count / 3)


def test_noise_stays_within_eight_bits():
    degraded = _degrade("noise:200", np.zeros((32, 32, 3), np.uint8))
    assert degraded.dtype == np.uint8
    assert (degraded == 0).mean() == pytest.approx(0.5, abs=0.1)  # what would be negative


@pytest.mark.parametrize("quality", [1, 10, 100])
def test_jpeg_is_pillows_at_that_quality(photo, quality):
    pixels, buffer = photo(40, 56), io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    np.testing.assert_array_equal(_degrade(f"jpeg:{quality}", pixels), np.asarray(Image.open(buffer)))


@pytest.mark.parametrize("deviation", [1.0, 2.5])
def test_blur_widens_a_point_to_its_standard_deviation(deviation):
    pixels = np.zeros((65, 65, 3), np.uint8)
    pixels[28:37, 28:37] = 255
    place = np.arange(65) - 32
    variances = []
    for image in (pixels, _degrade(f"blur:{deviation}", pixels)):
        weights = image[:, :, 0].astype(float).sum(axis=0)
        variances.append((weights * place**2).sum() / weights.sum())
    assert variances[1] - variances[0] == pytest.approx(deviation**2, rel=0.1)


@pytest.mark.parametrize("factor", [2, 4])
def test_bicubic_is_pillows_reduction_of_the_part_that_can_be_reduced(photo, factor):
    pixels = photo(43, 57)
    height, width = 43 // factor, 57 // factor
    part = Image.fromarray(pixels[: height * factor, : width * factor])
    expected = np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(_degrade(f"bicubic:{factor}", pixels), expected)
    assert Degradation(f"bicubic:{factor}").scale == factor


def test_the_original_is_cropped_to_what_is_degraded(photo):
    alpha = np.arange(43 * 57, dtype=np.uint8).reshape(43, 57)
    cropped = Degradation("bicubic:2,bicubic:2").cropped(DecodedImage(photo(43, 57), alpha))
    assert cropped.pixels.shape == (40, 56, 3)
    np.testing.assert_array_equal(cropped.transparency, alpha[:40, :56])


def test_an_image_smaller_than_the_reduction_is_too_small(photo):
    with pytest.raises(ImageError) as error:
        _degrade("bicubic:4", photo(3, 40))
    assert error.value.cause == Cause.TOO_SMALL
    assert "40x3" in error.value.message


def test_a_chain_is_its_steps_in_their_order(photo):
    pixels = photo(40, 56)
    chained = _degrade("blur:1.2, bicubic:2,jpeg:60", pixels)
    step_by_step = _degrade("jpeg:60", _degrade("bicubic:2", _degrade("blur:1.2", pixels)))
    np.testing.assert_array_equal(chained, step_by_step)
    assert (chained != _degrade("jpeg:60,bicubic:2,blur:1.2", pixels)).any()


def test_two_steps_of_noise_are_independent():
    difference = _degrade("noise:20,noise:20", FLAT).astype(float) - FLAT
    assert difference.std() == pytest.approx(20 * np.sqrt(2), rel=0.05)  # the same noise twice would give 40


def test_a_range_draws_qualities_within_its_bounds_and_both_of_these(photo):
    pixels = photo(40, 56)
    by_quality = {_degrade(f"jpeg:{quality}", pixels).tobytes(): quality for quality in range(30, 34)}
    assert len(by_quality) == 4
    drawn = [by_quality[_degrade("jpeg:30-33", pixels, str(key)).tobytes()] for key in range(60)]
    assert set(drawn) == {30, 31, 32, 33}


def test_a_range_draws_deviations_within_its_bounds():
    found = [_degrade("noise:10-20", FLAT, str(key)).std() for key in range(40)]
    assert 9.5 < min(found) < 12
    assert 18 < max(found) < 20.5


def test_images_of_different_keys_have_different_noise_and_of_one_key_the_same():
    one, other, again = (_degrade("noise:9", FLAT, key) for key in ("a", "b", "a"))
    assert (one != other).any()
    np.testing.assert_array_equal(one, again)


def test_what_is_drawn_depends_on_nothing_but_the_key(photo):
    """Neither on the process, nor on what was degraded before, nor on the generators of numpy."""
    spec, keys = "noise:5-30,jpeg:10-40", ["a", "b/ü", "c"]
    program = (
        "import hashlib, json, sys; import numpy as np; from ot_core import DecodedImage, Degradation; "
        "d = Degradation(sys.argv[1]); np.random.seed(7); "
        "print(json.dumps({k: hashlib.sha256(d(DecodedImage(np.full((96, 96, 3), 128, np.uint8)), k).pixels.tobytes())"
        ".hexdigest() for k in reversed(json.loads(sys.argv[2]))}))"
    )
    command = [sys.executable, "-c", program, spec, json.dumps(keys)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = {key: hashlib.sha256(_degrade(spec, FLAT, key).tobytes()).hexdigest() for key in keys}
    assert json.loads(shown) == found


@pytest.mark.parametrize("spec", ["noise:25", "jpeg:10", "blur:1.5", "bicubic:2", "noise:25,jpeg:10-40"])
def test_grey_stays_grey(photo, spec):
    pixels = np.repeat(photo(40, 56)[:, :, :1], 3, axis=2)
    degraded = Degradation(spec)(DecodedImage(pixels, grey=True), "k")
    assert degraded.grey
    np.testing.assert_array_equal(degraded.pixels, np.repeat(degraded.pixels[:, :, :1], 3, axis=2))
    assert degraded.pixels.shape != pixels.shape or (degraded.pixels != pixels).any()


def test_deep_pixels_are_degraded_as_eight_bits(photo):
    pixels = photo(40, 56)
    deep = (pixels / 255).astype(np.float32)
    np.testing.assert_array_equal(_degrade("jpeg:20", deep), _degrade("jpeg:20", pixels))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "nothing: expected noise:VALUE"),
        ("noise:25,", "nothing: expected noise:VALUE"),
        ("noise", "noise: expected noise:VALUE"),
        ("nosie:25", "nosie:25: expected noise:VALUE"),
        ("noise:-1", "noise:-1: expected noise:VALUE"),
        ("noise:nan", "noise:nan: expected"),
        ("noise:256", "noise:256: expected a number from 0 to 255, or a range A-B"),
        ("jpeg:0", "jpeg:0: expected a whole number from 1 to 100, or a range A-B"),
        ("jpeg:101", "jpeg:101: expected a whole number from 1 to 100, or a range A-B"),
        ("jpeg:10.5", "jpeg:10.5: expected a whole number from 1 to 100, or a range A-B"),
        ("jpeg:40-10", "jpeg:40-10: expected a whole number from 1 to 100, or a range A-B"),
        ("bicubic:1.5", "bicubic:1.5: expected a whole number from 1 to 16, or a range A-B"),
        ("bicubic:2-4", "expected one number in bicubic, since a restorer has one scale"),
        ("no_such_module:f", "no_such_module can't be imported"),
        (f"{__name__}:nothing", "has no function nothing"),
        (f"{__name__}:not_a_function", "has no function not_a_function"),
    ],
)
def test_a_spec_that_cannot_be_understood_is_told_in_one_line(spec, said):
    with pytest.raises(UserError) as error:
        Degradation(spec)
    message = str(error.value)
    assert message.startswith(f"degradation {spec}: ")
    assert said in message
    assert "\n" not in message


def test_a_degradation_survives_pickling(photo):
    degradation = Degradation(f"noise:5-30,{__name__}:same,jpeg:10-40")
    again = pickle.loads(pickle.dumps(degradation))
    image = DecodedImage(photo(40, 56))
    assert (again.spec, again.scale) == (degradation.spec, degradation.scale)
    np.testing.assert_array_equal(again(image, "k").pixels, degradation(image, "k").pixels)


def test_a_function_of_the_users_may_write_to_what_it_is_given(photo):
    pixels = photo(40, 56)
    before = pixels.copy()
    assert not _degrade(f"{__name__}:spoils_what_it_is_given", pixels).any()
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("fails", "ValueError: no such lens"),
        ("cuts", "gave uint8 (39, 56, 3); expected uint8 (40, 56, 3)"),
        ("gives_text", "gave str; expected uint8 (40, 56, 3)"),
    ],
)
def test_a_function_that_fails_for_an_image_is_the_failure_of_that_image(photo, function, said):
    with pytest.raises(ImageError) as error:
        _degrade(f"{__name__}:{function}", photo(40, 56))
    assert error.value.cause == Cause.DEGRADATION_ERROR
    assert function in error.value.message
    assert said in error.value.message
    assert "\n" not in error.value.message
