"""JPEG XL of every kind that its plugin reads: the right pixels, or a refusal that says why."""

from __future__ import annotations

import itertools
import struct
import sys

import imagecodecs
import numpy as np
import pillow_jxl  # noqa: F401 - to write such files
import pytest
from PIL import Image

from ot_core import DecodedImage, decode_image, encode_image
from tests.ot_core.image_files import SRGB, encoded, noise, refused_with

Fields = tuple[tuple[int, int], ...]
STRAIGHT: Fields = ((1, 2), (0, 1), (0, 2), (0, 1), (0, 2), (0, 2), (0, 2), (0, 1))  # one channel, of transparency


def jxl_bits(fields: Fields) -> bytes:
    """Values of so many bits each, the lowest first."""
    text = "".join(format(value, f"0{count}b")[::-1] for value, count in fields)
    return np.packbits([bit == "1" for bit in text], bitorder="little").tobytes()


def jxl_header(
    height: int, width: int, extra: Fields = ((0, 1),), channels: Fields = ((0, 2),), depth: Fields = ((0, 1), (0, 2))
) -> bytes:
    """What a codestream in sRGB begins with, by JPEG XL's definition.

    Args:
        height, width: of at most 512 pixels.
        extra: of orientation, size to show, preview and animation.
        channels: beside the colours.
        depth: of a colour.
    """
    size = ((0, 1), (0, 2), (height - 1, 9), (0, 3), (0, 2), (width - 1, 9))
    tones = ((1, 1),) * extra[0][0]
    fields = (*size, (0, 1), *extra, *depth, (1, 1), *channels, (0, 1), (1, 1), *tones, (0, 2), (1, 1))
    return b"\xff\x0a" + jxl_bits(fields)


def jxl_with(pixels: np.ndarray, extra: Fields = ((0, 1),), channels: Fields | None = None) -> bytes:
    """A codestream of pixels (H, W, 3) or (H, W, 4) with another header than its encoder wrote."""
    transparent = pixels.shape[2] == 4
    like = DecodedImage(pixels[..., :3], pixels[..., 3] if transparent else None)
    data, written = encode_image(like.pixels, like, "jxl"), ((1, 2), (1, 1)) if transparent else ((0, 2),)
    usual = jxl_header(*pixels.shape[:2], channels=written)
    assert data.startswith(usual)
    return jxl_header(*pixels.shape[:2], extra, channels or written) + data[len(usual) :]


def in_boxes(codestream: bytes, *ends: int, wide: bool = False) -> bytes:
    """A container whose codestream is cut there into parts."""

    def box(kind: bytes, content: bytes) -> bytes:
        if wide:
            return struct.pack(">I4sQ", 1, kind, 16 + len(content)) + content
        return struct.pack(">I4s", 8 + len(content), kind) + content

    start = b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"ftyp", b"jxl \0\0\0\0jxl ")
    if not ends:
        return start + struct.pack(">I4s", 0, b"jxlc") + codestream  # up to the end of the file
    pieces = [codestream[begin:end] for begin, end in itertools.pairwise((0, *ends, len(codestream)))]
    last = len(pieces) - 1
    numbers = [number | (number == last) << 31 for number in range(len(pieces))]
    return start + b"".join(
        box(b"jxlp", struct.pack(">I", number) + piece) for number, piece in zip(numbers, pieces, strict=True)
    )


class TestJpegXl:
    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    @pytest.mark.parametrize("size", [(5, 7), (8, 16), (256, 8), (600, 600), (90, 160), (3, 9000)])
    def test_what_we_write_is_read_exactly(self, channels: int, size: tuple[int, int]):
        samples = noise(*size, channels)
        grey, transparency = channels < 3, samples[..., -1] if channels in (2, 4) else None
        pixels = samples[..., :1].repeat(3, axis=2) if grey else samples[..., :3]
        decoded = decode_image(encode_image(pixels, DecodedImage(pixels, transparency, grey), "jxl"))
        np.testing.assert_array_equal(decoded.pixels, pixels)
        np.testing.assert_array_equal(decoded.transparency, transparency)
        assert decoded.grey == grey
        assert decoded.icc_profile[16:20] == (b"GRAY" if grey else b"RGB ")

    @pytest.mark.parametrize("bits", [9, 10, 12, 16])
    def test_grey_of_more_than_8_bits_is_read_in_full_precision(self, bits: int):
        samples = np.random.default_rng(bits).integers(0, 2**bits, (9, 7), dtype=np.uint16)
        decoded = decode_image(bytes(imagecodecs.jpegxl_encode(samples, lossless=True, bitspersample=bits)))
        assert decoded.grey
        np.testing.assert_allclose(decoded.pixels[..., 0], samples / (2**bits - 1), atol=0.51 / 65535)

    def test_grey_of_16_bits_keeps_transparency_of_16(self):
        samples = np.random.default_rng(0).integers(0, 65536, (9, 7, 2), dtype=np.uint16)
        decoded = decode_image(bytes(imagecodecs.jpegxl_encode(samples, lossless=True)))
        np.testing.assert_array_equal(np.rint(decoded.pixels[..., 0] * 65535), samples[..., 0])
        np.testing.assert_array_equal(decoded.transparency, samples[..., 1])

    def test_float_grey_is_read_as_it_is(self):
        values = np.random.default_rng(0).random((9, 7), np.float32)
        decoded = decode_image(bytes(imagecodecs.jpegxl_encode(values, lossless=True)))
        np.testing.assert_array_equal(decoded.pixels, values[..., None].repeat(3, axis=2))

    def test_float_grey_with_transparency_is_refused(self):
        values = np.random.default_rng(0).random((9, 7, 2), np.float32)
        refused_with(bytes(imagecodecs.jpegxl_encode(values, lossless=True)), "deep grey with transparency")

    @pytest.mark.parametrize("channels", [3, 4])
    @pytest.mark.parametrize("dtype", [np.uint16, np.float32])
    def test_colour_of_more_than_8_bits_is_cut_to_8(self, channels: int, dtype: type):
        unit = np.random.default_rng(0).random((9, 7, channels))
        samples = (unit * 65535).astype(dtype) if dtype == np.uint16 else unit.astype(dtype)
        decoded = decode_image(bytes(imagecodecs.jpegxl_encode(samples, lossless=True)))
        assert decoded.pixels.dtype == np.uint8
        assert np.abs(decoded.pixels - unit[..., :3] * 255).max() <= 1.01
        assert (decoded.transparency is None) == (channels == 3)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_the_header_turns_the_picture_and_exif_does_not(self, orientation: int):
        stored, exif = noise(9, 7, 3), Image.Exif()
        exif[0x010F], exif[0x0112] = "Maker", 6
        turned = jxl_with(stored, ((1, 1), (orientation - 1, 3), (0, 3)))
        block = struct.pack(">I", 0) + exif.tobytes()[6:]
        boxes = in_boxes(turned, 5)
        data = boxes + struct.pack(">I4s", 8 + len(block), b"Exif") + block
        decoded = decode_image(data, max_pixels=63)
        upright = {
            1: stored,
            2: stored[:, ::-1],
            3: stored[::-1, ::-1],
            4: stored[::-1],
            5: stored.swapaxes(0, 1),
            6: np.rot90(stored, -1),
            7: stored[::-1, ::-1].swapaxes(0, 1),
            8: np.rot90(stored),
        }[orientation]
        np.testing.assert_array_equal(decoded.pixels, upright)
        kept = Image.Exif()
        kept.load(decoded.exif)
        assert dict(kept) == {0x010F: "Maker"}

    def test_exif_that_we_write_is_read(self):
        exif = Image.Exif()
        exif[0x010F] = "Maker"
        like = DecodedImage(noise(9, 7, 3), exif=exif.tobytes())
        data = encode_image(like.pixels, like, "jxl")
        assert decode_image(data).exif == like.exif
        at = data.index(b"Exif") + 4
        assert data[at : at + 4] == bytes(4)  # where the block begins, as other readers expect

    def test_exif_without_where_it_begins_is_read(self):
        exif = Image.Exif()
        exif[0x010F] = "Maker"
        data = encoded(noise(9, 7, 3), "JXL", lossless=True, exif=exif.tobytes())
        assert b"ExifMM" in data  # as the plugin writes it by itself
        assert decode_image(data).exif == exif.tobytes()

    def test_what_was_a_jpeg_file_is_upright_and_like_it(self, photo, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        (tmp_path / "a.jpg").write_bytes(encoded(photo(40, 56), "JPEG", exif=exif, icc_profile=SRGB))
        with Image.open(tmp_path / "a.jpg") as jpeg:
            data = encoded(jpeg, "JXL", lossless_jpeg=True)
        assert b"jbrd" in data
        found, wanted = decode_image(data), decode_image((tmp_path / "a.jpg").read_bytes())
        assert found.pixels.shape == (56, 40, 3)
        assert np.abs(found.pixels.astype(int) - wanted.pixels).mean() < 1
        assert found.icc_profile == SRGB

    @pytest.mark.parametrize("ends", [(), (1,), (20,), (3, 8, 40)])
    @pytest.mark.parametrize("wide", [False, True])
    def test_a_codestream_in_any_boxes_is_read(self, ends: tuple[int, ...], wide: bool):
        stored = noise(9, 7, 3)
        decoded = decode_image(in_boxes(jxl_with(stored), *ends, wide=wide))
        np.testing.assert_array_equal(decoded.pixels, stored)

    @pytest.mark.parametrize("premultiplied", [False, True])
    def test_colours_are_divided_by_transparency_that_they_were_multiplied_by(self, premultiplied: bool):
        stored = noise(9, 7, 4)
        stored[..., :3] = np.minimum(stored[..., :3], stored[..., 3:])
        decoded = decode_image(jxl_with(stored, channels=(*STRAIGHT[:-1], (premultiplied, 1))))
        np.testing.assert_array_equal(decoded.transparency, stored[..., 3])
        seen = stored[..., 3:] > 0
        wanted = stored[..., :3] * (255 / np.maximum(stored[..., 3:], 1)) if premultiplied else stored[..., :3]
        assert np.abs((decoded.pixels - wanted) * seen).max() <= premultiplied

    @pytest.mark.parametrize(
        ("extra", "channels", "text"),
        [
            (((1, 1), (0, 3), (0, 2), (1, 1)), None, "animation"),
            (((1, 1), (0, 3), (0, 1), (1, 1), (0, 1)), None, "preview"),
            (((0, 1),), ((1, 2), (0, 1), (2, 2), (2, 4), *STRAIGHT[3:-1]), "CMYK"),
            (((0, 1),), ((3, 2), (4094, 12)), "4095 channels"),
        ],
    )
    def test_other_kinds_are_refused(self, extra: Fields, channels: Fields | None, text: str):
        refused_with(jxl_with(noise(9, 7, 4), extra, channels), text)

    def test_24_bits_are_refused(self):
        refused_with(jxl_header(9, 7, depth=((0, 1), (3, 2), (23, 6))), "24 bits")

    def test_an_animation_is_refused(self):
        refused_with(bytes(imagecodecs.jpegxl_encode(noise(9, 7, 3)[None].repeat(3, axis=0))), "animation")

    def test_it_says_what_it_needs(self, monkeypatch: pytest.MonkeyPatch):
        data = jxl_with(noise(9, 7, 3))
        monkeypatch.setitem(sys.modules, "pillow_jxl", None)
        refused_with(data, "pip install 'dot-beam[codecs]'")
