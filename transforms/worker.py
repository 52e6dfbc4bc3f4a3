"""Ending a worker whose accelerator is lost: its runner tries the bundle again, which needs another process."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator

from ot_core.device import is_lost, raise_if_lost

#: As which a worker ends, EX_SOFTWARE.
_EXIT_CODE = 70
#: Seconds for the log's last lines to arrive.
_LAST_WORDS = 5.0
#: Commands with which Beam starts a process for nothing but work.
_OF_WORKER = ("apache_beam.runners.worker.sdk_worker_main", "SdkHarness(")


@contextlib.contextmanager
def ends_with_device() -> Iterator[None]:
    """Ends the worker's process if an error in this block says that the device is lost.

    In a process that isn't Beam's, such as the one that launched a local job, the error is raised.

    Raises:
        DeviceLostError: in the place of such an error.
    """
    try:
        yield
    except Exception as error:
        if is_lost(error) and is_worker(sys.orig_argv):
            _end(error)
        raise_if_lost(error)
        raise


def is_worker(command: list[str]) -> bool:
    """Whether a process with this command line does nothing but work for Beam."""
    return any(name in argument for argument in command for name in _OF_WORKER)


def _end(error: Exception) -> None:
    """Ends this process at once, once its log has had the time to be sent."""
    logging.getLogger(__name__).critical("this worker ends: %s", error)
    sender = threading.Thread(target=logging.shutdown, daemon=True)
    sender.start()
    sender.join(_LAST_WORDS)
    os._exit(_EXIT_CODE)
