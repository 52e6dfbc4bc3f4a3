"""Damaged, hostile and oversized files: an image or a named error, never a crash or more memory than allowed."""

from __future__ import annotations

import contextlib
import functools
import io
import resource
import struct
import tracemalloc
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ot_core import Cause, ImageError, decode_image, encode_image
from tests.ot_core import tiff_files
from tests.ot_core.image_files import SRGB, chunk, cmyk_profile, encoded, noise, png, refused


class TestDamage:
    @pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
    @pytest.mark.parametrize("share", [0.5, 0.9])
    def test_truncated_files_are_damaged(self, image_format: str, share: float):
        data = encoded(noise(64, 64, 3), image_format)
        assert refused(data[: int(share * len(data))]) in (
            {Cause.DAMAGED, Cause.NOT_AN_IMAGE} if image_format in ("WEBP", "TIFF") else {Cause.DAMAGED}
        )

    @pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
    def test_a_file_cut_anywhere_gives_an_image_or_an_image_error(self, image_format: str):
        """Some bytes at the end don't matter; in the header and the pixels they do."""
        data = encoded(noise(12, 12, 3), image_format)
        for end in range(1, len(data), 7):
            try:
                assert decode_image(data[:end]).pixels.shape == (12, 12, 3)
            except ImageError as error:
                assert error.cause in (Cause.DAMAGED, Cause.NOT_AN_IMAGE)  # noqa: PT017

    def test_an_empty_file(self):
        assert refused(b"") == Cause.EMPTY_FILE

    @pytest.mark.parametrize("data", [b"\0", b"just text, whatever its name says", b"<html></html>", b"\x89PNG"])
    def test_anything_else_is_not_an_image(self, data: bytes):
        assert refused(data) == Cause.NOT_AN_IMAGE

    @pytest.mark.parametrize(("width", "height"), [(0, 1), (1, 0), (0, 0)])
    def test_a_header_without_pixels_is_refused(self, width: int, height: int):
        assert refused(png(width, height, 8, 2, b"")) in (Cause.DAMAGED, Cause.NOT_AN_IMAGE)


class TestJpegXl:
    @pytest.mark.parametrize("container", [False, True])
    def test_a_file_cut_anywhere_is_damaged(self, container: bool):
        pixels = noise(40, 30, 3)
        data = bytes(imagecodecs.jpegxl_encode(pixels, lossless=True, usecontainer=container))
        np.testing.assert_array_equal(decode_image(data).pixels, pixels)
        for tenth in range(1, 10):
            assert refused(data[: tenth * len(data) // 10]) == Cause.DAMAGED

    @pytest.mark.parametrize("width", [3, 2**30])
    def test_a_header_of_a_billion_pixels_is_refused_before_any_is_decoded(self, width: int):
        """The number of rows less one, in 30 bits, behind what says so; then columns alike, or as many as rows."""
        tall = 3 << 1 | (2**30 - 1) << 3
        numbers = tall | (1 << 33 if width == 2**30 else 0 << 36 | (width - 1) << 38)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert refused(b"\xff\x0a" + numbers.to_bytes(8, "little")) == Cause.TOO_LARGE
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024

    def test_an_image_over_the_limit_is_refused_and_one_at_the_limit_read(self):
        data = bytes(imagecodecs.jpegxl_encode(noise(10, 11, 3), lossless=True))
        assert refused(data, max_pixels=109) == Cause.TOO_LARGE
        assert decode_image(data, max_pixels=110).pixels.shape == (10, 11, 3)

    def test_a_box_that_is_smaller_than_its_own_head_is_damaged(self):
        start = bytes(imagecodecs.jpegxl_encode(noise(10, 11, 3), usecontainer=True))[:12]
        assert refused(start + b"\0\0\0\4ftyp" + bytes(20)) == Cause.DAMAGED


class TestPixelLimit:
    def test_a_huge_image_is_refused_by_its_header_alone(self):
        """10.8 GB of pixels, had they been allocated."""
        data = png(60_000, 60_000, 8, 2, b"")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert refused(data) == Cause.TOO_LARGE
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024

    @pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
    def test_an_image_over_the_limit_is_refused_and_one_at_the_limit_read(self, image_format: str):
        data = encoded(noise(10, 11, 3), image_format)
        assert refused(data, max_pixels=109) == Cause.TOO_LARGE
        assert decode_image(data, max_pixels=110).pixels.shape == (10, 11, 3)


def kinds_of_files() -> list[bytes]:
    """A small file of every kind: what is mutated."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb, grey = Image.fromarray(noise(9, 7, 3)), Image.fromarray(noise(9, 7))
    files = [encoded(rgb, name, exif=exif) for name in ("PNG", "JPEG", "WEBP", "TIFF")]
    files += [encoded(rgb, name) for name in ("BMP", "WEBP", "MPO")]
    files += [encoded(grey, name) for name in ("PNG", "JPEG", "TIFF", "BMP")]
    files += [encoded(rgb, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")]
    files += [encoded(rgb.convert(mode), "TIFF") for mode in ("CMYK", "RGBA", "P", "F", "1")]
    files += [encoded(rgb.quantize(8), transparency=2), encoded(rgb.convert("RGBA")), encoded(grey.convert("1"))]
    files += [encoded(noise(9, 7).astype(np.uint16), name) for name in ("PNG", "TIFF")]
    files += [encoded(rgb.convert("CMYK"), "JPEG", icc_profile=cmyk_profile()), encoded(rgb, icc_profile=SRGB)]
    files += [png(1, 1, 16, 2, bytes(6), chunk(b"tRNS", bytes(6))), png(2, 1, 8, 0, bytes(2), chunk(b"tRNS", b"\0\7"))]
    wide = np.arange(9 * 7 * 4).reshape(9, 7, 4) * 257
    files += [
        tiff_files.tiff(wide[..., :count], count > 1 and 2, 16, extra_samples=extra, compression=compression)
        for count, extra in ((1, ()), (3, ()), (4, (1,)))
        for compression in (1, 8)
    ]
    files += [tiff_files.tiff(wide[..., :1] % 16, 3, 4, tags={tiff_files.COLOUR_MAP: (999,) * 48}, tile=16)]
    files += [png(7, 9, 16, kind, bytes(9 * 7 * 2 * samples)) for kind, samples in ((2, 3), (4, 2), (6, 4))]
    for samples in (noise(9, 7), noise(9, 7, 4), wide[..., 0].astype(np.uint16), wide[..., :2].astype(np.uint16)):
        files += [bytes(imagecodecs.jpegxl_encode(samples, lossless=True, usecontainer=boxes)) for boxes in (0, 1)]
    return files


FILES = kinds_of_files()
STARTS = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"]
mutations = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6)


def corrected(data: bytes) -> bytes:
    """A PNG with its checksums made right again, so that damage reaches what the checksums protect."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, position = [data[:8]], 8
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        parts.append(chunk(data[position + 4 : position + 8], data[position + 8 : position + 8 + size]))
        position += 12 + size
    return b"".join(parts)


class TestMutations:
    @settings(max_examples=400)
    @given(st.sampled_from(FILES), mutations, st.booleans())
    def test_any_damage_gives_an_image_or_an_image_error(self, file: bytes, changes: list, near_the_start: bool):
        data = bytearray(file)
        for position, value in changes:
            data[position % (min(len(data), 200) if near_the_start else len(data))] = value
        try:
            decoded = decode_image(corrected(bytes(data)), max_pixels=100_000)
        except ImageError:
            return
        assert decoded.pixels.ndim == 3
        assert decoded.pixels.shape[2] == 3
        assert decoded.transparency is None or decoded.transparency.shape == decoded.pixels.shape[:2]
        pixels = np.rint(decoded.pixels * 255).astype(np.uint8) if decoded.pixels.dtype != np.uint8 else decoded.pixels
        assert encode_image(pixels, decoded, "png")

    @settings(max_examples=100)
    @given(st.binary(min_size=1, max_size=64), st.sampled_from(STARTS))
    def test_any_bytes_give_an_image_error(self, data: bytes, magic: bytes):
        refused(magic + data)


def _png_with(extra: bytes, size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG file with a chunk of ours after its header, which may lie about the size."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = buffer.getvalue()
    header = chunk(b"IHDR", struct.pack(">II", *size) + data[24:29])
    return data[:8] + header + extra + data[33:]


@functools.cache
def _zeros() -> bytes:
    """300 MB, compressed."""
    compressor = zlib.compressobj(9)
    return b"".join(compressor.compress(bytes(1_000_000)) for _ in range(300)) + compressor.flush()


@pytest.mark.parametrize("appended", [b"PK\x03\x04 a zip file", b"<script>alert(1)</script>", b"%PDF-1.4", b"GIF89a"])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_what_is_appended_to_an_image_is_ignored(appended: bytes, image_format: str):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 99, 199)).save(buffer, image_format)
    plain = decode_image(buffer.getvalue())
    np.testing.assert_array_equal(decode_image(buffer.getvalue() + appended).pixels, plain.pixels)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"GIF89a", b"%PDF-1.4\n", b"<html>"])
def test_an_image_behind_something_else_is_none(start: bytes):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    with pytest.raises(ImageError) as raised:
        decode_image(start + buffer.getvalue())
    assert raised.value.cause == Cause.NOT_AN_IMAGE


@pytest.mark.parametrize(
    ("kind", "start"), [(b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0"), (b"iCCP", b"profile\0\0")]
)
def test_compressed_metadata_of_300_mb_is_never_held(kind: bytes, start: bytes):
    zeros = _zeros()
    data = _png_with(chunk(kind, start + zeros))
    assert len(data) < 1_000_000
    tracemalloc.start()
    try:
        with contextlib.suppress(ImageError):
            assert decode_image(data).pixels.shape == (8, 8, 3)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
        zlib.decompress(zeros)
        assert tracemalloc.get_traced_memory()[1] > 250_000_000  # so that the measure means something
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
def test_a_header_that_promises_too_much_is_refused_before_any_pixel(size: tuple[int, int]):
    with pytest.raises(ImageError) as raised:
        decode_image(_png_with(b"", size))
    assert raised.value.cause == Cause.TOO_LARGE
