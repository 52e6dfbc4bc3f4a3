"""PNG files as others read them."""

import io
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from ot_core.png import write_png


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("level", [0, 1, 2, 6])
def test_any_layout_and_depth_is_read_back_as_it_was(channels, kind, level):
    rng = np.random.default_rng(channels)
    pixels = rng.integers(0, np.iinfo(kind).max, (37, 53, channels), kind, endpoint=True)
    np.testing.assert_array_equal(np.atleast_3d(imagecodecs.png_decode(write_png(pixels, level))), pixels)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 900, 1), (900, 1, 4), (3, 500_000, 3), (2, 3, 2)])
def test_any_shape_is_read_back(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(np.atleast_3d(imagecodecs.png_decode(write_png(pixels, 2))), pixels)


def test_a_smooth_image_takes_little_and_the_profile_and_exif_come_along():
    pixels = np.add.outer(np.arange(256), np.arange(256)).astype(np.uint8)[..., None].repeat(3, 2)
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    data = write_png(np.ascontiguousarray(pixels), 2, icc_profile=b"a profile", exif=exif.tobytes())
    assert len(data) < pixels.nbytes / 50
    image = Image.open(io.BytesIO(data))
    assert image.info["icc_profile"] == b"a profile"
    assert image.getexif()[0x010F] == "a maker"


def test_large_images_are_filtered_in_bands_that_join():
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 1000, 3), np.uint8)  # 9 MB, of 4 MB a band
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(write_png(pixels, 0)))), pixels)


def test_the_checksum_of_every_chunk_holds():
    data = write_png(np.zeros((4, 4, 3), np.uint8), 2)
    at = 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        assert zlib.crc32(data[at + 4 : at + 8 + length]) == int.from_bytes(data[at + 8 + length : at + 12 + length])
        at += 12 + length
    assert at == len(data)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3)])
def test_no_image_is_refused(shape):
    with pytest.raises(ValueError, match="rows and columns"):
        write_png(np.zeros(shape, np.uint8), 2)
