"""The processes that tests start: every one ends with what started it, also after a failure or a timeout.

Run as a program, this ends the processes that a process marked, once that one is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: In the environment of all that a run of pytest starts, so that it is known whoever its parent is.
MARK = "DOT_TEST_PROCESSES"
_PROC = Path("/proc")
#: What Python starts by itself, once, and ends when it ends.
_OF_PYTHON = "multiprocessing.resource_tracker"


def mark() -> None:
    """Marks what this process starts from now on; it is killed when this process is gone, however that ends."""
    bare = {name: value for name, value in os.environ.items() if name != MARK}
    os.environ[MARK] = uuid.uuid4().hex
    command = [sys.executable, "-S", __file__, str(os.getpid()), os.environ[MARK]]
    nowhere = subprocess.DEVNULL  # whoever reads what pytest prints needn't wait for it
    subprocess.Popen(command, env=bare, start_new_session=True, stdin=nowhere, stdout=nowhere, stderr=nowhere)


def alive() -> dict[int, str]:
    """Processes that this one started, or that those did, and their command lines; none without Linux's /proc."""
    parents, found = {}, {os.getpid()} | _marked(os.environ[MARK])
    for folder in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(parent)
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    lines = {pid: command_line(pid) for pid in found - {os.getpid()}}
    return {pid: line for pid, line in lines.items() if line and _OF_PYTHON not in line and __file__ not in line}


def left(expected: Collection[int], grace: float = 60) -> dict[int, str]:
    """Processes that are alive and aren't expected to be; kills them. What is about to end is given time for it."""
    deadline = time.monotonic() + grace
    while (found := alive()).keys() - set(expected) and time.monotonic() < deadline:
        time.sleep(0.05)
    rest = {pid: line for pid, line in found.items() if pid not in expected}
    _kill(rest)
    return rest


@contextmanager
def started(command: Sequence[str | Path], **kwargs: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process, in a group of its own with all that it starts, which is killed at the end."""
    process = subprocess.Popen(command, start_new_session=True, **kwargs)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


class Killer:
    """Has one of the processes that are given its environment die while it writes files to a local folder.

    Args:
        folder: an empty one, of the killer's own.
    """

    def __init__(self, folder: Path) -> None:
        self._order = folder / "kill"
        path = os.pathsep.join(filter(None, [str(Path(__file__).parent / "killer"), os.environ.get("PYTHONPATH")]))
        self.environment = {"DOT_TEST_KILL": str(self._order), "PYTHONPATH": path}

    def kill_at(self, count: int, folder: Path) -> None:
        """By SIGKILL, at the first file that gets its final name below `folder` when there are so many."""
        self._order.write_text(f"{count} {folder.resolve()}")

    @property
    def has_killed(self) -> bool:
        """Since it was last told to."""
        return not self._order.exists()


def _marked(value: str) -> set[int]:
    entry, found = f"{MARK}={value}".encode(), set()
    for path in _PROC.glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if entry in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
    return found


def command_line(pid: int) -> str:
    """Of a process that is alive; empty of one that is gone."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _kill(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _outlive(parent: int, value: str) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    while found := _marked(value):
        _kill(found)
        time.sleep(0.1)


if __name__ == "__main__":
    _outlive(int(sys.argv[1]), sys.argv[2])
