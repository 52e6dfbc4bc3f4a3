"""JPEG XL files: their header, read here before any pixel is decoded, and their pixels, through pillow-jxl-plugin.

The plugin decodes all pixels of a file when it opens it, whatever its size, and says nothing of animations, of colours
multiplied by transparency, or of inks. libjxl gets the bare codestream: it turns the picture as the header says, and
makes a picture, too, of what was a JPEG file.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ot_core.errors import Cause, ImageError

#: How a bare codestream begins, and a file that holds one in boxes.
_CODESTREAM, _CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a"
MAGIC: Final = (_CODESTREAM, _CONTAINER)
#: Width of a picture as a multiple of its height, by the number that stands for it.
_RATIOS: Final = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
#: Kinds of channels beside the colours.
_TRANSPARENCY, _SPOT_COLOUR, _BLACK, _FILTER = 0, 2, 4, 5
#: libjxl decodes all of them, four bytes a pixel each; a file may claim four thousand.
_MOST_CHANNELS: Final = 4


class _Bits:
    """Numbers in a codestream, the lowest bits first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __call__(self, count: int) -> int:
        end = self._at + count
        if end > 8 * len(self._data):
            raise ImageError(Cause.DAMAGED, "JPEG XL header is cut off")
        held = int.from_bytes(self._data[self._at // 8 : -(-end // 8)], "little") >> self._at % 8
        self._at = end
        return held & ((1 << count) - 1)

    def one_of(self, *choices: tuple[int, int]) -> int:
        """Two bits choose among four pairs: the least number, and the bits of what is added to it."""
        least, count = choices[self(2)]
        return least + self(count)


@dataclass(frozen=True)
class _Header:
    """What a codestream says of its picture; width and height are those before it is turned."""

    width: int
    height: int
    bits: int = 8
    premultiplied: bool = False


class JxlFile(Image.Image):
    """A file whose header was read; its pixels are those of `picture_of`.

    Attributes:
        header: what it says.
        codestream: the file without its boxes.

    Args:
        data: the file.

    Raises:
        ImageError: DAMAGED; UNSUPPORTED, of an animation and other kinds.
    """

    format = "JXL"

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.codestream, exif = _unboxed(data)
        self.header = _header(_Bits(self.codestream[2:]))
        self._size = self.header.width, self.header.height
        if exif:
            self.info["exif"] = exif


def picture_of(image: JxlFile) -> Image.Image | NDArray[np.uint16]:
    """The upright picture, in one of Pillow's modes L, LA, RGB, RGBA, I;16 and F.

    Grey of 16 bits with transparency is samples (H, W, 2) instead. `image.info` gets the ICC profile.

    Raises:
        ImageError: DAMAGED; UNSUPPORTED, also where the plugin is missing.
    """
    try:
        plugin: Any = importlib.import_module("pillow_jxl")
    except ImportError:
        message = "JPEG XL files need pillow-jxl-plugin on every worker: pip install 'dot-beam[codecs]'"
        raise ImageError(Cause.UNSUPPORTED, message) from None
    try:
        _, found, data, profile, *_ = plugin.Decoder(num_threads=0)(image.codestream)  # in this thread
    except MemoryError:
        raise
    except Exception:  # whatever it is, libjxl says no more than that it failed
        raise ImageError(Cause.DAMAGED, "JPEG XL can't be decoded") from None
    if profile:
        image.info["icc_profile"] = bytes(profile)
        if profile[16:20] == b"CMYK":
            raise ImageError(Cause.UNSUPPORTED, "JPEG XL of CMYK")
    size, channels = (found.width, found.height), found.num_channels + found.has_alpha_channel
    if sorted(size) != sorted(image.size):
        raise ImageError(Cause.DAMAGED, f"JPEG XL header says {image.size}, its pixels {size}")
    width = len(data) // (size[0] * size[1] * channels)  # of a sample, in bytes
    if channels == 2 and width > 1:
        if width > 2 or image.header.premultiplied:
            raise ImageError(Cause.UNSUPPORTED, "JPEG XL of deep grey with transparency that isn't of 16 straight bits")
        return np.frombuffer(data, np.uint16).reshape(size[1], size[0], 2)
    modes = {1: {1: "L", 2: "I;16", 4: "F"}[width], 2: "LA", 3: "RGB", 4: "RGBA"}
    mode = modes[channels]
    if image.header.premultiplied and channels in (2, 4):
        return Image.frombytes(mode.replace("A", "a"), size, data).convert(mode)
    return Image.frombytes(mode, size, data)


def _unboxed(data: bytes) -> tuple[bytes, bytes | None]:
    """The codestream, and the EXIF block where there is one that isn't compressed."""
    if data.startswith(_CODESTREAM):
        return data, None
    parts, exif, at = [], None, len(_CONTAINER)
    while at + 8 <= len(data):
        size, kind, begin = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, begin = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        end = at + size if size else len(data)
        if end < begin:
            raise ImageError(Cause.DAMAGED, f"JPEG XL with a box of {size} bytes")
        content = data[begin:end]
        if kind == b"jxlc":
            parts.append(content)
        elif kind == b"jxlp":  # a part of it, behind its number
            parts.append(content[4:])
        elif kind == b"Exif" and exif is None:
            exif = b"Exif\0\0" + _block(content)
        at = end
    codestream = b"".join(parts)
    if not codestream.startswith(_CODESTREAM):
        raise ImageError(Cause.DAMAGED, "JPEG XL without a codestream")
    return codestream, exif


def _block(content: bytes) -> bytes:
    """The EXIF block of a box, which begins with where that is; pillow-jxl-plugin by itself writes the block alone."""
    if content.startswith((b"II*\0", b"MM\0*")):
        return content
    return content[4 + int.from_bytes(content[:4], "big") :]


def _header(bits: _Bits) -> _Header:
    """Reads it as far as it says something of use."""
    width, height = _size(bits)
    if bits(1):  # all else is as usual
        return _Header(width, height)
    if bits(1):
        bits(3)  # orientation
        if bits(1):
            _size(bits)  # for showing it
        for what in ("a preview", "an animation"):
            if bits(1):
                raise ImageError(Cause.UNSUPPORTED, f"JPEG XL with {what}; expected a single picture")
    depth = _depth(bits)
    if 16 < depth != 32:
        raise ImageError(Cause.UNSUPPORTED, f"JPEG XL of {depth} bits; expected up to 16, or 32 in floating point")
    bits(1)  # whether 16 bits hold what lies between
    channels = bits.one_of((0, 0), (1, 0), (2, 4), (1, 12))
    if channels > _MOST_CHANNELS:
        message = f"JPEG XL with {channels} channels beside the colours; expected at most {_MOST_CHANNELS}"
        raise ImageError(Cause.UNSUPPORTED, message)
    premultiplied = [_premultiplied(bits) for _ in range(channels)]
    return _Header(width, height, depth, any(premultiplied))


def _size(bits: _Bits) -> tuple[int, int]:
    in_eights = bits(1)

    def side() -> int:
        return 8 * (bits(5) + 1) if in_eights else 1 + bits.one_of((0, 9), (0, 13), (0, 18), (0, 30))

    height, ratio = side(), bits(3)
    if not ratio:
        return side(), height
    over, under = _RATIOS[ratio]
    return height * over // under, height


def _depth(bits: _Bits) -> int:
    """Bits of a sample."""
    if bits(1):
        depth = bits.one_of((32, 0), (16, 0), (24, 0), (1, 6))
        bits(4)  # of them, those of the exponent
        return depth
    return bits.one_of((8, 0), (10, 0), (12, 0), (1, 6))


def _premultiplied(bits: _Bits) -> bool:
    """Whether a channel is transparency that the colours are multiplied by."""
    if bits(1):
        return False  # straight transparency of 8 bits
    kind = bits.one_of((0, 0), (1, 0), (2, 4), (18, 6))
    _depth(bits)
    bits.one_of((0, 0), (3, 0), (4, 0), (1, 3))  # by how much it is smaller
    bits(8 * bits.one_of((0, 0), (0, 4), (16, 5), (48, 10)))  # its name
    if kind == _BLACK:
        raise ImageError(Cause.UNSUPPORTED, "JPEG XL of CMYK")
    if kind == _SPOT_COLOUR:
        bits(4 * 16)
    elif kind == _FILTER:
        bits.one_of((1, 0), (0, 2), (3, 4), (19, 8))
    return kind == _TRANSPARENCY and bool(bits(1))
