"""What the errors of stores' libraries mean: which are tried again, and as which OSError the others are raised."""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import tenacity

from ot_core.errors import BadUrlError, OTError, StoreError, UnavailableError, one_line

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


#: What libraries raise where they find no valid credentials: botocore, google.auth, azure.
_NO_CREDENTIALS = {
    "ClientAuthenticationError",
    "CredentialRetrievalError",
    "GoogleAuthError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "SSOError",
}


def is_transient(error: BaseException) -> bool:
    """Whether an error of a store may pass: timeouts, lost connections, truncated answers, HTTP 408, 429 and 5xx."""
    if isinstance(error, OTError):
        return False
    status = http_status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
        return True
    if _is_no_such_host(error) or _is_a(error, _NO_CREDENTIALS):
        return False
    if _is_a(error, _PASSING_CLASSES):
        return True
    # s3fs turns what it can't name into EIO, and keeps what it was as the cause.
    return isinstance(error, OSError) and error.__cause__ is not None and is_transient(error.__cause__)


def _is_a(error: BaseException, names: set[str]) -> bool:
    return any(cls.__name__ in names for cls in type(error).__mro__)


def _is_no_such_host(error: BaseException | None) -> bool:
    """Whether a name has no address, which stays so; that the name server didn't answer may pass."""
    while error is not None:
        if isinstance(error, socket.gaierror):
            return error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
        error = error.__cause__ or error.__context__
    return False


def http_status(error: BaseException) -> int | None:
    """The status of the answer that an error tells of, 400 to 599; None if it tells of none."""
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
            assert last is not None  # it failed
            raise UnavailableError(f"still failing after {tried} attempts in {seconds:g} s: {one_line(last)}") from last

    return call


def at_store(function: Callable[P, T]) -> Callable[P, T]:
    """Calls a function of a store's library: `retried`, and whatever it raises in the end is an OSError or our own.

    Raises:
        FileNotFoundError, PermissionError: also where the library has errors of its own for that.
        BadUrlError: for what the library takes for no URL.
        UnavailableError, StoreError, OSError: otherwise.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return retried(function)(*args, **kwargs)
        except Exception as error:  # each store has its own errors
            translated = as_os_error(error)
            if translated is error:
                raise
            raise translated from error

    return call


def as_os_error(error: Exception) -> Exception:
    """The error of a store's library as an OSError whose message is one line; our own errors and OSErrors stay."""
    if isinstance(error, OTError | MemoryError):
        return error
    status, said = http_status(error), one_line(error)
    if status in (401, 403) or (isinstance(error, OSError) and said.startswith("Forbidden:")):  # gcsfs
        return error if isinstance(error, PermissionError) else PermissionError(said)
    if status in (404, 410):
        return error if isinstance(error, FileNotFoundError) else FileNotFoundError(said)
    if _is_no_such_host(error):
        return StoreError(f"no such host ({said})")
    if isinstance(error, OSError):
        return error
    if _is_a(error, _NO_CREDENTIALS) or (isinstance(error, ValueError) and "credentials" in said):  # the latter: adlfs
        return PermissionError(f"no valid credentials ({said})")
    if isinstance(error, ValueError) or _is_a(error, {"InvalidURL", "ParamValidationError"}):
        return BadUrlError(f"not a URL of a file ({said})")
    return StoreError(f"{type(error).__name__}: {said}")
