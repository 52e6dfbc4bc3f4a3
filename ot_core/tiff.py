"""TIFF files: what their tags say of the pixels, or a refusal that names the tag.

Pillow's libtiff decompresses the samples. What they mean is decided here, since Pillow takes some tags for others: it
shows 16-bit grey with white as zero as a negative, 12-bit grey as nearly black, 4 samples without ExtraSamples as
transparent, and more. What isn't in the table below is refused.

| PhotometricInterpretation | bits of a sample | further samples |
|---|---|---|
| white or black is zero | 1, 2, 4, 8, 12, 16, 32; float of 32 or 64 | with 8 or 16 bits: one of any kind |
| RGB | 8, 16 | any first, then unspecified ones: up to 3 with 8 bits, 1 with 16 |
| palette | 1, 2, 4, 8 | with 8 bits: one, straight alpha or unspecified |
| CMYK | 8, 16 | with 8 bits: up to 2 unspecified |
| YCbCr, CIELab | 8 | none |

Samples are unsigned, or signed of 32 bits: grey levels of 16 bits, as Pillow writes them. RGB and CMYK
of 8 bits may lie in separate planes, with one further sample that isn't multiplied into them.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin
from PIL.TiffTags import lookup

from ot_core.errors import Cause, ImageError

#: How a file begins: of either byte order, with offsets of 32 or 64 bits.
MAGIC: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIPS, _ORIENTATION, _SAMPLES, _PLANAR, _PREDICTOR, _COLOUR_MAP, _TILES = 273, 274, 277, 284, 317, 320, 324
_INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _COEFFICIENTS, _SUBSAMPLING, _REFERENCE = 332, 338, 339, 529, 530, 532
_PROFILE = 34675
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_UINT, _INT, _FLOAT = 1, 2, 3
_UNSPECIFIED, _PREMULTIPLIED, _STRAIGHT = 0, 1, 2
_NONE, _JPEG, _PACKBITS, _FAX = 1, 7, 32773, (2, 3, 4)
#: What libtiff decompresses, and under which name Pillow asks it to.
_COMPRESSIONS: Final = {
    number: TiffImagePlugin.COMPRESSION_INFO[number]
    for number in (_NONE, *_FAX, 5, _JPEG, 8, _PACKBITS, 32946, 34925, 50000)
}
#: Samples of a pixel without further ones.
_COLOURS: Final = {_MIN_IS_WHITE: 1, _MIN_IS_BLACK: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3, _LAB: 3}
#: Pillow's image mode and raw mode of a grey or palette sample, by its format and bits.
_SINGLE: Final = {
    (_UINT, 1): ("1", "1"),
    (_UINT, 2): ("L", "L;2"),
    (_UINT, 4): ("L", "L;4"),
    (_UINT, 8): ("L", "L"),
    (_UINT, 12): ("I;16", "I;12"),
    (_UINT, 16): ("I;16", "I;16N"),
    (_UINT, 32): ("I", "I;32N"),
    (_INT, 32): ("I", "I;32N"),
    (_FLOAT, 32): ("F", "F;32NF"),
    (_FLOAT, 64): ("F", "F;64NF"),
}
#: The same of several samples, by what they are, their bits and number. 16 bits of grey and alpha are taken as 4 bytes.
_SEVERAL: Final = {
    (_MIN_IS_BLACK, 8, 2): ("LA", "LA"),
    (_MIN_IS_BLACK, 16, 2): ("RGBA", "RGBA"),
    (_RGB, 8, 3): ("RGB", "RGB"),
    (_RGB, 8, 4): ("RGBA", "RGBA"),
    (_RGB, 8, 5): ("RGBA", "RGBAX"),
    (_RGB, 8, 6): ("RGBA", "RGBAXX"),
    (_RGB, 16, 3): ("RGB", "RGB;16N"),
    (_RGB, 16, 4): ("RGBA", "RGBA;16N"),
    (_PALETTE, 8, 2): ("LA", "LA"),
    (_CMYK, 8, 4): ("CMYK", "CMYK"),
    (_CMYK, 8, 5): ("CMYK", "CMYKX"),
    (_CMYK, 8, 6): ("CMYK", "CMYKXX"),
    (_CMYK, 16, 4): ("CMYK", "CMYK;16N"),
    (_YCBCR, 8, 3): ("RGB", "RGBX"),
    (_LAB, 8, 3): ("LAB", "LAB"),
}
#: What a decoder of 16-bit samples calls the other byte order, in which it gives their lower bytes.
_LOWER_BYTES: Final = ";16B" if sys.byteorder == "little" else ";16L"
_DEFAULT_COEFFICIENTS: Final = (0.299, 0.587, 0.114)
_FULL_RANGE: Final = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)


@dataclass(frozen=True)
class _Layout:
    """What the tags say of the samples, and Pillow's modes for getting at them."""

    photometric: int
    sample_format: int
    bits: int
    samples: int
    extra: int
    mode: str
    rawmode: str

    @property
    def is_deep(self) -> bool:
        """Whether samples keep more than 8 bits."""
        return self.bits > 8 and self.photometric != _CMYK

    @property
    def as_given(self) -> bool:
        """Whether the samples are what Pillow's mode means."""
        plain = self.photometric in (_MIN_IS_BLACK, _RGB) and self.mode in ("1", "L", "RGB")
        return self.bits <= 8 and (plain or self.photometric in (_CMYK, _YCBCR, _LAB))


class TiffFile(TiffImagePlugin.TiffImageFile):
    """A file whose tags are read as this module says; its pixels are the samples until `picture_of` interprets them.

    Args:
        data: the file.
        lower_bytes: whether to give the lower bytes of 16-bit colour samples, instead of the upper ones.

    Raises:
        ImageError: UNSUPPORTED, naming the tag; DAMAGED, if tags are missing or of the wrong type.
    """

    def __init__(self, data: bytes, lower_bytes: bool = False) -> None:
        if data[:4] == b"MM\0+":
            raise ImageError(Cause.UNSUPPORTED, "TIFF with 64-bit offsets in big-endian byte order (MM) isn't read")
        self.lower_bytes = lower_bytes
        super().__init__(io.BytesIO(data))

    def load_prepare(self) -> None:
        """Makes room for the pixels; how many there may be is checked before."""
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        ImageFile.ImageFile.load_prepare(self)

    def _setup(self) -> None:
        if self.tell() > 0:
            return  # only counted
        tags = self.tag_v2
        width, height = _number(tags, _WIDTH), _number(tags, _LENGTH)
        if not (_STRIPS in tags or _TILES in tags):
            raise ImageError(Cause.DAMAGED, "TIFF without StripOffsets or TileOffsets: its pixels are missing")
        self.layout = _layout(tags)
        rawmode = self.layout.rawmode
        if self.lower_bytes:
            rawmode = rawmode.replace(";16N", _LOWER_BYTES)
        self._mode, self._tile_size = self.layout.mode, (width, height)
        turned = tags.get(_ORIENTATION) in (5, 6, 7, 8)
        self._size = (height, width) if turned else (width, height)
        self._planar_configuration = _number(tags, _PLANAR, 1)
        self._compression = _COMPRESSIONS[_number(tags, _COMPRESSION, 1)]
        self.use_load_libtiff = True
        arguments = (rawmode, self._compression, False, tags.offset)
        self.tile = [ImageFile._Tile("libtiff", (0, 0, width, height), 0, arguments)]
        if _PROFILE in tags:
            self.info["icc_profile"] = tags[_PROFILE]


def _layout(tags: Any) -> _Layout:
    photometric = _number(tags, _PHOTOMETRIC, -1)
    if photometric not in _COLOURS:
        raise _refusal(tags, _PHOTOMETRIC)
    samples, bits = _number(tags, _SAMPLES, 1), _numbers(tags, _BITS, 1)
    formats = _numbers(tags, _SAMPLE_FORMAT, _UINT)
    if len(set(bits)) != 1 or len(bits) not in (1, samples):
        raise _refusal(tags, _BITS, _SAMPLES)
    if len(set(formats)) != 1:
        raise _refusal(tags, _SAMPLE_FORMAT)
    extra = _numbers(tags, _EXTRA_SAMPLES) if _EXTRA_SAMPLES in tags else ()
    first = extra[0] if extra else _UNSPECIFIED
    if samples != _COLOURS[photometric] + len(extra) or first not in (0, 1, 2) or any(extra[1:]):
        raise _refusal(tags, _SAMPLES, _EXTRA_SAMPLES)
    _check_coding(tags, photometric, bits[0], samples)
    kind = _MIN_IS_BLACK if photometric == _MIN_IS_WHITE else photometric
    if samples == 1:
        modes = _SINGLE.get((formats[0], bits[0]))
    else:
        modes = _SEVERAL.get((kind, bits[0], samples)) if formats[0] == _UINT else None
    wrong = {_CMYK: first != _UNSPECIFIED, _PALETTE: first == _PREMULTIPLIED or bits[0] > 8}.get(photometric, False)
    if modes is None or wrong:
        raise _refusal(tags, _BITS, _SAMPLE_FORMAT, _SAMPLES, _EXTRA_SAMPLES)
    mode, rawmode = modes
    if mode == "RGBA" and first == _UNSPECIFIED and _number(tags, _PLANAR, 1) == 2:
        mode, rawmode = "RGB", "RGB"  # Pillow would take a fourth plane for one that the colours are multiplied by
    if photometric == _YCBCR and _number(tags, _COMPRESSION, 1) == _JPEG:
        rawmode = "RGB"  # as the JPEG library gives it
    return _Layout(photometric, formats[0], bits[0], samples, first, mode, rawmode)


def _check_coding(tags: Any, photometric: int, bits: int, samples: int) -> None:
    """Refuses what libtiff or Pillow would read in another way than the tags say, or not at all."""
    compression, predictor = _number(tags, _COMPRESSION, 1), _number(tags, _PREDICTOR, 1)
    fill_order, planar = _number(tags, _FILL_ORDER, 1), _number(tags, _PLANAR, 1)
    if compression not in _COMPRESSIONS or (compression == _JPEG and bits != 8) or (compression in _FAX and bits != 1):
        raise _refusal(tags, _COMPRESSION, _BITS)
    if fill_order not in (1, 2) or (fill_order == 2 and (compression == _JPEG or photometric == _YCBCR)):
        raise _refusal(tags, _FILL_ORDER, _COMPRESSION)
    if planar != 1 and samples > 1:
        extra = _numbers(tags, _EXTRA_SAMPLES, _UNSPECIFIED)[0]
        kept = photometric in (_RGB, _CMYK) and bits == 8 and samples <= 4 and extra != _PREMULTIPLIED
        if planar != 2 or not kept:
            raise _refusal(tags, _PLANAR, _BITS, _SAMPLES, _EXTRA_SAMPLES)
    predicted = compression not in (_JPEG, *_FAX)  # the others have no use for the tag
    suited = {1: True, 2: bits % 8 == 0, 3: _numbers(tags, _SAMPLE_FORMAT, _UINT)[0] == _FLOAT}.get(predictor, False)
    if predicted and (not suited or (predictor != 1 and compression in (_NONE, _PACKBITS))):
        raise _refusal(tags, _PREDICTOR, _COMPRESSION, _BITS)
    if photometric == _CMYK and _number(tags, _INK_SET, 1) != 1:
        raise _refusal(tags, _INK_SET)
    if photometric == _YCBCR:
        if compression != _JPEG and _numbers(tags, _SUBSAMPLING, 2) != (1, 1):
            raise _refusal(tags, _SUBSAMPLING, _COMPRESSION)
        for tag, usual in ((_COEFFICIENTS, _DEFAULT_COEFFICIENTS), (_REFERENCE, _FULL_RANGE)):
            if tag in tags and not np.allclose(np.asarray(tags[tag], float), usual, atol=1e-3):
                raise _refusal(tags, tag)


def _numbers(tags: Any, tag: int, default: int = 0) -> tuple[int, ...]:
    found = tags.get(tag, default)
    found = found if isinstance(found, tuple) else (found,)
    if not found or not all(isinstance(number, int) for number in found):
        raise ImageError(Cause.DAMAGED, f"TIFF whose {lookup(tag).name} isn't a whole number")
    return tuple(found)


def _number(tags: Any, tag: int, default: int | None = None) -> int:
    if tag not in tags and default is None:
        raise ImageError(Cause.DAMAGED, f"TIFF without {lookup(tag).name}")
    return _numbers(tags, tag, default or 0)[0]


def _refusal(tags: Any, *culprits: int) -> ImageError:
    """Names the tags in question, and the others that say what the pixels are."""
    named = dict.fromkeys((*culprits, _PHOTOMETRIC, _BITS, _SAMPLE_FORMAT, _SAMPLES, _COMPRESSION))
    told = []
    for tag in named:
        if tag in tags or tag in culprits:
            values = tags.get(tag, "missing")
            text = ",".join(map(str, values[:8])) if isinstance(values, tuple) else str(values)
            meaning = next((name for name, value in lookup(tag).enum.items() if value == values), None)
            told.append(f"{lookup(tag).name}={text}" + (f" ({meaning})" if meaning else ""))
    return ImageError(Cause.UNSUPPORTED, f"TIFF with {', '.join(told)} isn't read")


def picture_of(image: TiffFile, data: bytes) -> Image.Image | NDArray[np.uint16]:
    """The upright picture, in one of Pillow's modes L, LA, RGB, RGBA, CMYK and LAB; F for grey of more than 8 bits.

    Colour of 16 bits, and grey of 16 bits with transparency, are samples (H, W, C) instead. CMYK is rounded to 8 bits.

    Args:
        image: the file; it will be loaded.
        data: the same.

    Raises:
        ImageError: DAMAGED, if the colour map is too short; OUT_OF_RANGE, if signed samples aren't 16-bit grey levels.
        Exception: whatever Pillow raises for damaged files.
    """
    layout = image.layout
    image.load()
    if layout.as_given:
        return image
    if layout.samples == 1 and layout.bits > 8:
        return Image.fromarray(_deep_grey(image, layout))
    samples = np.asarray(image)
    if layout.bits == 16:
        samples = _sixteen_bits(samples, layout, data)
        if layout.photometric == _CMYK:
            return Image.fromarray(rounded(samples), "CMYK")
    elif layout.bits == 1:
        samples = samples.astype(np.uint8) * 255
    colours = _COLOURS[layout.photometric]
    samples = np.atleast_3d(samples)
    values, alpha = samples[..., :colours], samples[..., colours : colours + 1]
    if layout.photometric == _MIN_IS_WHITE:
        values = np.iinfo(values.dtype).max - values
    if layout.photometric == _PALETTE:
        values = _through_colour_map(image, values[..., 0], layout)
    if layout.extra == _PREMULTIPLIED:
        most = np.iinfo(values.dtype).max
        divided = values.astype(np.float32) * (most / np.maximum(alpha, 1).astype(np.float32))
        values = np.rint(np.minimum(divided, most) * (alpha > 0)).astype(values.dtype)
    result = np.concatenate((values, alpha), axis=2) if layout.extra else np.ascontiguousarray(values)
    if layout.bits == 16:
        return result
    return Image.fromarray(result if result.shape[2] > 1 else result[..., 0])


def rounded(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """uint16 to the nearest uint8, so that 65535 is 255; uint8 as it is."""
    if samples.dtype == np.uint8:
        return samples
    # Equal to round(v / 257): the upper byte is off by one where the lower one differs from it by more than half.
    upper, lower = (samples >> 8).astype(np.int16), (samples & 0xFF).astype(np.int16)
    upper += (lower - upper > 128).astype(np.int16) - (upper - lower > 128)
    return upper.astype(np.uint8)


def _deep_grey(image: Image.Image, layout: _Layout) -> NDArray[np.float32]:
    values = np.asarray(image)
    if layout.sample_format == _FLOAT:
        grey = values.astype(np.float32)
    elif layout.sample_format == _INT:
        if values.min() < 0 or values.max() > 65535:
            found = f"{values.min()} to {values.max()}"
            raise ImageError(Cause.OUT_OF_RANGE, f"TIFF with SampleFormat=2, from {found}; expected 16 bits")
        grey = values.astype(np.float32) / np.float32(65535)
    elif layout.bits == 32:
        grey = (values.view(np.uint32) / (2.0**32 - 1)).astype(np.float32)
    else:
        grey = values.astype(np.float32) / np.float32(2**layout.bits - 1)
    return 1 - grey if layout.photometric == _MIN_IS_WHITE else grey


def _sixteen_bits(samples: NDArray[np.uint8], layout: _Layout, data: bytes) -> NDArray[np.uint16]:
    """What Pillow gives of several 16-bit samples in bytes, put together."""
    if layout.samples == 2:
        return np.ascontiguousarray(samples).view(np.uint16)
    lower = TiffFile(data, lower_bytes=True)
    lower.load()
    return samples.astype(np.uint16) << 8 | np.asarray(lower)


def _through_colour_map(image: TiffFile, samples: NDArray[Any], layout: _Layout) -> NDArray[np.uint8]:
    levels = 2**layout.bits
    colour_map = np.array(_numbers(image.tag_v2, _COLOUR_MAP))
    if colour_map.shape != (3 * levels,) or colour_map.min() < 0 or colour_map.max() > 65535:
        raise ImageError(Cause.DAMAGED, f"TIFF whose ColorMap isn't 3 times {levels} numbers of 16 bits")
    if 0 < colour_map.max() < 256:
        raise ImageError(Cause.UNSUPPORTED, "TIFF with ColorMap below 256: of 8 bits instead of 16, or black")
    indices = samples // (255 // (levels - 1))  # few bits come scaled to 8
    return rounded(colour_map.astype(np.uint16).reshape(3, levels).T)[indices]
