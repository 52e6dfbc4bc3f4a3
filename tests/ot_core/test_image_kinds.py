"""PNG, JPEG and BMP of every depth, palette and layout: the right pixels, or a refusal that says why."""

from __future__ import annotations

import itertools
import struct
import zlib

import imagecodecs
import numpy as np
import pillow_jxl  # noqa: F401 - to write such files
import pytest

from ot_core import decode_image
from tests.ot_core.image_files import chunk, refused_with

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
SAMPLES = {GREY: 1, COLOUR: 3, PALETTE: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), COLOUR: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), COLOUR_ALPHA: (8, 16)}
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def packed(rows: np.ndarray, bits: int) -> list[bytes]:
    """Each row of samples, the first in the highest bits, and 16 bits big-endian."""
    flat = rows.reshape(rows.shape[0], -1)
    if bits == 16:
        return [row.astype(">u2").tobytes() for row in flat]
    stream = ((flat[..., None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8)
    return [np.packbits(row.reshape(-1)).tobytes() for row in stream]


def png(samples: np.ndarray, depth: int, kind: int, chunks: bytes, interlaced: bool) -> bytes:
    parts = [samples[y::dy, x::dx] for y, x, dy, dx in PASSES] if interlaced else [samples]
    lines = b"".join(b"\0" + row for part in parts if part.size for row in packed(part, depth))
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, kind, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "depth"), [(kind, depth) for kind in DEPTHS for depth in DEPTHS[kind]])
def test_png_of_every_kind_is_read_exactly_or_rounded(kind: int, depth: int, interlaced: bool, transparent: bool):
    rng = np.random.default_rng([kind, depth])
    samples = rng.integers(0, 2**depth, (13, 11, SAMPLES[kind]))
    values, alpha, chunks = samples / (2**depth - 1), None, b""
    if kind == PALETTE:
        palette = rng.integers(0, 256, (2**depth, 4), dtype=np.uint8)
        chunks = chunk(b"PLTE", palette[:, :3].tobytes())
        values = palette[samples[..., 0], :3] / 255
        if transparent:
            chunks += chunk(b"tRNS", palette[:, 3].tobytes())
            alpha = palette[samples[..., 0], 3] / 255
    elif kind in (GREY_ALPHA, COLOUR_ALPHA):
        values, alpha = values[..., :-1], values[..., -1]
    elif transparent:
        chunks = chunk(b"tRNS", samples[3, 4].astype(">u2").tobytes())
        alpha = (samples != samples[3, 4]).any(axis=2).astype(float)
    decoded = decode_image(png(samples, depth, kind, chunks, interlaced))
    scale = 255 if decoded.pixels.dtype == np.uint8 else 1
    assert (scale == 1) == (depth == 16)
    assert decoded.grey == (kind in (GREY, GREY_ALPHA))
    assert np.abs(decoded.pixels / scale - values).max() <= (0.501 / 255 if scale == 255 else 1e-7)
    assert (decoded.transparency is None) == (alpha is None)
    if alpha is not None:
        most = np.iinfo(decoded.transparency.dtype).max
        assert np.abs(decoded.transparency / most - alpha).max() <= (0.501 / 255 if most == 255 else 1e-7)


def test_every_value_of_a_png_of_16_bits_is_read():
    samples = np.arange(65536).reshape(64, 1024, 1).repeat(3, axis=2)
    decoded = decode_image(png(samples, 16, COLOUR, b"", False))
    np.testing.assert_array_equal(np.rint(decoded.pixels.astype(float) * 65535), samples)


class TestJpeg:
    rgb = np.stack([np.add.outer(np.arange(40), np.arange(56)) * k % 200 + 20 for k in (1, 2, 3)], 2).astype(np.uint8)
    inks = np.dstack([rgb, np.full((40, 56), 255, np.uint8)])  # inverted, as Adobe stores them: no black

    @pytest.mark.parametrize("space", ["CMYK", "YCCK"])
    def test_inks_with_adobe_marker_are_read(self, space: str):
        data = bytes(imagecodecs.jpeg8_encode(self.inks, 98, colorspace="CMYK", outcolorspace=space, subsampling="444"))
        assert np.abs(decode_image(data).pixels.astype(int) - self.rgb).mean() < 2

    @pytest.mark.parametrize("space", ["CMYK", "YCCK"])
    def test_inks_without_adobe_marker_are_refused(self, space: str):
        data = bytes(imagecodecs.jpeg8_encode(self.inks, 98, colorspace="CMYK", outcolorspace=space))
        at = data.index(b"\xff\xee")
        refused_with(data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :], "Adobe marker")

    @pytest.mark.parametrize("space", ["RGB", "YCBCR"])
    def test_colours_are_what_another_reader_gives(self, space: str):
        data = bytes(imagecodecs.jpeg8_encode(self.rgb, 98, colorspace="RGB", outcolorspace=space))
        np.testing.assert_array_equal(decode_image(data).pixels, imagecodecs.jpeg8_decode(data))

    @pytest.mark.parametrize("bits", [12, 16])
    def test_more_than_8_bits_are_refused(self, bits: int):
        deep = self.rgb.astype(np.uint16) << (bits - 8)
        data = imagecodecs.jpeg_encode(deep, 98, lossless=bits == 16, bitspersample=bits)
        refused_with(bytes(data), f"{bits}-bit")


def bmp(
    rows: list[bytes] | bytes,
    bits: int,
    *,
    compression: int = 0,
    palette: np.ndarray | None = None,
    masks: tuple[int, ...] = (),
    header: int = 40,
    top_down: bool = False,
) -> bytes:
    """A file of 7 rows of 11 pixels."""
    if header == 12:
        head = struct.pack("<IHHHH", 12, 11, 7, 1, bits)
    else:
        used, height = 0 if palette is None else len(palette), -7 if top_down else 7
        head = struct.pack("<IiiHHIIiiII", header, 11, height, 1, bits, compression, 0, 2835, 2835, used, 0)
        head = (head + struct.pack(f"<{len(masks)}I", *masks)).ljust(header, b"\0")
    if palette is not None:
        filler = b"" if header == 12 else b"\0"
        head += b"".join(bytes(colour[::-1]) + filler for colour in palette.tolist())
    if isinstance(rows, list):
        rows = b"".join(row + b"\0" * (-len(row) % 4) for row in (rows if top_down else rows[::-1]))
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(rows), 0, 0, 14 + len(head)) + head + rows


def check_bmp(data: bytes, colours: np.ndarray, alpha: np.ndarray | None = None, within: int = 0) -> None:
    decoded = decode_image(data)
    assert np.abs(decoded.pixels.astype(int) - colours).max() <= within
    assert (decoded.transparency is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(decoded.transparency, alpha)


PALETTES = ("colours", "greys", "inverted", "indices")


@pytest.mark.parametrize("kind", PALETTES)
@pytest.mark.parametrize(
    ("bits", "used"), [(bits, used) for bits in (1, 4, 8) for used in (2, 3, 16, 256) if used <= 2**bits]
)
def test_bmp_with_any_palette(bits: int, used: int, kind: str):
    rng = np.random.default_rng([bits, used])
    indices = rng.integers(0, used, (7, 11))
    ramp = np.linspace(0, 255, used).astype(int)
    palettes = {"colours": rng.integers(0, 256, (used, 3)), "greys": ramp[:, None].repeat(3, 1)}
    palettes |= {"inverted": ramp[::-1, None].repeat(3, 1), "indices": np.arange(used)[:, None].repeat(3, 1)}
    palette = palettes[kind]
    rows = packed(indices, bits)
    for top_down in (False, True):
        check_bmp(bmp(rows, bits, palette=palette, top_down=top_down), palette[indices])
    if used == 2**bits:
        check_bmp(bmp(rows, bits, palette=palette, header=12), palette[indices])
    if bits > 1:
        shift = 8 - bits
        runs = b"".join(b"".join(bytes([1, int(i) << shift]) for i in row) + b"\0\0" for row in indices[::-1]) + b"\0\1"
        check_bmp(bmp(runs, bits, compression=1 if bits == 8 else 2, palette=palette), palette[indices])


def channels(values: np.ndarray, masks: tuple[int, ...]) -> np.ndarray:
    """What lies in the bits of each mask, scaled to 0 to 255."""
    lowest = [mask & -mask for mask in masks]
    found = [(values & mask) // low * 255 / (mask // low) for mask, low in zip(masks, lowest, strict=True)]
    return np.rint(np.stack(found, 2)).astype(int)


@pytest.mark.parametrize(
    ("masks", "compression"), [((0x7C00, 0x3E0, 0x1F), 0), ((0x7C00, 0x3E0, 0x1F), 3), ((0xF800, 0x7E0, 0x1F), 3)]
)
def test_bmp_of_16_bits(masks: tuple[int, ...], compression: int):
    values = np.random.default_rng(0).integers(0, 65536, (7, 11))
    data = bmp(
        [row.astype("<u2").tobytes() for row in values], 16, compression=compression, masks=masks * (compression > 0)
    )
    check_bmp(data, channels(values, masks), within=1)


@pytest.mark.parametrize(
    ("header", "transparent"), [(40, False), *itertools.product((56, 108, 124), (False, True))]
)  # the shortest has no mask of transparency
@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("masks", [(0xFF0000, 0xFF00, 0xFF), (0xFF000000, 0xFF0000, 0xFF00)])
def test_bmp_of_32_bits(masks: tuple[int, ...], header: int, transparent: bool, top_down: bool):
    values = np.random.default_rng(0).integers(0, 2**32, (7, 11))
    rest = 0xFFFFFFFF & ~sum(masks)
    given = masks if header == 40 else (*masks, rest * transparent)
    rows = [row.astype("<u4").tobytes() for row in values]
    data = bmp(rows, 32, compression=3, masks=given, header=header, top_down=top_down)
    check_bmp(data, channels(values, masks), channels(values, (rest,))[..., 0] if transparent else None)


def test_bmp_whose_fourth_byte_means_nothing():
    values = np.random.default_rng(0).integers(0, 2**32, (7, 11))
    check_bmp(bmp([row.astype("<u4").tobytes() for row in values], 32), channels(values, (0xFF0000, 0xFF00, 0xFF)))


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
        (16, (0xF00, 0xF0, 0xF, 0xF000)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF, 0)),
    ],
)
def test_bmp_with_other_masks_is_refused(bits: int, masks: tuple[int, ...]):
    refused_with(bmp([bytes(11 * bits // 8)] * 7, bits, compression=3, masks=masks, header=124), "BMP")


@pytest.mark.parametrize("compression", [4, 5, 6])
def test_bmp_of_other_compressions_is_refused(compression: int):
    refused_with(bmp(b"", 24, compression=compression), "compression")
