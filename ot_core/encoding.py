"""Pixels to encoded bytes, with what the file that they came from said of them.

Pixels of 8 bits are written in 8. Those in floating point, which come of files of more than 8 bits, are rounded once:
to 16 bits in PNG and TIFF, to 8 elsewhere. JPEG XL is written without an ICC profile: its plugin can't.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ot_core.errors import Cause, ImageError, UserError
from ot_core.images import DecodedImage, eight_bits
from ot_core.png import write_png
from ot_core.tiff_writer import write_tiff

#: Extension of each output format.
OUTPUT_FORMATS: Final = {
    "png": ".png",
    "jpeg": ".jpg",
    "webp": ".webp",
    "tiff": ".tif",
    "avif": ".avif",
    "jxl": ".jxl",
}
#: Those that hold 16 bits.
_DEEP_FORMATS: Final = ("png", "tiff")
#: Those that Pillow has no grey in.
_WITHOUT_GREY: Final = ("webp", "avif")
#: Options of Pillow's encoders, beside the quality. AVIF at its fastest is 1% larger than at speed 8, which takes four
#: times as long; JPEG XL is without loss. Each has one thread: a worker encodes several images at once.
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "jpeg": {"subsampling": "4:4:4"},
    "webp": {"method": 4},
    "avif": {"subsampling": "4:4:4", "speed": 10, "max_threads": 1},
    "jxl": {"lossless": True, "effort": 1, "num_threads": 1},
}
#: Of PNG. Higher levels cost more than the model at its fastest, for a few per cent of the size.
DEFAULT_COMPRESS_LEVEL: Final = 2
#: A JPEG segment has two bytes for its length.
_LONGEST_JPEG_EXIF: Final = 65_533
#: Of red, green and blue in grey, as Pillow has them; their sum is exactly 1.
_LUMA: Final = np.array([19595, 38470, 7471], np.float32) / np.float32(65536)


def check_format(image_format: str) -> None:
    """Checks that this machine can write a format, and lets Pillow know of it.

    Raises:
        UserError: if it isn't one, or its library is missing.
    """
    if image_format not in OUTPUT_FORMATS:
        raise UserError(f"format {image_format}: expected one of {', '.join(OUTPUT_FORMATS)}")
    if image_format == "jxl":
        try:
            importlib.import_module("pillow_jxl")  # tells Pillow of it
        except ImportError:
            message = "format jxl: needs pillow-jxl-plugin here and on every worker: pip install 'dot-beam[codecs]'"
            raise UserError(message) from None


def picture_of(
    pixels: NDArray[np.uint8], like: DecodedImage, grey: bool = True, transparent: bool = True
) -> Image.Image:
    """A PIL image of pixels with the greyness and transparency of the image that they came from.

    Args:
        pixels: (H, W, 3).
        like: the decoded input.
        grey: whether it may be grey; else RGB.
        transparent: whether it may have transparency.
    """
    image = Image.fromarray(pixels, "RGB")
    if like.grey and grey:
        image = image.convert("L")
    if like.transparency is not None and transparent:
        image.putalpha(Image.fromarray(eight_bits(like.transparency), "L"))
    return image


def grey_of(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Grey levels (H, W) of pixels (H, W, 3) in floating point, as Pillow weighs the colours."""
    levels: NDArray[np.float32] = pixels @ _LUMA
    return levels


def sixteen_bits(pixels: NDArray[np.generic], like: DecodedImage) -> NDArray[np.uint16]:
    """Samples (H, W, C) of floating point pixels, with the greyness and transparency of the image they came from."""
    unit = np.asarray(pixels, np.float32)
    colours = grey_of(unit)[..., None] if like.grey else unit
    samples: NDArray[np.uint16] = np.rint(colours.clip(0, 1) * np.float32(65535)).astype(np.uint16)
    if like.transparency is None:
        return samples
    scale = np.uint16(257 if like.transparency.dtype == np.uint8 else 1)
    return np.dstack([samples, like.transparency.astype(np.uint16) * scale])


def encode_image(
    pixels: NDArray[np.generic],
    like: DecodedImage,
    image_format: str,
    quality: int = 95,
    compress_level: int = DEFAULT_COMPRESS_LEVEL,
) -> bytes:
    """Encodes pixels with the transparency, greyness, EXIF and ICC profile of the image that they came from.

    Args:
        pixels: (H, W, 3), uint8; or float32 in [0, 1], which PNG and TIFF hold in 16 bits and others in 8.
        like: the decoded input.
        image_format: a name in `OUTPUT_FORMATS`.
        quality: of JPEG, WebP and AVIF, 1 to 100; JPEG XL is without loss.
        compress_level: of PNG and TIFF, 0 to 9.

    Raises:
        ImageError: UNSUPPORTED, if the format can't hold an image of this size.
        UserError: as `check_format`.
    """
    metadata: dict[str, Any] = {}
    has_grey = image_format not in _WITHOUT_GREY
    if like.icc_profile and (has_grey or not like.grey):
        metadata["icc_profile"] = like.icc_profile
    if like.exif and (image_format != "jpeg" or len(like.exif) <= _LONGEST_JPEG_EXIF):
        metadata["exif"] = like.exif
        if image_format == "jxl":  # the plugin leaves out where the block begins
            metadata["exif"] = bytes(4) + like.exif.removeprefix(b"Exif\0\0")
    try:
        if image_format in _DEEP_FORMATS:
            write = write_png if image_format == "png" else write_tiff
            shallow = pixels.dtype == np.uint8
            samples = np.asarray(picture_of(pixels.view(np.uint8), like)) if shallow else sixteen_bits(pixels, like)
            return write(np.atleast_3d(samples), compress_level, **metadata)
        image = picture_of(eight_bits(pixels), like, grey=has_grey, transparent=image_format != "jpeg")
        check_format(image_format)
        return _saved(image, image_format, {"quality": quality, **_OPTIONS[image_format], **metadata})
    except (OSError, ValueError) as error:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise ImageError(Cause.UNSUPPORTED, f"{size} pixels can't be written as {image_format}: {error}") from None


def _saved(image: Image.Image, image_format: str, options: dict[str, Any]) -> bytes:
    """What Pillow writes to a file: only there does it let other threads run meanwhile."""
    with _memory_file() as file:
        image.save(file, format=image_format.upper(), **options)
        file.seek(0)
        return file.read()


def _memory_file() -> IO[bytes]:
    """A file with a number; where the system has none in memory, one on disk."""
    if sys.platform == "linux":
        return open(os.memfd_create("image"), "w+b")
    return tempfile.TemporaryFile()
