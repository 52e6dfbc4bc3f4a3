"""HEIC files, for which Pillow needs a plugin of its own."""

from __future__ import annotations

import importlib
import io
from typing import Any, Final

from PIL import Image

from ot_core.errors import Cause, ImageError

#: What files of one picture say that they are; AVIF has the same container.
_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"mif1")


def may_be(data: bytes) -> bool:
    """Whether a file's first bytes are those of HEIC."""
    return data[4:8] == b"ftyp" and data[8:12] in _BRANDS


def opened(data: bytes) -> Image.Image:
    """An upright picture: pillow-heif turns it itself.

    Raises:
        ImageError: UNSUPPORTED, if pillow-heif isn't installed.
        Exception: whatever it raises for a damaged file.
    """
    try:
        heif: Any = importlib.import_module("pillow_heif")
    except ImportError:
        message = "HEIC files need pillow-heif on every worker: pip install 'dot-beam[codecs]'"
        raise ImageError(Cause.UNSUPPORTED, message) from None
    picture: Image.Image = heif.HeifImageFile(io.BytesIO(data), "")
    return picture
