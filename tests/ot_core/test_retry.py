"""What is tried again, for how long, and what is not."""

import errno
import time

import pytest

from ot_core import Cause
from ot_core.errors import UnavailableError, as_image_error
from ot_core.retry import is_transient, retried


class _HttpError(Exception):
    """Like gcsfs's and aiohttp's: the status is an attribute."""

    def __init__(self, code):
        super().__init__(f"status {code}")
        self.code = code


class _ClientError(Exception):
    """Like botocore's."""

    def __init__(self, status):
        super().__init__("client error")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class ClientPayloadError(Exception):
    """Like aiohttp's, for a body that ends too early."""


def _caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError(),
        OSError(errno.EBUSY, "slow down"),
        ClientPayloadError(),
        *map(_HttpError, (408, 429, 500, 502, 503, 504, "503")),
        _ClientError(503),
        _caused(OSError(errno.EIO, "internal error"), _ClientError(500)),
    ],
)
def test_what_often_passes_is_transient(error):
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(),
        PermissionError(),
        OSError(errno.ENOSPC, "disk full"),
        OSError(errno.EIO, "broken disk"),
        ValueError(),
        *map(_HttpError, (400, 401, 403, 404, 412)),
        _ClientError(403),
        _caused(PermissionError(), _ClientError(403)),
    ],
)
def test_what_does_not_pass_is_not(error):
    assert not is_transient(error)


def test_a_call_is_repeated_until_it_succeeds():
    errors = [ConnectionResetError(), _HttpError(503)]

    @retried
    def flaky(value):
        if errors:
            raise errors.pop()
        return value

    assert flaky(7) == 7
    assert not errors


def test_what_does_not_pass_is_raised_at_once():
    calls = []

    @retried
    def forbidden():
        calls.append(1)
        raise PermissionError("no")

    with pytest.raises(PermissionError, match="no"):
        forbidden()
    assert len(calls) == 1


def test_trying_again_ends_in_time_and_says_what_failed(monkeypatch):
    monkeypatch.setenv("DOT_RETRY_SECONDS", "1.5")
    calls = []

    @retried
    def down():
        calls.append(1)
        raise _HttpError(503)

    now = [0.0]
    with monkeypatch.context() as clock:
        clock.setattr(time, "monotonic", lambda: now[0])
        clock.setattr(time, "sleep", lambda seconds: now.append(now.pop() + seconds))
        with pytest.raises(UnavailableError, match=r"still failing after \d+ attempts in 1.5 s: status 503") as raised:
            down()
    assert 0 < now[0] <= 1.5
    assert len(calls) > 1
    assert as_image_error(raised.value).cause == Cause.UNAVAILABLE
