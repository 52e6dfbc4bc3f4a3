"""The errors that users see, and the bounded set of names for what can go wrong with one image.

A `UserError` is a mistake that can be known before or without touching an image: jobs print it as one line
and exit with code 2. An `ImageError` concerns one image: jobs turn it into one row of the failures.
"""

from __future__ import annotations

import errno
from enum import StrEnum

from ot_core.device import raise_if_lost


class OTError(Exception):
    """Base of all errors raised on purpose by this package."""


class UserError(OTError):
    """Something the user asked for can't be done; the message names it, what was expected, and what to do."""


class MapFileError(UserError):
    """A transport map file is missing, damaged, inconsistent, or doesn't belong to the autoencoder in use."""


class Cause(StrEnum):
    """Every value that the `error_type` column of the failures can take."""

    BAD_KEY = "bad_key"
    DUPLICATE_KEY = "duplicate_key"
    NOT_FOUND = "not_found"
    PERMISSION_DENIED = "permission_denied"
    IS_A_DIRECTORY = "is_a_directory"
    BAD_LIST = "bad_list"
    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_an_image"
    DAMAGED = "damaged"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    NOT_FINITE = "not_finite"
    OUT_OF_RANGE = "out_of_range"
    UNSUPPORTED = "unsupported"
    OUT_OF_MEMORY = "out_of_memory"
    UNAVAILABLE = "unavailable"
    NO_STATISTICS = "no_statistics"
    NO_GROUP = "no_group"
    NO_MAP = "no_map"
    SIZE_MISMATCH = "size_mismatch"
    RESTORER_ERROR = "restorer_error"
    DEGRADATION_ERROR = "degradation_error"
    IO_ERROR = "io_error"
    INTERNAL_ERROR = "internal_error"


class UnavailableError(OTError, OSError):
    """A store went on failing, in a way that often passes, for as long as we tried."""


class StoreError(OTError, OSError):
    """A store refused, or its library failed, in a way that Python has no OSError of its own for."""


class BadUrlError(StoreError):
    """A URL is malformed, its protocol isn't known, or the package for its protocol isn't installed."""


class NotAFileError(StoreError):
    """A path names a FIFO, a socket or a device, which might be read for ever."""


class TooManyBytesError(OTError, ValueError):
    """A file holds more bytes than it may."""


class ImageError(OTError):
    """One image can't be processed.

    Args:
        cause: which of the bounded set of causes.
        message: one line for the `message` column of the failures.
    """

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(cause, message)
        self.cause = cause
        self.message = message

    def __str__(self) -> str:
        return f"{self.cause}: {self.message}"


_CAUSE_OF_TYPE: tuple[tuple[type[BaseException], Cause], ...] = (
    (FileNotFoundError, Cause.NOT_FOUND),
    (NotADirectoryError, Cause.NOT_FOUND),
    (PermissionError, Cause.PERMISSION_DENIED),
    (IsADirectoryError, Cause.IS_A_DIRECTORY),
    (MemoryError, Cause.OUT_OF_MEMORY),
    (UnavailableError, Cause.UNAVAILABLE),
    (BadUrlError, Cause.BAD_LIST),
    (NotAFileError, Cause.NOT_AN_IMAGE),
    (TooManyBytesError, Cause.TOO_LARGE),
    (OSError, Cause.IO_ERROR),
)


def one_line(error: BaseException, most: int = 300) -> str:
    """What an exception says, as one line of bounded length; where it says nothing, its type."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def type_and_line(error: BaseException) -> str:
    """The same after its type, for exceptions of anybody's code."""
    kind, said = type(error).__name__, one_line(error)
    return kind if said == kind else f"{kind}: {said}"


def as_image_error(error: Exception) -> ImageError:
    """Gives any exception a bounded cause and a message of one line, whatever library raised it.

    Raises:
        DeviceLostError: if it concerns no single image, since every other would fail, too.
    """
    raise_if_lost(error)
    if isinstance(error, ImageError):
        return error
    message = one_line(error, most=500)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return ImageError(Cause.BAD_KEY, message)
    for kind, cause in _CAUSE_OF_TYPE:
        if isinstance(error, kind):
            return ImageError(cause, message)
    return ImageError(Cause.INTERNAL_ERROR, f"{type(error).__name__}: {message}")
