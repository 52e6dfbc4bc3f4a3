"""What surrounds every command: its logs, its signals, how it tells things, and how it ends.

A command ends with a code and, where something is wrong, with one line on stderr. The line names a file with the whole
story of an engine's failure or of a fault of ours. A closed stdout or stderr changes no code.
"""

import atexit
import collections
import contextlib
import dataclasses
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from ot_core import __version__
from ot_core.errors import UserError
from pipelines.causes import cause_of

#: Beam's messages that a failure's file holds.
_MESSAGES = 1000
#: Loggers of libraries that warn of what they raise, too.
_TOLD_BY_US = (
    *("adlfs", "aiobotocore", "aiohttp", "apache_beam", "asyncio", "azure", "botocore"),
    *("fsspec", "gcsfs", "google", "grpc", "s3fs", "urllib3"),
)
#: What ends a command from outside. A signal that is ignored, as after nohup, stays ignored.
_ENDING = {
    number: name for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
}
_STDERR = 2


@dataclasses.dataclass
class _Ending:
    """How a command ends on a signal. Signals belong to the process, and so does this.

    Attributes:
        advice: what to add to its line.
        stderr: number of the file to print it to.
        within_line: whether something stands on that line already.
    """

    advice: str = ""
    stderr: int = _STDERR
    within_line: bool = False


_ending = _Ending()


@dataclasses.dataclass
class _Printed:
    """Which messages of libraries a command prints. Logging belongs to the process, and so does this."""

    everything: bool = False


_printed = _Printed()


class JobError(Exception):
    """A job failed while it ran. The message is one line; the cause, if there is one, tells the whole story."""


def command(prog: str, argv: Sequence[str] | None, work: Callable[[], int]) -> int:
    """Does a command's work and gives its exit code.

    Args:
        prog: the command's name, with which its messages begin.
        argv: its command line. With None it is that of this process, whose signals and streams are then the command's;
            a program that calls a command keeps its own.
        work: gives the code. From what it raises comes one line and the code 2 for a UserError and an OSError, else 1.
    """
    if "--version" in (sys.argv[1:] if argv is None else argv):
        say(f"{prog} {__version__}")
        return 0
    with contextlib.ExitStack() as stack:
        if argv is None:
            stack.enter_context(_streams())
            stack.enter_context(_endings(prog))
            # Engines talk about how they end. What is registered last is done first, before they do.
            stack.callback(atexit.register, setattr, logging, "lastResort", logging.NullHandler())
        messages = stack.enter_context(_quiet_logs())
        try:
            return work()
        except UserError as error:
            complain(prog, str(error))
            return 2
        except OSError as error:  # of a store or this machine
            where = _kept(prog, error, messages) if error.errno and error.filename is None else ""
            complain(prog, f"{told(error)}{where}")
            return 2
        except JobError as error:
            complain(prog, f"{error}{_kept(prog, error.__cause__, messages) if error.__cause__ else ''}")
        except Exception as error:
            complain(prog, f"unexpected {_named(error)}{_kept(prog, error, messages)}")
        return 1


def print_messages() -> None:
    """Prints all messages of Beam and of stores as well, until the command ends."""
    _printed.everything = True


def say(text: str) -> None:
    """Prints to stdout. Escapes characters that it lacks, and doesn't mind if nobody reads it any more."""
    _write(sys.stdout, text)


def complain(prog: str, problem: str, kind: str = "error") -> None:
    """Prints one line to stderr, in the same way."""
    _write(sys.stderr, f"{prog}: {kind}: {' '.join(problem.split())}")


def told(error: BaseException) -> str:
    """An exception's cause as one line."""
    kind = type(error)
    # An OSError speaks for itself; a RuntimeError is what engines wrap another's error in.
    speaks = kind.__module__ != "builtins" or issubclass(kind, OSError | RuntimeError) or kind is Exception
    return (speaks and cause_of(str(error))) or _named(error)


def _named(error: BaseException) -> str:
    said = cause_of(str(error))
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


@contextlib.contextmanager
def on_ending(advice: str, within_line: bool) -> Iterator[None]:
    """Sets what a user is told who ends the command within this block, and whether a bar is shown meanwhile."""
    _ending.advice, _ending.within_line = advice, within_line
    try:
        yield
    finally:
        _ending.advice, _ending.within_line = "", False


@contextlib.contextmanager
def workers_kept_quiet() -> Iterator[None]:
    """Keeps what processes that are started in this block print to stderr, beside Beam's messages.

    They talk about themselves, and each prints a traceback when a terminal interrupts all processes of a command.
    """
    reader, writer = os.pipe()
    stderr, ours, hook = sys.stderr, os.dup(_STDERR), threading.excepthook
    listener = threading.Thread(target=_keep_lines, args=(reader,), name="workers' stderr", daemon=True)
    listener.start()
    os.dup2(writer, _STDERR)
    os.close(writer)
    _ending.stderr = ours
    sys.stderr = open(ours, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    threading.excepthook = _keep_exception
    try:
        yield
    finally:
        threading.excepthook = hook
        sys.stderr = stderr
        _ending.stderr = _STDERR
        os.dup2(ours, _STDERR)
        os.close(ours)
        listener.join(1)  # a process that is still there would hold it open


def _keep_exception(raised: threading.ExceptHookArgs) -> None:
    """Keeps the exception of a thread that watches a worker."""
    logging.getLogger("apache_beam.workers").warning("%s", raised.exc_value, exc_info=raised.exc_value)


def _keep_lines(reader: int) -> None:
    with open(reader, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            logging.getLogger("apache_beam.workers").warning("%s", line.rstrip())


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # print would take stdout for it
        return
    with contextlib.suppress(OSError, ValueError):
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Opens the standard streams that this process lacks; at the end, lets go of those that nobody reads any more."""
    # A library that prints to a number which nobody holds would write into the next file that is opened.
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
            pass
        os.close(number)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError):  # Python would try again when it ends, and end with a code of its own
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _endings(prog: str) -> Iterator[None]:
    """Ends this process and all that it started at once, in one line, when a signal arrives.

    Nothing is unwound, since that could take as long as the work; what has its final name is whole anyway. A thread of
    its own waits for the signals, since the one that runs the command may be deep within a library.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before: dict[int, Any] = {}

    def heard(number: int, frame: FrameType | None) -> None:
        """Python writes the number to the pipe."""

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        before.clear()

    masks = threading.local()

    def hold() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

    def release() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def release_child() -> None:
        if before:
            restore()
            signal.set_wakeup_fd(-1)
        release()

    # Else a child would write to our pipe, and what ends it would end us.
    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=release_child)
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, heard)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(prog, reader, set(before)), name="endings", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        restore()
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _watch(prog: str, reader: int, numbers: set[int]) -> None:
    while received := os.read(reader, 1):
        if received[0] in numbers:
            _end(prog, received[0])


def _end(prog: str, number: int) -> None:
    how = "interrupted" if number == signal.SIGINT else f"ended by {_ENDING[number]}"
    line = f"{prog}: {how}{_ending.advice}\n"
    with contextlib.suppress(OSError):
        os.write(_ending.stderr, ("\n" * _ending.within_line + line).encode(errors="backslashreplace"))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (_STDERR, _ending.stderr):  # other threads may yet have something to say about their lost processes
        os.dup2(nowhere, stream)
    for process in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)
    os._exit(128 + number)


def descendants(ancestor: int) -> list[int]:
    """All processes that a process started, and that these started; none where the system doesn't tell."""
    children: dict[int, list[int]] = collections.defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children[parent].append(int(stat.parent.name))
    found = list(children[ancestor])
    for process in found:
        found += children[process]
    return found


class _Messages(logging.Handler):
    """The last messages of Beam about itself. What concerns the user is printed instead."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: collections.deque[str] = collections.deque(maxlen=_MESSAGES)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a message."""
        self.lines.append(self.format(record))


def _concerns_user(record: logging.LogRecord) -> bool:
    """Whether a message should be printed: not those of engines and stores, whose errors we tell ourselves."""
    # Beam's portable engines use the root logger.
    ours = record.name.partition(".")[0] not in _TOLD_BY_US and "apache_beam" not in record.pathname
    return _printed.everything or ours


@contextlib.contextmanager
def _quiet_logs() -> Iterator[_Messages]:
    """Gathers Beam's messages. They are printed only where a program around us has set up logging."""
    messages, root = _Messages(), logging.getLogger()
    added: list[tuple[logging.Logger, logging.Handler]] = [(root, messages)]
    if root.handlers:
        added = [(logging.getLogger("apache_beam"), messages)]
    elif sys.stderr:
        printed = logging.StreamHandler(sys.stderr)
        printed.setLevel(logging.WARNING)
        printed.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        printed.addFilter(_concerns_user)
        added.append((root, printed))
    for logger, handler in added:
        logger.addHandler(handler)
    try:
        yield messages
    finally:
        _printed.everything = False
        for logger, handler in added:
            logger.removeHandler(handler)


def _kept(prog: str, error: BaseException, messages: _Messages) -> str:
    """Writes the whole story to a file and says where. Where no file can be written, it goes to stderr."""
    story = "".join([*(f"{line}\n" for line in messages.lines), *traceback.format_exception(error)])
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix=f"{prog}-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(story)
    except OSError:
        _write(sys.stderr, story.rstrip())
        return ""
    return f"; the whole story is in {file.name}"
