"""Decoding and encoding: the table in the docstring of ot_core.images, row by row."""

from __future__ import annotations

import io
from collections.abc import Callable

import imagecodecs
import numpy as np
import pillow_heif
import pytest
import tifffile
import torch
from PIL import Image

from ot_core import Cause, DecodedImage, decode_image, encode_image
from ot_core.latent_transport import mixed
from ot_core.png import write_png
from ot_core.tiff_writer import write_tiff
from tests.ot_core.image_files import SRGB, chunk, cmyk_profile, encoded, noise, png, refused

pillow_heif.register_heif_opener()  # to write such files


class TestFormats:
    @pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP"])
    def test_lossless_formats_are_read_exactly(self, image_format: str):
        pixels = noise(5, 7, 3)
        decoded = decode_image(encoded(pixels, image_format))
        np.testing.assert_array_equal(decoded.pixels, pixels)
        assert decoded.pixels.dtype == np.uint8
        assert (decoded.transparency, decoded.grey, decoded.icc_profile) == (None, False, None)

    @pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "AVIF", "HEIF"])
    def test_lossy_formats_are_read_closely(self, image_format: str, photo: Callable[..., np.ndarray]):
        pixels = photo(40, 56)
        decoded = decode_image(encoded(pixels, image_format, quality=95)).pixels
        assert decoded.shape == pixels.shape
        assert np.abs(decoded.astype(int) - pixels).mean() < 4

    @pytest.mark.parametrize("options", [{"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}])
    def test_compressed_tiff_is_read_exactly(self, options: dict[str, str]):
        pixels = noise(5, 7, 3)
        np.testing.assert_array_equal(decode_image(encoded(pixels, "TIFF", **options)).pixels, pixels)

    def test_progressive_jpeg_is_read(self):
        assert decode_image(encoded(noise(16, 24, 3), "JPEG", progressive=True)).pixels.shape == (16, 24, 3)

    def test_one_pixel_is_an_image(self):
        assert decode_image(encoded(noise(1, 1, 3))).pixels.shape == (1, 1, 3)

    @pytest.mark.parametrize("image_format", ["GIF", "ICNS", "PPM", "TGA", "PCX", "JPEG2000"])
    def test_other_formats_are_not_images(self, image_format: str):
        Image.init()
        if image_format not in Image.SAVE:
            pytest.skip(f"this Pillow doesn't write {image_format}")
        assert refused(encoded(noise(16, 16, 3), image_format)) == Cause.NOT_AN_IMAGE


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows, by the definition of EXIF."""
    return {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
        8: lambda a: np.rot90(a, 1),
    }[orientation](stored)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_exif_block_costs_no_readable_picture(image_format: str):
    decoded = decode_image(encoded(noise(4, 6, 3), image_format, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"))
    assert decoded.pixels.shape == (4, 6, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
class TestOrientation:
    def exif(self, orientation: int) -> Image.Exif:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return exif

    @pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
    def test_pixels_are_those_of_the_upright_image(self, orientation: int, image_format: str):
        stored = noise(4, 6, 3)
        decoded = decode_image(encoded(stored, image_format, exif=self.exif(orientation)))
        np.testing.assert_array_equal(decoded.pixels, upright(stored, orientation))

    @pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "AVIF"])
    def test_lossy_formats_too(self, orientation: int, image_format: str, photo: Callable[..., np.ndarray]):
        stored = photo(64, 96)
        decoded = decode_image(encoded(stored, image_format, quality=95, exif=self.exif(orientation))).pixels
        expected = upright(stored, orientation)
        assert decoded.shape == expected.shape
        assert np.abs(decoded.astype(int) - expected).mean() < 4

    def test_transparency_turns_with_the_pixels(self, orientation: int):
        stored = noise(4, 6, 4)
        decoded = decode_image(encoded(stored, exif=self.exif(orientation)))
        np.testing.assert_array_equal(decoded.pixels, upright(stored[..., :3], orientation))
        np.testing.assert_array_equal(decoded.transparency, upright(stored[..., 3], orientation))

    def test_16_bit_grey_turns_too(self, orientation: int):
        stored = np.random.default_rng(0).integers(0, 65536, (4, 6), dtype=np.uint16)
        decoded = decode_image(encoded(stored, exif=self.exif(orientation)))
        np.testing.assert_allclose(decoded.pixels[..., 0], upright(stored, orientation) / 65535, rtol=1e-6)

    def test_the_written_image_isnt_turned_again(self, orientation: int):
        decoded = decode_image(encoded(noise(4, 6, 3), exif=self.exif(orientation)))
        written = decode_image(encode_image(decoded.pixels, decoded, "png"))
        np.testing.assert_array_equal(written.pixels, decoded.pixels)


class TestGrey:
    def test_is_replicated_to_rgb_and_written_grey_again(self):
        levels = noise(5, 7)
        decoded = decode_image(encoded(levels))
        np.testing.assert_array_equal(decoded.pixels, np.stack([levels] * 3, axis=2))
        assert decoded.grey
        for image_format in ("png", "jpeg"):
            assert Image.open(io.BytesIO(encode_image(decoded.pixels, decoded, image_format))).mode == "L"
        np.testing.assert_array_equal(decode_image(encode_image(decoded.pixels, decoded, "png")).pixels, decoded.pixels)

    @pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP"])
    def test_1_bit_is_black_and_white(self, image_format: str):
        bits = noise(5, 7) > 127
        decoded = decode_image(encoded(Image.fromarray(bits), image_format))
        np.testing.assert_array_equal(decoded.pixels, np.stack([bits * np.uint8(255)] * 3, axis=2))
        assert decoded.grey

    def test_jpeg(self):
        decoded = decode_image(encoded(np.full((8, 8), 77, np.uint8), "JPEG"))
        assert decoded.grey
        np.testing.assert_array_equal(decoded.pixels, np.full((8, 8, 3), 77))

    def test_with_alpha_keeps_both(self):
        stored = noise(5, 7, 2)
        decoded = decode_image(encoded(Image.fromarray(stored, "LA")))
        np.testing.assert_array_equal(decoded.pixels, np.stack([stored[..., 0]] * 3, axis=2))
        np.testing.assert_array_equal(decoded.transparency, stored[..., 1])
        assert Image.open(io.BytesIO(encode_image(decoded.pixels, decoded, "png"))).mode == "LA"

    def test_with_a_transparent_level_keeps_it(self):
        decoded = decode_image(png(2, 1, 8, 0, bytes([7, 9]), chunk(b"tRNS", b"\0\7")))
        assert decoded.transparency.tolist() == [[0, 255]]
        assert decoded.pixels[0, :, 0].tolist() == [7, 9]

    def test_webp_has_no_grey(self):
        decoded = decode_image(encoded(noise(5, 7)))
        assert Image.open(io.BytesIO(encode_image(decoded.pixels, decoded, "webp"))).mode == "RGB"


class TestPalette:
    colours = bytes([10, 20, 30, 200, 100, 50, 0, 255, 0, 255, 0, 255])
    rows = bytes([0b00011011])

    def test_is_expanded_to_rgb(self):
        decoded = decode_image(png(4, 1, 2, 3, self.rows, chunk(b"PLTE", self.colours)))
        assert decoded.pixels.tobytes() == self.colours
        assert decoded.transparency is None
        assert not decoded.grey

    def test_is_expanded_to_rgb_and_transparency(self):
        data = png(4, 1, 2, 3, self.rows, chunk(b"PLTE", self.colours), chunk(b"tRNS", bytes([0, 128])))
        decoded = decode_image(data)
        assert decoded.pixels.tobytes() == self.colours
        assert decoded.transparency.tolist() == [[0, 128, 255, 255]]


class TestTransparency:
    @pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
    def test_is_kept_beside_colours_that_it_hides(self, image_format: str):
        stored = noise(5, 7, 4)
        stored[0, :, 3] = 0
        decoded = decode_image(encoded(stored, image_format))
        np.testing.assert_array_equal(decoded.pixels, stored[..., :3])
        np.testing.assert_array_equal(decoded.transparency, stored[..., 3])

    def test_a_transparent_colour_is_kept(self):
        decoded = decode_image(png(2, 1, 8, 2, bytes([1, 2, 3, 4, 5, 6]), chunk(b"tRNS", bytes([0, 1, 0, 2, 0, 3]))))
        assert decoded.transparency.tolist() == [[0, 255]]

    @pytest.mark.parametrize("image_format", ["png", "webp"])
    def test_passes_through_unchanged_where_the_format_has_it(self, image_format: str):
        decoded = decode_image(encoded(noise(16, 16, 4)))
        written = decode_image(encode_image(255 - decoded.pixels, decoded, image_format))
        np.testing.assert_array_equal(written.transparency, decoded.transparency)

    def test_is_dropped_where_the_format_has_none(self):
        decoded = decode_image(encoded(noise(5, 7, 4)))
        assert decode_image(encode_image(decoded.pixels, decoded, "jpeg")).transparency is None


class TestOtherColourSpaces:
    inks = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [255, 0, 0, 0]]], np.uint8)

    def test_cmyk_without_a_profile_is_complemented(self):
        decoded = decode_image(encoded(Image.fromarray(self.inks, "CMYK"), "TIFF"))
        assert decoded.pixels.tolist() == [[[255, 255, 255], [0, 0, 0], [0, 255, 255]]]

    def test_cmyk_with_a_profile_goes_through_it_to_srgb(self):
        decoded = decode_image(encoded(Image.fromarray(self.inks, "CMYK"), "TIFF", icc_profile=cmyk_profile()))
        np.testing.assert_allclose(decoded.pixels, [[[255] * 3, [0] * 3, [119] * 3]], atol=2)
        assert decoded.icc_profile is None

    @pytest.mark.parametrize("profile", [b"no profile at all", SRGB], ids=["damaged", "of RGB"])
    def test_cmyk_with_a_profile_that_isnt_one_of_cmyk_is_complemented(self, profile: bytes):
        decoded = decode_image(encoded(Image.fromarray(self.inks, "CMYK"), "TIFF", icc_profile=profile))
        assert decoded.pixels.tolist() == [[[255, 255, 255], [0, 0, 0], [0, 255, 255]]]
        assert decoded.icc_profile is None

    def test_cmyk_jpeg(self):
        inks = np.broadcast_to(np.array([0, 255, 0, 0], np.uint8), (16, 16, 4))
        decoded = decode_image(encoded(Image.fromarray(inks.copy(), "CMYK"), "JPEG", quality=95)).pixels
        np.testing.assert_allclose(decoded, np.broadcast_to([255, 0, 255], (16, 16, 3)), atol=6)

    def test_lab_is_converted(self):
        lab = np.array([[[255, 0, 0], [0, 0, 0], [137, 0, 0]]], np.uint8)
        decoded = decode_image(encoded(Image.fromarray(lab, "LAB"), "TIFF"))
        np.testing.assert_allclose(decoded.pixels, [[[255] * 3, [0] * 3, [128] * 3]], atol=3)


class TestDepth:
    levels = np.array([[0, 1, 256, 32768, 65534, 65535]], np.uint16)

    @pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
    def test_16_bit_grey_is_read_in_full_precision(self, image_format: str):
        decoded = decode_image(encoded(self.levels, image_format))
        assert decoded.pixels.dtype == np.float32
        for channel in range(3):
            np.testing.assert_allclose(decoded.pixels[..., channel], self.levels / 65535, rtol=1e-6)
        assert decoded.grey

    def test_16_bit_grey_of_either_byte_order(self):
        big = Image.frombytes("I;16B", (6, 1), self.levels.astype(">u2").tobytes())
        decoded = decode_image(encoded(big, "TIFF"))
        np.testing.assert_allclose(decoded.pixels[..., 0], self.levels / 65535, rtol=1e-6)

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    @pytest.mark.parametrize("written", ["png", "tiff"])
    def test_16_bits_come_through_reading_transport_at_alpha_1_and_writing(self, channels: int, written: str):
        levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        samples = np.dstack([np.roll(levels, 100 * channel, channel % 2) for channel in range(channels)])
        for data in (write_png(samples, 2), write_tiff(samples, 2)):
            image = decode_image(data)
            pixels, nowhere = torch.from_numpy(image.pixels), torch.rand(256, 256, 3)
            encoded = encode_image(mixed(pixels, nowhere, 1.0).numpy(), image, written)
            back = imagecodecs.png_decode(encoded) if written == "png" else tifffile.imread(io.BytesIO(encoded))
            np.testing.assert_array_equal(back.reshape(samples.shape), samples)

    def test_16_bits_are_rounded_once_to_8_where_the_format_has_8(self):
        deep = DecodedImage(np.full((8, 8, 3), 100.4, np.float32) / 255)
        shallow = DecodedImage(np.full((8, 8, 3), 100, np.uint8))
        for name in ("jpeg", "webp"):
            assert encode_image(deep.pixels, deep, name) == encode_image(shallow.pixels, shallow, name)

    def test_16_bit_colour_with_a_transparent_colour_is_read(self):
        colours = np.array([0, 0x7F7F, 0xFFFF, 0x1234, 0xABCD, 0x0101], ">u2").tobytes()
        decoded = decode_image(png(2, 1, 16, 2, colours, chunk(b"tRNS", colours[:6])))
        assert decoded.pixels.shape == (1, 2, 3)
        np.testing.assert_array_equal(decoded.transparency, [[0, 65535]])

    def test_float_grey_is_read_as_it_is(self):
        values = np.array([[0.0, 0.25, 0.1234567, 1.0]], np.float32)
        decoded = decode_image(encoded(values, "TIFF"))
        assert decoded.pixels.dtype == np.float32
        np.testing.assert_array_equal(decoded.pixels, np.stack([values] * 3, axis=2))
        assert decoded.grey

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_float_grey_that_isnt_finite_is_refused(self, value: float):
        assert refused(encoded(np.array([[0.5, value]], np.float32), "TIFF")) == Cause.NOT_FINITE

    @pytest.mark.parametrize("value", [-0.01, 1.01, 255.0])
    def test_float_grey_outside_0_to_1_is_refused(self, value: float):
        assert refused(encoded(np.array([[0.5, value]], np.float32), "TIFF")) == Cause.OUT_OF_RANGE

    @pytest.mark.parametrize("value", [-1, 65536])
    def test_integers_outside_16_bits_are_refused(self, value: int):
        assert refused(encoded(np.array([[5, value]], np.int32), "TIFF")) == Cause.OUT_OF_RANGE


class TestProfile:
    @pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("output", ["png", "jpeg", "webp"])
    def test_of_rgb_is_kept(self, source: str, output: str):
        decoded = decode_image(encoded(noise(8, 8, 3), source, icc_profile=SRGB))
        assert decoded.icc_profile == SRGB
        written = decode_image(encode_image(decoded.pixels, decoded, output))
        assert written.icc_profile == SRGB

    def test_of_rgb_is_kept_for_a_palette(self):
        image = Image.fromarray(noise(8, 8, 3)).quantize(16)
        assert decode_image(encoded(image, icc_profile=SRGB)).icc_profile == SRGB

    def test_of_lab_or_cmyk_isnt_kept_as_the_pixels_are_rgb_now(self):
        for mode, profile in (("LAB", SRGB), ("CMYK", cmyk_profile())):
            data = encoded(Image.new(mode, (4, 4)), "TIFF", icc_profile=profile)
            assert decode_image(data).icc_profile is None

    def test_of_grey_isnt_written_to_webp_which_has_no_grey(self):
        decoded = decode_image(encoded(noise(8, 8), "JPEG", icc_profile=grey_profile()))
        assert decode_image(encode_image(decoded.pixels, decoded, "webp")).icc_profile is None

    def test_of_grey_is_kept_for_grey(self):
        decoded = decode_image(encoded(noise(8, 8), "PNG", icc_profile=grey_profile()))
        for output in ("png", "jpeg"):
            assert decode_image(encode_image(decoded.pixels, decoded, output)).icc_profile == grey_profile()

    @pytest.mark.parametrize("source", ["PNG", "JPEG", "TIFF"])
    def test_that_describes_other_channels_isnt_kept(self, source: str):
        """PNG readers refuse a file whose profile is of another colour space than its pixels."""
        assert decode_image(encoded(noise(8, 8), source, icc_profile=SRGB)).icc_profile is None
        assert decode_image(encoded(noise(8, 8, 3), source, icc_profile=grey_profile())).icc_profile is None

    def test_that_is_cut_off_isnt_kept(self):
        assert decode_image(encoded(noise(8, 8, 3), "JPEG", icc_profile=SRGB[:30])).icc_profile is None


def grey_profile() -> bytes:
    """The header of a profile of grey, which is all that tells its colour space."""
    return SRGB[:16] + b"GRAY" + SRGB[20:]


class TestFrames:
    frames = (noise(8, 8, 3), noise(8, 8, 3, seed=1))

    def animated(self, image_format: str) -> bytes:
        first, second = (Image.fromarray(frame) for frame in self.frames)
        return encoded(first, image_format, save_all=True, append_images=[second])

    def test_animated_gif_is_not_an_image(self):
        assert refused(self.animated("GIF")) == Cause.NOT_AN_IMAGE

    @pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
    def test_several_frames_or_pages_are_refused(self, image_format: str):
        assert refused(self.animated(image_format)) == Cause.UNSUPPORTED

    def test_mpo_gives_its_first_picture(self):
        decoded = decode_image(self.animated("MPO"))
        np.testing.assert_array_equal(decoded.pixels, decode_image(encoded(self.frames[0], "JPEG")).pixels)
