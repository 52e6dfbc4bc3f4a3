"""Encoded bytes to pixels and back, with a defined treatment for every kind of image.

| input | treatment |
|---|---|
| EXIF orientation | applied; width and height are those of the upright image |
| grey, 1-bit | replicated to RGB for the model; the result is written grey again |
| palette | expanded to RGB (and transparency) |
| transparency | passes through unchanged where the output format has it (PNG, WebP), else dropped |
| premultiplied transparency (TIFF) | colours are divided by it |
| CMYK, YCbCr, Lab | converted to RGB; CMYK through its ICC profile to sRGB where it has one |
| CMYK in JPEG without Adobe marker | a failure: nothing tells whether the inks are inverted |
| 16-bit grey; 12-bit and 32-bit grey (TIFF) | read in full precision; the output has 8 bits |
| 16-bit colour, 16-bit grey with alpha | rounded to 8 bits |
| float grey (TIFF) | expected in [0, 1] and finite, else a failure |
| JPEG of 12 or 16 bits | a failure |
| TIFF of another kind than `ot_core.tiff` lists | a failure that names the tags |
| BMP of 16 bits | expanded to 8, within one level |
| EXIF | kept, without what no longer holds (orientation, thumbnail); damaged or too long, it is dropped |
| ICC profile | kept where it still describes the written pixels |
| gamma and chromaticities (PNG) | ignored: pixels pass through as they are |
| several frames or pages | a failure, except an MPO file, whose first picture is taken |
"""

from __future__ import annotations

import io
import os
import re
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    ExifTags,
    Image,
    ImageCms,
    ImageOps,
    ImagePalette,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from ot_core import tiff
from ot_core.errors import Cause, ImageError, one_line
from ot_core.png import write_png

#: Formats that are read, whatever the extension says. Pillow opens MPO, several JPEGs in one file, as JPEG.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
#: Those that Pillow reads rightly by itself; its modules register how to open them.
_PLUGINS: Final = {
    "PNG": PngImagePlugin,
    "JPEG": JpegImagePlugin,
    "WEBP": WebPImagePlugin,
    "BMP": BmpImagePlugin,
}
#: Extensions that mark an image in folders and globs.
EXTENSIONS: Final = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp")
#: Extension of each output format.
OUTPUT_FORMATS: Final = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
#: Pillow refuses more than this by itself, so a larger limit would be a promise we can't keep.
HIGHEST_PIXEL_LIMIT: Final = 178_956_970
DEFAULT_MAX_PIXELS: Final = 150_000_000
#: Encoded bytes of an image that are read; a file may hold little but zeros.
DEFAULT_MAX_BYTES: Final = 2**28
#: Of PNG. Higher levels cost more than the model at its fastest, for a few per cent of the size.
DEFAULT_COMPRESS_LEVEL: Final = 2
#: A JPEG segment has two bytes for its length.
_LONGEST_JPEG_EXIF: Final = 65_533
#: What Pillow's plugins raise where a file isn't of their format, and how they tell of kinds that they don't read.
_NO_SUCH_FORMAT: Final = (SyntaxError, IndexError, TypeError, struct.error)
_UNSUPPORTED: Final = re.compile("cannot handle|unsupported", re.IGNORECASE)
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
        transparency: (H, W) uint8, 255 where it is opaque, or None.
        grey: whether the input had a single channel.
        icc_profile: profile that describes the pixels, or None.
        exif: EXIF block that still holds, beginning with "Exif", or None.
    """

    pixels: NDArray[np.generic]
    transparency: NDArray[np.uint8] | None = None
    grey: bool = False
    icc_profile: bytes | None = None
    exif: bytes | None = None

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.pixels.nbytes + (0 if self.transparency is None else self.transparency.nbytes)

    def with_pixels(self, pixels: NDArray[np.uint8], transparency: NDArray[np.uint8] | None) -> DecodedImage:
        """What reading these pixels back from a file gives: of a grey image they become grey.

        Args:
            pixels: (H, W, 3).
            transparency: (H, W), or None.
        """
        if self.grey:
            pixels = np.repeat(np.asarray(Image.fromarray(pixels, "RGB").convert("L"))[:, :, None], 3, axis=2)
        return replace(self, pixels=pixels, transparency=transparency)


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
        if isinstance(image, tiff.TiffFile):
            exif = _exif(image)  # before its tags are gone
            return replace(_to_rgb(tiff.picture_of(image, data), image.info.get("icc_profile")), exif=exif)
        _scale_transparency(image)
        picture = _of_sixteen_bits(image, data) if _is_wide_png(image) else _upright(image)
        # A PNG file's EXIF may come after its pixels.
        return replace(_to_rgb(picture, image.info.get("icc_profile")), exif=_exif(image))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise many types on damaged data
        raise ImageError(Cause.DAMAGED, f"{image.format} can't be decoded: {one_line(error)}") from None


def decoded_picture(picture: Image.Image) -> DecodedImage:
    """A PIL image, treated as `decode_image` treats the file that it came from; it stays as it is.

    Raises:
        ImageError: as `decode_image`.
    """
    image = _upright(picture.copy())
    return replace(_to_rgb(image, picture.info.get("icc_profile")), exif=_exif(picture))


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
    image = _opened(data)
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(Cause.DAMAGED, f"header says {width}x{height} pixels")
    if width * height > max_pixels:
        raise ImageError(Cause.TOO_LARGE, f"{width}x{height} pixels, over the limit of {max_pixels}")
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception as error:  # counting the pages of a TIFF reads all their headers
        raise ImageError(Cause.DAMAGED, f"{image.format} pages can't be counted: {one_line(error)}") from None
    if frames > 1 and image.format != "MPO":
        raise ImageError(Cause.UNSUPPORTED, f"{image.format} with {frames} frames; expected a single picture")
    if image.format == "BMP":
        _mend_bmp(image, data)
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        raise ImageError(Cause.UNSUPPORTED, "JPEG of CMYK without Adobe marker, which would tell if inks are inverted")
    return image


def _mend_bmp(image: Any, data: bytes) -> None:
    """Pillow takes a palette of greys for none, also where fewer or more bits are stored than it then expects."""
    longer_header = int.from_bytes(data[14:18], "little") > 12
    bits = int.from_bytes(data[28:30] if longer_header else data[24:26], "little")
    if longer_header and bits == 16 and int.from_bytes(data[14:18], "little") >= 56 and any(data[66:70]):
        raise ImageError(Cause.UNSUPPORTED, "BMP of 16 bits with a mask of transparency (bV5AlphaMask)")
    greys = {"1": (0, 255), "L": range(256)}.get(image.mode, ())
    if greys and bits != {"1": 1, "L": 8}[image.mode]:
        image._mode, rawmode = BmpImagePlugin.BIT2MODE[bits]
        image.palette = ImagePalette.raw("RGB", bytes(level for level in greys for _ in range(3)))
        image.tile = [image.tile[0]._replace(args=(rawmode, *image.tile[0].args[1:]))]


def _opened(data: bytes) -> Image.Image:
    """What `Image.open` gives, without its own limit on pixels, which warns the whole process."""
    try:
        if data.startswith(tiff.MAGIC):
            return tiff.TiffFile(data)
        for open_format, accepts in (Image.OPEN[name] for name in _PLUGINS):
            if accepts is None or accepts(data[:16]) is True:
                return open_format(io.BytesIO(data), "")
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise many types
        message = one_line(error)
        if _UNSUPPORTED.search(message):
            raise ImageError(Cause.UNSUPPORTED, f"header can't be read: {message}") from None
        if not isinstance(error, _NO_SUCH_FORMAT):
            raise ImageError(Cause.DAMAGED, f"header can't be read: {message}") from None
    raise ImageError(Cause.NOT_AN_IMAGE, f"not a readable {', '.join(FORMATS)} header")


def _scale_transparency(image: Any) -> None:
    """Pillow scales grey levels of 2 and 4 bits to 8, but not the one that is transparent."""
    scale = {"L;2": 85, "L;4": 17}.get(str(image.tile[0].args)) if image.format == "PNG" and image.tile else None
    if scale and "transparency" in image.info:
        image.info["transparency"] *= scale


def _is_wide_png(image: Any) -> bool:
    return image.format == "PNG" and bool(image.tile) and image.tile[0].args in ("LA;16B", "RGB;16B", "RGBA;16B")


def _of_sixteen_bits(image: Any, data: bytes) -> Image.Image:
    """The upright picture of a PNG file of several 16-bit samples, rounded to 8 bits.

    Pillow gives their upper bytes alone; asked for the other byte order, it gives the lower ones.
    """
    rawmode = image.tile[0].args
    if rawmode == "LA;16B":  # taken as 4 bytes
        image.tile = [image.tile[0]._replace(args="RGBA")]
        samples = np.ascontiguousarray(_upright(image)).view(">u2").astype(np.uint16)
    else:
        other: Any = _opened(data)
        other.tile = [image.tile[0]._replace(args=rawmode[:-1] + "L")]
        upper, lower = np.asarray(_upright(image)), np.asarray(_upright(other))
        samples = upper.astype(np.uint16) << 8 | lower
    result = tiff.rounded(samples)
    if "transparency" in image.info:
        opaque = (samples != np.array(image.info["transparency"], np.uint16)).any(axis=2, keepdims=True)
        result = np.concatenate((result, opaque.astype(np.uint8) * np.uint8(255)), axis=2)
    return Image.fromarray(result)


def _to_rgb(image: Image.Image, profile: bytes | None) -> DecodedImage:
    transparency = None
    if image.mode in _DEEP_GREY:
        if "transparency" in image.info:
            transparency = (np.asarray(image) != image.info["transparency"]).astype(np.uint8) * np.uint8(255)
        return DecodedImage(
            _grey_to_rgb(_deep_grey(image)), transparency, grey=True, icc_profile=_of_space(b"GRAY", profile)
        )
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        transparency = np.asarray(rgba.getchannel("A"))
    if image.mode in ("1", "L", "LA", "La"):
        grey = np.asarray(image.convert("L") if image.mode != "La" else image.convert("LA").getchannel("L"))
        return DecodedImage(_grey_to_rgb(grey), transparency, grey=True, icc_profile=_of_space(b"GRAY", profile))
    if image.mode == "CMYK" and profile:
        image, profile = _through_profile(image, profile), None
    elif image.mode == "LAB":
        image, profile = _of_lab(image), None
    elif image.mode not in ("RGB", "RGBA", "P", "PA", "RGBa", "RGBX"):
        profile = None  # it described other channels than the written ones
    rgb = image if image.mode == "RGB" else (rgba if transparency is not None else image).convert("RGB")
    return DecodedImage(np.asarray(rgb), transparency, icc_profile=_of_space(b"RGB ", profile))


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


def _of_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    exact = ImageCms.Flags.NOOPTIMIZE  # `convert` would be quicker, and off by up to ten levels
    return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB", flags=exact) or image.convert("RGB")


def eight_bits(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """uint8 of uint8, or of floating point numbers nominally in [0, 1]."""
    if pixels.dtype == np.uint8:
        return pixels.view(np.uint8)
    return np.rint(np.asarray(pixels, np.float32).clip(0, 1) * 255).astype(np.uint8)


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
        image.putalpha(Image.fromarray(like.transparency, "L"))
    return image


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
    # WebP has no grey, and JPEG no transparency.
    image = picture_of(pixels, like, grey=image_format != "webp", transparent=image_format != "jpeg")
    choices: dict[str, dict[str, Any]] = {
        "png": {},
        "jpeg": {"quality": quality, "subsampling": "4:4:4"},
        "webp": {"quality": quality, "method": 4},
    }
    options = choices[image_format]
    if like.icc_profile and (image.mode in ("L", "LA")) == like.grey:
        options["icc_profile"] = like.icc_profile
    if like.exif and (image_format != "jpeg" or len(like.exif) <= _LONGEST_JPEG_EXIF):
        options["exif"] = like.exif
    try:
        if image_format == "png":
            return write_png(np.atleast_3d(np.asarray(image)), compress_level, **options)
        return _saved(image, image_format, options)
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
