"""TIFF files of 8 and 16 bits a channel, which Pillow has for grey alone.

Compressed with Deflate after the difference to the left neighbour, in strips, in little-endian byte order; by numpy and
zlib, so that another thread runs meanwhile.
"""

from __future__ import annotations

import itertools
import zlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from PIL.TiffTags import LONG, SHORT, UNDEFINED

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES = 256, 257, 258, 259, 262, 273, 277
_ROWS, _STRIP_BYTES, _PREDICTOR, _EXTRA_SAMPLES, _PROFILE = 278, 279, 317, 338, 34675
_DEFLATE, _DIFFERENCE, _STRAIGHT = 8, 2, 2
_GREY, _RGB = 1, 2
#: Bytes of a strip before it is compressed.
_STRIP: Final = 2**20
#: Little-endian; the directory follows.
_HEADER: Final = b"II*\0\10\0\0\0"
#: Of strips; the rest is for the directory.
_MOST_BYTES: Final = 2**32 - 2**26


def write_tiff(
    pixels: NDArray[np.uint8] | NDArray[np.uint16],
    level: int,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
) -> bytes:
    """A TIFF file.

    Args:
        pixels: (H, W, C): grey, grey and transparency, RGB or RGBA.
        level: 0 to 9; higher is smaller and slower.
        icc_profile: of the colours.
        exif: with or without the "Exif" before it that JPEG has; without tags that say how pixels are stored.

    Raises:
        ValueError: if the format can't hold an image of this size.
    """
    height, width, channels = pixels.shape
    rows = max(1, _STRIP // (width * channels * pixels.itemsize))
    strips = [_compressed(pixels[top : top + rows], level) for top in range(0, height, rows)]
    ends = list(itertools.accumulate(map(len, strips), initial=0))
    transparent = channels in (2, 4)
    tags: dict[int, tuple[int, Any]] = {
        _WIDTH: (LONG, width),
        _LENGTH: (LONG, height),
        _BITS: (SHORT, (8 * pixels.itemsize,) * channels),
        _COMPRESSION: (SHORT, _DEFLATE),
        _PHOTOMETRIC: (SHORT, _GREY if channels <= 2 else _RGB),
        _STRIPS: (LONG, tuple(ends[:-1])),
        _SAMPLES: (SHORT, channels),
        _ROWS: (LONG, rows),
        _STRIP_BYTES: (LONG, tuple(map(len, strips))),
        _PREDICTOR: (SHORT, _DIFFERENCE),
        **({_EXTRA_SAMPLES: (SHORT, _STRAIGHT)} if transparent else {}),
        **({_PROFILE: (UNDEFINED, icc_profile)} if icc_profile else {}),
    }
    directory = _directory_of(exif)
    for tag, (kind, value) in tags.items():
        directory.tagtype[tag] = kind
        directory[tag] = value
    if ends[-1] > _MOST_BYTES:
        raise ValueError("TIFF has at most 4 GiB")
    # Pillow adds to the offsets of the strips where its directory ends.
    return b"".join([_HEADER, directory.tobytes(len(_HEADER)), *strips])


def _compressed(rows: NDArray[np.uint8] | NDArray[np.uint16], level: int) -> bytes:
    differences = rows.astype(rows.dtype.newbyteorder("<"))
    differences[:, 1:] = rows[:, 1:] - rows[:, :-1]  # wraps around, as the format wants it
    return zlib.compress(np.ascontiguousarray(differences).data, level)


def _directory_of(exif: bytes | None) -> Any:
    """A directory that holds the tags of an EXIF block."""
    directory = ImageFileDirectory_v2(ifh=_HEADER)
    if exif:
        found = Image.Exif()
        found.load(exif)
        for tag, value in found.items():
            directory[tag] = value
        for nested in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if entries := dict(found.get_ifd(nested)):
                directory[nested] = entries
    return directory
