"""Encoding, and what is written beside the pixels: by every format that the jobs write."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from ot_core import Cause, DecodedImage, ImageError, UserError, decode_image, encode_image
from ot_core.encoding import OUTPUT_FORMATS, check_format, picture_of
from tests.ot_core.image_files import SRGB, encoded, noise

pillow_heif.register_heif_opener()  # to write such files


class TestEncoding:
    plain = DecodedImage(noise(16, 24, 3))

    @pytest.mark.parametrize("image_format", ["png", "tiff"])
    def test_png_and_tiff_give_the_pixels_back(self, image_format: str):
        pixels = noise(16, 24, 3, seed=5)
        np.testing.assert_array_equal(decode_image(encode_image(pixels, self.plain, image_format)).pixels, pixels)

    @pytest.mark.parametrize("image_format", list(OUTPUT_FORMATS))
    def test_same_pixels_give_the_same_bytes(self, image_format: str, photo: Callable[..., np.ndarray]):
        like = DecodedImage(photo(32, 32), transparency=noise(32, 32), icc_profile=SRGB)
        first, second = (encode_image(photo(32, 32), like, image_format) for _ in range(2))
        assert first == second

    @pytest.mark.parametrize("image_format", ["jpeg", "webp"])
    def test_quality_trades_size_for_closeness(self, image_format: str, photo: Callable[..., np.ndarray]):
        pixels = photo(64, 64)
        small, large = (encode_image(pixels, self.plain, image_format, quality=quality) for quality in (30, 95))
        assert len(small) < len(large)
        errors = [np.abs(decode_image(data).pixels.astype(int) - pixels).mean() for data in (small, large)]
        assert errors[0] > errors[1]

    def test_compress_level_changes_the_size_but_not_the_pixels(self, photo: Callable[..., np.ndarray]):
        pixels = photo(64, 64)
        fast, small = (encode_image(pixels, self.plain, "png", compress_level=level) for level in (0, 9))
        assert len(small) < len(fast)
        np.testing.assert_array_equal(decode_image(fast).pixels, decode_image(small).pixels)

    @pytest.mark.parametrize("grey", [False, True])
    @pytest.mark.parametrize("transparency", [None, noise(40, 56)])
    def test_avif_and_jpeg_xl_hold_what_was_written(self, grey: bool, transparency: Any, photo: Callable[..., Any]):
        pixels = photo(40, 56)
        like = DecodedImage(pixels, transparency, grey, exif=_exif_block())
        for name in ("avif", "jxl"):
            written = Image.open(io.BytesIO(encode_image(pixels, like, name)))
            assert written.getexif()[0x010F] == "Maker"
            found = np.asarray(written.convert("RGBA"))
            wanted = np.asarray(picture_of(pixels, like, grey=name == "jxl").convert("RGBA"))
            assert np.abs(found[..., :3].astype(int) - wanted[..., :3]).mean() < (4 if name == "avif" else 1e-9)
            np.testing.assert_allclose(found[..., 3], wanted[..., 3], atol=0 if name == "jxl" else 8)

    @pytest.mark.parametrize(("image_format", "width"), [("jpeg", 65_536), ("webp", 16_384)])
    def test_an_image_too_large_for_its_format_is_refused(self, image_format: str, width: int):
        pixels = np.zeros((1, width, 3), np.uint8)
        with pytest.raises(ImageError, match=f"{width}x1 pixels can't be written as {image_format}") as error:
            encode_image(pixels, DecodedImage(pixels), image_format)
        assert error.value.cause == Cause.UNSUPPORTED


def test_heic_from_cameras_is_upright_and_says_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    pixels = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[:, None], 32, axis=1)[..., None].repeat(3, 2)
    data = encoded(pixels, "HEIF", exif=exif.tobytes())
    assert b"irot" in data  # which alone turns it; EXIF says the same
    decoded = decode_image(data)
    assert decoded.pixels.shape == (32, 64, 3)
    assert np.abs(decoded.pixels.astype(int) - np.rot90(pixels, -1)).mean() < 4
    written = Image.open(io.BytesIO(encode_image(decoded.pixels, decoded, "png"))).getexif()
    assert (written[0x010F], written.get(0x0112)) == ("Maker", None)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"pip install 'dot-beam\[codecs\]'"):
        decode_image(data)


def test_jpeg_xl_says_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(UserError, match=r"format jxl: needs .* pip install 'dot-beam\[codecs\]'"):
        check_format("jxl")


def _exif_block() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    return exif.tobytes()


def _with_exif(mode: str, image_format: str, **more: object) -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Model 1", 6
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.0)})
    buffer = io.BytesIO()
    Image.new(mode, (8, 4)).save(buffer, image_format, exif=exif, **more)
    return buffer.getvalue()


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("target", list(OUTPUT_FORMATS))
def test_exif_is_kept_without_the_orientation_that_was_applied(source: str, target: str):
    decoded = decode_image(_with_exif("RGB", source))
    assert decoded.pixels.shape == (8, 4, 3)
    written = Image.open(io.BytesIO(encode_image(decoded.pixels, decoded, target)))
    found = written.getexif()
    assert (found[0x010F], found[0x0110]) == ("Maker", "Model 1")
    if source != "TIFF":  # Pillow writes no directories into TIFF files
        assert found.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"
        assert found.get_ifd(0x8825)[2] == (52.0, 30.0, 0.0)
    assert 0x0112 not in found
    assert target == "tiff" or not set(found) & {0x0100, 0x0101, 0x0111, 0x0117}
    assert written.size == (4, 8)


def test_exif_that_a_jpeg_cannot_hold_is_dropped():
    exif = Image.Exif()
    exif[0x010E] = "x" * 100_000
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", exif=exif)
    decoded = decode_image(buffer.getvalue())
    assert not Image.open(io.BytesIO(encode_image(decoded.pixels, decoded, "jpeg"))).getexif()
    assert len(Image.open(io.BytesIO(encode_image(decoded.pixels, decoded, "png"))).getexif()[0x010E]) == 100_000


def test_an_image_without_exif_gets_none():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "TIFF")
    assert decode_image(buffer.getvalue()).exif is None
