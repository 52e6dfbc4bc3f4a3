"""Encoded bytes to pixels, with a defined treatment for every kind of image; `ot_core.encoding` is the way back.

| input | treatment |
|---|---|
| EXIF orientation | applied; width and height are those of the upright image |
| orientation in the header (HEIC, JPEG XL) | applied instead of that in EXIF |
| grey, 1-bit | replicated to RGB for the model; the result is written grey again |
| palette | expanded to RGB (and transparency) |
| transparency | passes through unchanged where the output format has it (any but JPEG), else dropped |
| premultiplied transparency (TIFF, JPEG XL) | colours are divided by it |
| CMYK, YCbCr, Lab | converted to RGB; CMYK through its ICC profile to sRGB where it has one |
| CMYK in JPEG without Adobe marker | a failure: nothing tells whether the inks are inverted |
| 16-bit grey and colour; 12-bit and 32-bit grey (TIFF) | read in full precision; PNG and TIFF are written in 16 bits |
| 16-bit CMYK (TIFF) | rounded to 8 bits |
| float grey (TIFF, JPEG XL) | expected in [0, 1] and finite, else a failure |
| JPEG of 12 or 16 bits | a failure |
| TIFF of another kind than `ot_core.tiff` lists | a failure that names the tags |
| AVIF and HEIC of more than 8 bits | rounded to 8 bits |
| JPEG XL colour of more than 8 bits | cut to 8 bits, within one level; grey is read in full precision |
| JPEG XL of CMYK, with a preview, or with more than 4 channels beside the colours | a failure |
| EXIF of JPEG XL in a compressed box (`brob`) | dropped |
| JPEG XL | read where `pillow-jxl-plugin` is installed (`dot-beam[codecs]`), else a failure |
| HEIC | read where `pillow-heif` is installed (`dot-beam[codecs]`), else a failure |
| BMP of 16 bits | expanded to 8, within one level |
| EXIF | kept, without what no longer holds (orientation, thumbnail); damaged or too long, it is dropped |
| ICC profile | kept where it still describes the written pixels |
| gamma and chromaticities (PNG) | ignored: pixels pass through as they are |
| several frames or pages | a failure, except an MPO file, whose first picture is taken |
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
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

from ot_core import heic, jxl, tiff
from ot_core.errors import Cause, ImageError, one_line

#: Formats that are read, whatever the extension says. Pillow opens MPO, several JPEGs in one file, as JPEG.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF", "HEIF", "JXL")
#: Those that Pillow reads rightly by itself; its modules register how to open them.
_PLUGINS: Final = {
    "PNG": PngImagePlugin,
    "JPEG": JpegImagePlugin,
    "WEBP": WebPImagePlugin,
    "BMP": BmpImagePlugin,
    "AVIF": AvifImagePlugin,
}
#: Extensions that mark an image in folders and globs.
EXTENSIONS: Final = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".tif",
    ".tiff",
    ".bmp",
    ".avif",
    ".heic",
    ".heif",
    ".jxl",
)
#: Pillow refuses more than this by itself, so a larger limit would be a promise we can't keep.
HIGHEST_PIXEL_LIMIT: Final = 178_956_970
DEFAULT_MAX_PIXELS: Final = 150_000_000
#: Encoded bytes of an image that are read; a file may hold little but zeros.
DEFAULT_MAX_BYTES: Final = 2**28
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
        transparency: (H, W) uint8, 255 where it is opaque; beside float32 pixels also uint16, 65535 there; or None.
        grey: whether the input had a single channel.
        icc_profile: profile that describes the pixels, or None.
        exif: EXIF block that still holds, beginning with "Exif", or None.
    """

    pixels: NDArray[np.generic]
    transparency: NDArray[np.uint8] | NDArray[np.uint16] | None = None
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
        reserve(image.width * image.height * (12 if _is_deep(image) else 3))
    try:
        if isinstance(image, tiff.TiffFile):
            exif = _exif(image)  # before its tags are gone
            return replace(_decoded(tiff.picture_of(image, data), image), exif=exif)
        if isinstance(image, jxl.JxlFile):
            return replace(_decoded(jxl.picture_of(image), image), exif=_exif(image))
        _scale_transparency(image)
        picture = _of_sixteen_bits(image, data) if _is_wide_png(image) else _upright(image)
        # A PNG file's EXIF may come after its pixels.
        return replace(_decoded(picture, image), exif=_exif(image))
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
        if data.startswith(jxl.MAGIC):
            return jxl.JxlFile(data)
        for open_format, accepts in (Image.OPEN[name] for name in _PLUGINS):
            if accepts is None or accepts(data[:16]) is True:
                try:
                    return open_format(io.BytesIO(data), "")
                except SyntaxError:  # AVIF's container may hold HEIC
                    if not heic.may_be(data):
                        raise
        if heic.may_be(data):
            return heic.opened(data)
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


def _is_deep(image: Any) -> bool:
    """Whether its pixels will be float32."""
    if isinstance(image, tiff.TiffFile):
        return image.layout.is_deep
    if isinstance(image, jxl.JxlFile):
        return image.header.bits > 8
    return image.mode in _DEEP_GREY or _is_wide_png(image)


def _of_sixteen_bits(image: Any, data: bytes) -> NDArray[np.uint16]:
    """The upright samples (H, W, C) of a PNG file of several of 16 bits.

    Pillow gives their upper bytes alone; asked for the other byte order, it gives the lower ones.
    """
    rawmode = image.tile[0].args
    if rawmode == "LA;16B":  # taken as 4 bytes
        image.tile = [image.tile[0]._replace(args="RGBA")]
        return np.ascontiguousarray(_upright(image)).view(">u2").astype(np.uint16)
    other: Any = _opened(data)
    other.tile = [image.tile[0]._replace(args=rawmode[:-1] + "L")]
    upper, lower = np.asarray(_upright(image)), np.asarray(_upright(other))
    samples = upper.astype(np.uint16) << 8 | lower
    if "transparency" in image.info:
        opaque = (samples != np.array(image.info["transparency"], np.uint16)).any(axis=2, keepdims=True)
        samples = np.concatenate((samples, opaque.astype(np.uint16) * np.uint16(65535)), axis=2)
    return samples


def _decoded(found: Image.Image | NDArray[np.uint16], image: Image.Image) -> DecodedImage:
    """What was found in a file: a picture, or samples (H, W, C) of 16 bits."""
    profile = image.info.get("icc_profile")
    if isinstance(found, Image.Image):
        return _to_rgb(found, profile)
    grey = found.shape[2] <= 2
    colours, rest = np.split(found, [1 if grey else 3], axis=2)
    unit = colours.astype(np.float32) / np.float32(65535)
    return DecodedImage(
        np.repeat(unit, 3, axis=2) if grey else unit,
        rest[..., 0].copy() if rest.size else None,
        grey,
        _of_space(b"GRAY" if grey else b"RGB ", profile),
    )


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
    """uint8 of uint8, of uint16, or of floating point numbers nominally in [0, 1]."""
    if pixels.dtype.kind == "u":
        return tiff.rounded(pixels)
    return np.rint(np.asarray(pixels, np.float32).clip(0, 1) * 255).astype(np.uint8)
