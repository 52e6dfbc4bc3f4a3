from __future__ import annotations

import errno

import pytest

from ot_core import Cause, ImageError, MapFileError, OTError, UserError
from ot_core.errors import as_image_error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (FileNotFoundError("a.png"), Cause.NOT_FOUND),
        (NotADirectoryError("a"), Cause.NOT_FOUND),
        (PermissionError("no"), Cause.PERMISSION_DENIED),
        (IsADirectoryError("a"), Cause.IS_A_DIRECTORY),
        (MemoryError(), Cause.OUT_OF_MEMORY),
        (OSError(errno.ENAMETOOLONG, "File name too long"), Cause.BAD_KEY),
        (OSError(errno.EIO, "Input/output error"), Cause.IO_ERROR),
        (TimeoutError(), Cause.IO_ERROR),
        (ZeroDivisionError("division by zero"), Cause.INTERNAL_ERROR),
    ],
)
def test_any_exception_gets_a_cause_and_a_message_of_one_line(error: Exception, cause: Cause):
    converted = as_image_error(error)
    assert converted.cause == cause
    assert converted.message
    assert "\n" not in converted.message


def test_an_image_error_stays_itself():
    error = ImageError(Cause.TOO_LARGE, "too many pixels")
    assert as_image_error(error) is error
    assert str(error) == "too_large: too many pixels"


def test_long_messages_of_many_lines_are_cut_to_one():
    assert as_image_error(ValueError("line\n" * 1000)).message.startswith("ValueError: line line")
    assert len(as_image_error(ValueError("x" * 10_000)).message) < 600


def test_every_error_raised_on_purpose_has_one_base():
    assert issubclass(MapFileError, UserError)
    assert issubclass(UserError, OTError)
    assert issubclass(ImageError, OTError)
    assert not issubclass(ImageError, UserError)
