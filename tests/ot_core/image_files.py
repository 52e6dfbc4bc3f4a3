"""Image files of every kind, for the tests of ot_core.images."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from ot_core import Cause, ImageError, decode_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(height: int, width: int, channels: int | None = None, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, image_format: str = "PNG", **options: Any) -> bytes:
    """A file, written by Pillow."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, image_format, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG file written by hand, of kinds that Pillow doesn't write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    stride = len(rows) // max(height, 1)
    lines = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    body = b"".join([header, *extra, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


def cmyk_profile() -> bytes:
    """An ICC profile of odd inks: K prints black, C without K mid-grey (L* = 50), M and Y nothing."""
    identity = bytes(range(256))
    table = b"".join(bytes([0 if i & 1 else 128 if i & 8 else 255, 128, 128]) for i in range(16))  # K varies fastest
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + table + identity * 3
    lut += b"\0" * (-len(lut) % 4)
    header = struct.pack(">I4sI4s4s4s", 132 + 12 + len(lut), b"\0\0\0\0", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28
    header += struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D) + b"\0" * 48
    return header + struct.pack(">I4sII", 1, b"A2B0", 144, len(lut)) + lut


def refused(data: bytes, **options: Any) -> Cause:
    with pytest.raises(ImageError) as error:
        decode_image(data, **options)
    assert "\n" not in error.value.message
    return error.value.cause


def refused_with(data: bytes, text: str) -> None:
    with pytest.raises(ImageError) as error:
        decode_image(data)
    assert error.value.cause == Cause.UNSUPPORTED
    assert text in error.value.message
