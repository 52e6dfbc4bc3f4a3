"""TIFF files of every kind: read with exactly the right pixels, or refused with the tag's name.

Files come from `tiff_files.tiff`. `tifffile` reads their samples back, and what these mean is written out here.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from ot_core import Cause, DecodedImage, ImageError, decode_image
from tests.ot_core.image_files import encoded, noise, refused
from tests.ot_core.tiff_files import (
    BITS,
    CFA,
    CMYK,
    COLOUR_MAP,
    COMPRESSION,
    DEFLATE,
    FILL_ORDER,
    FLOAT,
    ICCLAB,
    INT,
    JPEG,
    LAB,
    LINEAR_RAW,
    LZMA,
    LZW,
    MASK,
    MIN_IS_BLACK,
    MIN_IS_WHITE,
    NONE,
    OLD_DEFLATE,
    ORIENTATION,
    PACKBITS,
    PALETTE,
    PHOTOMETRIC,
    PLANAR,
    PREDICTOR,
    RGB,
    SAMPLE_FORMAT,
    SAMPLES,
    STRIP_OFFSETS,
    UINT,
    WIDTH,
    YCBCR,
    ZSTD,
    tiff,
)

INK_SET, SUBSAMPLING, REFERENCE_BLACK_WHITE = 332, 530, 532
COLOURS = {MIN_IS_WHITE: 1, MIN_IS_BLACK: 1, RGB: 3, PALETTE: 1, MASK: 1, CMYK: 4, YCBCR: 3, LAB: 3, ICCLAB: 3}
COLOURS |= {CFA: 1, LINEAR_RAW: 3}
KINDS = [(bits, UINT) for bits in (1, 2, 4, 8, 10, 12, 14, 16, 32)] + [(bits, FLOAT) for bits in (16, 32, 64)]
KINDS += [(bits, INT) for bits in (8, 16)]
EXTRA = ((), (0,), (1,), (2,), (0, 0), (1, 0), (2, 0), (0, 2), (999,))
Layout = tuple[int, int, int, tuple[int, ...]]


def is_read(bits: int, sample_format: int, photometric: int, extra: tuple[int, ...]) -> bool:
    """The table in ot_core.tiff."""
    if any(kind > 2 for kind in extra) or any(extra[1:]):
        return False
    if sample_format == FLOAT:
        return photometric in (MIN_IS_WHITE, MIN_IS_BLACK) and bits in (32, 64) and not extra
    if sample_format == INT:
        return False
    match photometric:
        case 0 | 1:
            return bits in (1, 2, 4, 8, 12, 16, 32) if not extra else bits in (8, 16) and len(extra) == 1
        case 2:
            return (bits == 8 and len(extra) <= 3) or (bits == 16 and len(extra) <= 1)
        case 3:
            return bits in (1, 2, 4, 8) if not extra else bits == 8 and extra in ((0,), (2,))
        case 5:
            return (bits == 8 and extra in ((), (0,), (0, 0))) or (bits == 16 and not extra)
        case 6 | 8:
            return bits == 8 and not extra
        case _:
            return False


def samples_of(bits: int, sample_format: int, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, bits, sample_format, count])
    if sample_format == FLOAT:
        return rng.random((9, 21, count)).astype(f"f{bits // 8}")
    return rng.integers(0, 2 ** (bits - (sample_format == INT)), (9, 21, count), dtype=np.uint64)


def meaning(samples: np.ndarray, layout: Layout, colour_map: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """RGB or grey (H, W, 3 or 1), and alpha (H, W), in [0, 1]."""
    bits, sample_format, photometric, extra = layout
    values = samples.astype(float) / (1 if sample_format == FLOAT else 2.0**bits - 1)
    count = COLOURS[photometric]
    alpha = values[..., count] if extra[:1] in ((1,), (2,)) else None
    colours = values[..., :count]
    match photometric:
        case 0:
            colours = 1 - colours
        case 3:
            colours = colour_map[samples[..., 0].astype(int)] / 65535
        case 5:
            colours = (1 - colours[..., :3]) * (1 - colours[..., 3:])
        case 6:
            y, b, r = np.moveaxis(colours, 2, 0) * 255
            red, blue = y + 1.402 * (r - 128), y + 1.772 * (b - 128)
            colours = np.stack([red, y - 0.344136 * (b - 128) - 0.714136 * (r - 128), blue], 2).clip(0, 255) / 255
        case 8:
            colours = lab_to_srgb(samples)
    if extra[:1] == (1,):
        shown = alpha[..., None]
        colours = np.where(shown > 0, np.minimum(colours / np.maximum(shown, 1e-9), 1), 0)
    return colours, alpha


def lab_to_srgb(samples: np.ndarray) -> np.ndarray:
    """CIE 1976 with the white of D50, adapted to sRGB's by Bradford's matrix; NaN where sRGB hasn't the colour."""
    lightness = samples[..., 0].astype(float) * 100 / 255
    a, b = (samples[..., i].astype(np.uint8).view(np.int8).astype(float) for i in (1, 2))
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], 2)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.96422, 1, 0.82521)
    to_rgb = [
        (3.1338561, -1.6168667, -0.4906146),
        (-0.9787684, 1.9161415, 0.033454),
        (0.0719453, -0.2289914, 1.4052427),
    ]
    linear = xyz @ np.array(to_rgb).T
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
    outside = (srgb < 0) | (srgb > 1)
    srgb[outside.any(2)] = np.nan
    return srgb


def colour_map_of(bits: int) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 65536, (2 ** min(bits, 8), 3))


def file_of(layout: Layout, samples: np.ndarray, **coding: Any) -> bytes:
    bits, sample_format, photometric, extra = layout
    tags = {COLOUR_MAP: tuple(colour_map_of(bits).T.ravel().tolist())} if photometric == PALETTE else {}
    if photometric == YCBCR:
        tags[SUBSAMPLING] = (1, 1)
    return tiff(samples, photometric, bits, sample_format=sample_format, extra_samples=extra, tags=tags, **coding)


def samples_for(layout: Layout) -> np.ndarray:
    bits, sample_format, photometric, extra = layout
    return samples_of(bits, sample_format, COLOURS[photometric] + len(extra))


def check(decoded: DecodedImage, layout: Layout, samples: np.ndarray) -> None:
    """Within rounding to 8 bits, or of a float32; CMYK within 1.5 levels, as inks are rounded before they multiply.

    Colours of 16 bits that are divided by their transparency are rounded to 16 bits.
    """
    bits, _, photometric, extra = layout
    colours, alpha = meaning(samples, layout, colour_map_of(bits))
    pixels = decoded.pixels / 255 if decoded.pixels.dtype == np.uint8 else decoded.pixels
    within = 1.5 / 255 if photometric == CMYK else 0.501 / 255 if decoded.pixels.dtype == np.uint8 else 1e-7
    within = 0.51 / 65535 if bits == 16 and extra[:1] == (1,) else within
    wanted = np.broadcast_to(colours, pixels.shape)
    known = np.isfinite(wanted)
    assert known.any()
    assert np.abs(pixels - wanted)[known].max() <= within
    assert decoded.grey == (photometric in (MIN_IS_WHITE, MIN_IS_BLACK))
    assert (decoded.transparency is None) == (alpha is None)
    if alpha is not None:
        most = np.iinfo(decoded.transparency.dtype).max
        assert np.abs(decoded.transparency / most - alpha).max() <= 0.501 / most
        assert most == 2**bits - 1 or photometric == PALETTE


def codings(bits: int, sample_format: int) -> Iterator[dict[str, Any]]:
    """How samples may lie in a file, without what TIFF doesn't define."""
    compressions = (NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD)
    for planar, compression, order, fill in itertools.product((1, 2), compressions, "<>", (1, 2)):
        for predictor, tile, big in ((1, 0, False), (1, 16, False), (1, 0, True), (2, 0, False), (3, 16, False)):
            defined = {1: True, 2: bits % 8 == 0, 3: sample_format == FLOAT}[predictor]
            if not defined or (predictor > 1 and compression in (NONE, PACKBITS)) or (big and order == ">"):
                continue
            found = {"planar": planar, "compression": compression, "byte_order": order, "fill_order": fill}
            yield found | {"predictor": predictor, "tile": tile, "big": big}


def outcome(data: bytes) -> DecodedImage | ImageError:
    try:
        return decode_image(data)
    except ImageError as error:
        return error


LAYOUTS = [(*kind, photometric, extra) for kind in KINDS for photometric in COLOURS for extra in EXTRA]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if is_read(*layout)], ids=str)
def test_what_is_read_has_the_right_pixels_however_it_is_coded(layout: Layout):
    samples = samples_for(layout)
    if layout[2] == LAB:
        samples = np.where(np.arange(3) == 0, 60 + samples % 140, (samples % 60 + 226) % 256)  # colours that sRGB has
    count = samples.shape[2]
    done = 0
    for coding in codings(*layout[:2]):
        if count == 1 and coding["planar"] == 2:
            continue
        data = file_of(layout, samples, **coding)
        found = outcome(data)
        if isinstance(found, ImageError):
            assert found.cause == Cause.UNSUPPORTED, (coding, found)
            culprits = {"PlanarConfiguration": coding["planar"] == 2, "FillOrder": layout[2] == YCBCR}
            assert any(name in found.message for name, expected in culprits.items() if expected), (coding, found)
        else:
            check(found, layout, samples)
            done += 1
    assert done >= 36


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if is_read(*layout)][::3], ids=str)
def test_the_files_of_these_tests_hold_what_tifffile_reads(layout: Layout):
    samples = samples_for(layout)
    for coding in list(codings(*layout[:2]))[::5]:
        found = tifffile.imread(io.BytesIO(file_of(layout, samples, **coding)))
        if coding["planar"] == 2 and samples.shape[2] > 1:
            found = np.moveaxis(found, 0, -1)
        np.testing.assert_array_equal(found.reshape(samples.shape).astype(float), samples.astype(float))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_other_kind_is_refused_with_the_tag_that_tells(kind: tuple[int, int]):
    for layout in LAYOUTS:
        if layout[:2] != kind or is_read(*layout):
            continue
        for coding in ({}, {"planar": 2}, {"compression": LZW, "byte_order": ">"}, {"tile": 16, "fill_order": 2}):
            with pytest.raises(ImageError) as error:
                decode_image(file_of(layout, samples_for(layout), **coding))
            assert error.value.cause == Cause.UNSUPPORTED
            assert f"PhotometricInterpretation={layout[2]}" in error.value.message
            assert f"BitsPerSample={layout[0]}" in error.value.message
            assert f"SampleFormat={layout[1]}" in error.value.message
            assert "\n" not in error.value.message


@pytest.mark.parametrize("byte_order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "layout",
    [(16, UINT, MIN_IS_WHITE, ()), (16, UINT, RGB, (2,)), (8, UINT, RGB, (1,)), (4, UINT, PALETTE, ())],
    ids=str,
)
def test_pixels_are_turned_upright(layout: Layout, orientation: int, byte_order: str):
    samples = samples_for(layout)
    bits, _, photometric, extra = layout
    tags: dict[int, tuple[int, ...]] = {ORIENTATION: (orientation,)}
    if photometric == PALETTE:
        tags[COLOUR_MAP] = tuple(colour_map_of(bits).T.ravel().tolist())
    data = tiff(samples, photometric, bits, extra_samples=extra, byte_order=byte_order, tags=tags)
    turned = {
        1: samples,
        2: samples[:, ::-1],
        3: samples[::-1, ::-1],
        4: samples[::-1],
        5: np.swapaxes(samples, 0, 1),
        6: np.rot90(samples, -1),
        7: np.swapaxes(samples[::-1, ::-1], 0, 1),
        8: np.rot90(samples, 1),
    }[orientation]
    check(decode_image(data), layout, turned)


class TestJpegInTiff:
    rgb = np.stack([np.add.outer(np.arange(40), np.arange(56)) * k % 200 + 20 for k in (1, 2, 3)], 2).astype(np.uint8)

    @pytest.mark.parametrize(
        ("photometric", "options"),
        [("rgb", {}), ("ycbcr", {"subsampling": (1, 1)}), ("ycbcr", {"subsampling": (2, 2)}), ("minisblack", {})],
    )
    @pytest.mark.parametrize("tile", [None, (16, 16)])
    @pytest.mark.parametrize("byteorder", "<>")
    def test_gives_what_tifffile_gives(self, photometric: str, options: dict, tile: tuple | None, byteorder: str):
        pixels = self.rgb[..., 0] if photometric == "minisblack" else self.rgb
        file = io.BytesIO()
        tifffile.imwrite(
            file, pixels, photometric=photometric, compression="jpeg", tile=tile, byteorder=byteorder, **options
        )
        wanted = tifffile.imread(io.BytesIO(file.getvalue()))
        decoded = decode_image(file.getvalue())
        np.testing.assert_array_equal(decoded.pixels if wanted.ndim == 3 else decoded.pixels[..., 0], wanted)
        assert decoded.grey == (photometric == "minisblack")

    def test_negatives_and_inks_are_turned_into_light(self):
        for photometric in (MIN_IS_WHITE, CMYK):
            level = np.full((16, 16, COLOURS[photometric]), 255, np.uint8) * (np.arange(COLOURS[photometric]) != 3)
            decoded = decode_image(tiff(level.astype(np.uint8), photometric, 8, compression=JPEG, rows_per_strip=16))
            assert decoded.pixels.max() == 0

    def test_of_12_bits_is_refused(self):
        data = tiff(np.zeros((8, 8, 1), np.uint8), MIN_IS_BLACK, 8, compression=JPEG, tags={BITS: (12,)})
        assert_refused(data, "Compression=7", "BitsPerSample=12")


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_faxes_are_read_exactly(compression: str):
    bits = noise(30, 41) > 127
    decoded = decode_image(encoded(Image.fromarray(bits), "TIFF", compression=compression))
    np.testing.assert_array_equal(decoded.pixels[..., 0], bits * np.uint8(255))


def assert_refused(data: bytes, *told: str) -> None:
    with pytest.raises(ImageError) as error:
        decode_image(data)
    assert error.value.cause == Cause.UNSUPPORTED
    for text in told:
        assert text in error.value.message


class TestTags:
    grey, colours = np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 3), np.uint8)

    @pytest.mark.parametrize(
        ("photometric", "tags", "told"),
        [
            (MIN_IS_BLACK, {COMPRESSION: (6,)}, "Compression=6"),
            (MIN_IS_BLACK, {COMPRESSION: (34712,)}, "Compression=34712"),
            (MIN_IS_BLACK, {COMPRESSION: (50001,)}, "Compression=50001"),
            (MIN_IS_BLACK, {COMPRESSION: (4,)}, "Compression=4"),
            (MIN_IS_BLACK, {SAMPLE_FORMAT: (4,)}, "SampleFormat=4"),
            (MIN_IS_BLACK, {FILL_ORDER: (3,)}, "FillOrder=3"),
            (MIN_IS_BLACK, {PREDICTOR: (2,)}, "Predictor=2"),
            (MIN_IS_BLACK, {PREDICTOR: (3,)}, "Predictor=3"),
            (RGB, {PLANAR: (3,)}, "PlanarConfiguration=3"),
            (RGB, {BITS: (5, 6, 5)}, "BitsPerSample=5,6,5"),
            (RGB, {SAMPLES: (4,)}, "SamplesPerPixel=4"),
            (RGB, {SAMPLE_FORMAT: (1, 3, 1)}, "SampleFormat=1,3,1"),
            (YCBCR, {}, "YCbCrSubSampling=missing"),
            (YCBCR, {SUBSAMPLING: (2, 2)}, "YCbCrSubSampling=2,2"),
            (YCBCR, {SUBSAMPLING: (1, 1), REFERENCE_BLACK_WHITE: (16, 235, 128, 240, 128, 240)}, "ReferenceBlackWhite"),
        ],
    )
    def test_that_would_be_read_wrongly_are_refused(self, photometric: int, tags: dict[int, tuple], told: str):
        samples = self.grey if photometric == MIN_IS_BLACK else self.colours
        assert_refused(tiff(samples, photometric, 8, tags=tags), told)

    def test_inks_that_arent_cmyk_are_refused(self):
        assert_refused(tiff(np.zeros((4, 4, 4), np.uint8), CMYK, 8, tags={INK_SET: (2,)}), "InkSet=2")

    def test_a_fourth_sample_that_no_tag_explains_is_refused(self):
        assert_refused(tiff(np.zeros((4, 4, 4), np.uint8), RGB, 8), "SamplesPerPixel=4", "ExtraSamples=missing")

    def test_pixels_without_an_interpretation_are_refused(self):
        assert_refused(tiff(self.grey, None, 8), "PhotometricInterpretation=missing")

    def test_a_colour_map_of_8_bits_is_refused(self):
        assert_refused(tiff(self.grey, PALETTE, 8, tags={COLOUR_MAP: tuple(range(256)) * 3}), "ColorMap")

    def test_a_short_colour_map_is_damage(self):
        assert refused(tiff(self.grey, PALETTE, 8, tags={COLOUR_MAP: (7,) * 48})) == Cause.DAMAGED

    def test_64_bit_offsets_in_big_endian_order_are_refused(self):
        assert_refused(tiff(self.grey, MIN_IS_BLACK, 8, big=True, byte_order=">"), "64-bit offsets", "MM")

    @pytest.mark.parametrize("tag", [WIDTH, STRIP_OFFSETS, PHOTOMETRIC])
    def test_of_the_wrong_type_are_damage(self, tag: int):
        data = bytearray(tiff(self.grey, MIN_IS_BLACK, 8))
        at = data.index(tag.to_bytes(2, "little"), int.from_bytes(data[4:8], "little"))
        data[at + 2 : at + 4] = b"\x02\0"  # text
        assert refused(bytes(data)) == Cause.DAMAGED


def test_a_negative_of_16_bits_is_as_light_as_one_of_8():
    """Pillow reads the first as it is stored."""
    levels = noise(12, 12, 1)
    shallow = decode_image(tiff(levels, MIN_IS_WHITE, 8))
    deep = decode_image(tiff(levels.astype(np.uint16) * 257, MIN_IS_WHITE, 16))
    np.testing.assert_allclose(deep.pixels * 255, shallow.pixels, atol=1e-4)


def test_signed_samples_of_32_bits_are_grey_levels_of_16():
    levels = np.array([[[0], [256], [65535]]])
    decoded = decode_image(tiff(levels, MIN_IS_BLACK, 32, sample_format=INT))
    np.testing.assert_allclose(decoded.pixels[..., 0], levels[..., 0] / 65535, rtol=1e-6)
