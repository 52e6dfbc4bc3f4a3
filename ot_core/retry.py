"""Trying again what fails in a way that often passes: exponential backoff with jitter, bounded in time."""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import tenacity

from ot_core.errors import UnavailableError

P = ParamSpec("P")
T = TypeVar("T")

#: For how long a call is tried again before it counts as failed, in seconds; $DOT_RETRY_SECONDS overrides it.
RETRY_SECONDS = 120.0
_LONGEST_WAIT = 30.0

_PASSING_ERRNOS = {
    errno.EAGAIN,
    errno.EBUSY,  # s3fs says so for SlowDown
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.ETIMEDOUT,
}
#: Names rather than classes, since the clients that define them are optional.
_PASSING_CLASSES = {
    "ClientConnectionError",  # aiohttp
    "ClientPayloadError",
    "ChecksumError",  # gcsfs
    "ChunkedEncodingError",  # requests
    "HTTPClientError",  # botocore
    "IncompleteRead",  # http.client
    "IncompleteReadError",  # asyncio
    "ProtocolError",  # urllib3
    "Timeout",
}


def is_transient(error: BaseException) -> bool:
    """Whether an error of a store may pass: timeouts, lost connections, truncated answers, HTTP 408, 429 and 5xx."""
    status = _http_status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
        return True
    if any(cls.__name__ in _PASSING_CLASSES for cls in type(error).__mro__):
        return True
    # s3fs turns what it can't name into EIO, and keeps what it was as the cause.
    return isinstance(error, OSError) and error.__cause__ is not None and is_transient(error.__cause__)


def _http_status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        found: Any = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = next((getattr(error, name) for name in ("code", "status", "status_code") if hasattr(error, name)), None)
    try:
        status = int(found)
    except (TypeError, ValueError):
        return None
    return status if 400 <= status < 600 else None


def retried(function: Callable[P, T]) -> Callable[P, T]:
    """Calls a function again while it raises errors that may pass; it must be safe to repeat.

    Raises:
        UnavailableError: if it still fails so after `RETRY_SECONDS`; other errors as the function raises them.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        seconds = float(os.environ.get("DOT_RETRY_SECONDS", RETRY_SECONDS))
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT),
            stop=tenacity.stop_before_delay(seconds),
            before_sleep=tenacity.before_sleep_log(logging.getLogger(__name__), logging.INFO),
        )
        try:
            return attempts(function, *args, **kwargs)
        except tenacity.RetryError as error:
            tried, last = error.last_attempt.attempt_number, error.last_attempt.exception()
            what = " ".join(str(last).split())[:300] or type(last).__name__
            raise UnavailableError(f"still failing after {tried} attempts in {seconds:g} s: {what}") from last

    return call
