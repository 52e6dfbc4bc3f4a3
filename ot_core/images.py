"""Encoded bytes to pixels and back, with a defined treatment for every kind of image.

| input | treatment |
|---|---|
| EXIF orientation | applied; width and height are those of the upright image |
| grey, 1-bit | replicated to RGB for the model; the result is written grey again |
| palette | expanded to RGB (and transparency) |
| transparency | passes through unchanged where the output format has it (PNG, WebP), else dropped |
| CMYK, YCbCr, Lab | converted to RGB; CMYK through its ICC profile to sRGB where it has one |
| 16-bit grey | read in full precision, transparency dropped; the output has 8 bits |
| other 16-bit | read as 8 bits |
| float grey (TIFF) | expected in [0, 1] and finite, else a failure |
| EXIF | kept, without what no longer holds (orientation, thumbnail); damaged or too long, it is dropped |
| ICC profile | kept where it still describes the written pixels |
| several frames or pages | a failure, except an MPO file, whose first picture is taken |
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from ot_core.errors import Cause, ImageError

#: Formats that are read, whatever the extension says. Pillow opens MPO, several JPEGs in one file, as JPEG.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
#: Extensions that mark an image in folders and globs.
EXTENSIONS: Final = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
#: Extension of each output format.
OUTPUT_FORMATS: Final = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
#: Pillow refuses more than this by itself, so a larger limit would be a promise we can't keep.
HIGHEST_PIXEL_LIMIT: Final = 178_956_970
DEFAULT_MAX_PIXELS: Final = 150_000_000
#: Of PNG. Higher levels cost more than the model at its fastest, for a few per cent of the size.
DEFAULT_COMPRESS_LEVEL: Final = 2
#: A JPEG segment has two bytes for its length.
_LONGEST_JPEG_EXIF: Final = 65_533
_DEEP_GREY: Final = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")
#: Tags of the first directory that say how the pixels were stored; in a TIFF file it is the file's own.
_LAYOUT_TAGS: Final = (
    set(range(0xFE, 0x10E))
    | {0x111, 0x112, 0x115, 0x116, 0x117, 0x11C, 0x11D, 0x124, 0x125, 0x13D, 0x140}
    | set(range(0x141, 0x15C))
    | set(range(0x200, 0x215))
    | {0x2BC, 0x83BB, 0x8649, 0x8769, 0x8773, 0x8825, 0xA005}
)


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An upright image.

    Attributes:
        pixels: (H, W, 3), uint8, or float32 in [0, 1] where the input had more than 8 bits.
        alpha: (H, W) uint8 transparency, or None.
        grey: whether the input had a single channel.
        icc_profile: profile that describes the pixels, or None.
        exif: EXIF block that still holds, beginning with "Exif", or None.
    """

    pixels: NDArray[np.generic]
    alpha: NDArray[np.uint8] | None = None
    grey: bool = False
    icc_profile: bytes | None = None
    exif: bytes | None = None

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.pixels.nbytes + (0 if self.alpha is None else self.alpha.nbytes)


# The limit on pixels decides, not Pillow's warning of half of its own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_image(
    data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, reserve: Callable[[int], None] | None = None
) -> DecodedImage:
    """Decodes one image; its header is checked against the pixel limit before any pixel is.

    Args:
        data: the encoded image.
        max_pixels: the limit.
        reserve: called with the bytes that the pixels will take, before any is decoded; may wait, or refuse by raising.

    Raises:
        ImageError: with one of the causes EMPTY_FILE, NOT_AN_IMAGE, TOO_LARGE, DAMAGED, UNSUPPORTED, NOT_FINITE,
            OUT_OF_RANGE.
    """
    if not data:
        raise ImageError(Cause.EMPTY_FILE, "the file has no bytes")
    image = _open(data, max_pixels)
    if reserve is not None:
        reserve(image.width * image.height * (12 if image.mode in _DEEP_GREY else 3))
    try:
        # A TIFF file is closed once it is loaded; a PNG file's EXIF may come after its pixels.
        exif = _exif(image) if image.format == "TIFF" else None
        image.load()
        return replace(_to_rgb(_upright(image)), exif=exif or _exif(image))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise many types on damaged data
        raise ImageError(Cause.DAMAGED, f"{image.format} can't be decoded: {_one_line(error)}") from None


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; a damaged EXIF block says nothing, and costs no readable picture."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's EXIF reader raises many types on damaged data
        return image


def _exif(image: Image.Image) -> bytes | None:
    """The EXIF block without what the result contradicts; a damaged one is none."""
    try:
        found, kept = image.getexif(), Image.Exif()
        for tag in set(found) - _LAYOUT_TAGS:
            kept[tag] = found[tag]
        for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if entries := found.get_ifd(directory):
                kept.get_ifd(directory).update(entries)
                kept[directory] = entries
        return kept.tobytes() if len(kept) else None
    except Exception:  # Pillow's EXIF reader and writer raise many types on damaged data
        return None


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(Cause.TOO_LARGE, str(error)) from None
    except UnidentifiedImageError:
        raise ImageError(Cause.NOT_AN_IMAGE, f"not a readable {', '.join(FORMATS)} header") from None
    except Exception as error:
        raise ImageError(Cause.DAMAGED, f"header can't be read: {_one_line(error)}") from None
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(Cause.DAMAGED, f"header says {width}x{height} pixels")
    if width * height > max_pixels:
        raise ImageError(Cause.TOO_LARGE, f"{width}x{height} pixels, over the limit of {max_pixels}")
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception as error:  # counting the pages of a TIFF reads all their headers
        raise ImageError(Cause.DAMAGED, f"{image.format} pages can't be counted: {_one_line(error)}") from None
    if frames > 1 and image.format != "MPO":
        raise ImageError(Cause.UNSUPPORTED, f"{image.format} with several frames; expected a single picture")
    return image


def _to_rgb(image: Image.Image) -> DecodedImage:
    profile = image.info.get("icc_profile") or None
    alpha = None
    if image.mode in _DEEP_GREY:
        return DecodedImage(_grey_to_rgb(_deep_grey(image)), grey=True, icc_profile=_of_space(b"GRAY", profile))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        alpha = np.asarray(rgba.getchannel("A"))
    if image.mode in ("1", "L", "LA", "La"):
        grey = np.asarray(image.convert("L") if image.mode != "La" else image.convert("LA").getchannel("L"))
        return DecodedImage(_grey_to_rgb(grey), alpha, grey=True, icc_profile=_of_space(b"GRAY", profile))
    if image.mode == "CMYK" and profile:
        image, profile = _through_profile(image, profile), None
    elif image.mode not in ("RGB", "RGBA", "P", "PA", "RGBa", "RGBX"):
        profile = None  # it described other channels than the written ones
    rgb = image if image.mode == "RGB" else (rgba if alpha is not None else image).convert("RGB")
    return DecodedImage(np.asarray(rgb), alpha, icc_profile=_of_space(b"RGB ", profile))


def _of_space(space: bytes, profile: bytes | None) -> bytes | None:
    """The profile, if its header of 128 bytes says that it describes this colour space."""
    return profile if profile and len(profile) > 128 and profile[16:20] == space else None


def _deep_grey(image: Image.Image) -> NDArray[np.float32]:
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ImageError(Cause.NOT_FINITE, "pixels hold NaN or infinity")
    if image.mode != "F":
        values = values / np.float32(65535)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        expected = "0 to 1" if image.mode == "F" else "16 bits"
        raise ImageError(Cause.OUT_OF_RANGE, f"{image.mode} pixels from {low:g} to {high:g}; expected {expected}")
    return values


def _grey_to_rgb(grey: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        converted = None
    return converted if converted is not None else image.convert("RGB")


def encode_image(
    pixels: NDArray[np.uint8],
    like: DecodedImage,
    image_format: str,
    quality: int = 95,
    compress_level: int = DEFAULT_COMPRESS_LEVEL,
) -> bytes:
    """Encodes pixels with the transparency, greyness, EXIF and ICC profile of the image that they came from.

    Args:
        pixels: (H, W, 3) uint8.
        like: the decoded input.
        image_format: "png", "jpeg" or "webp".
        quality: of JPEG and WebP, 1 to 100.
        compress_level: of PNG, 0 to 9.

    Raises:
        ImageError: UNSUPPORTED, if the format can't hold an image of this size.
    """
    image = Image.fromarray(pixels, "RGB")
    if like.grey and image_format != "webp":  # WebP has no grey
        image = image.convert("L")
    if like.alpha is not None and image_format != "jpeg":
        image.putalpha(Image.fromarray(like.alpha, "L"))
    choices: dict[str, dict[str, Any]] = {
        "png": {"compress_level": compress_level},
        "jpeg": {"quality": quality, "subsampling": "4:4:4"},
        "webp": {"quality": quality, "method": 4},
    }
    options = choices[image_format]
    if like.icc_profile and (image.mode in ("L", "LA")) == like.grey:
        options["icc_profile"] = like.icc_profile
    if like.exif and (image_format != "jpeg" or len(like.exif) <= _LONGEST_JPEG_EXIF):
        options["exif"] = like.exif
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=image_format.upper(), **options)
    except (OSError, ValueError) as error:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise ImageError(Cause.UNSUPPORTED, f"{size} pixels can't be written as {image_format}: {error}") from None
    return buffer.getvalue()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
