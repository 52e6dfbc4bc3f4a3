"""Kills a process at a moment that a test chose; Python imports this by itself where its folder is on PYTHONPATH.

$DOT_TEST_KILL names a file that holds a number and a folder. The first process that is about to give a file its final
name below the folder, when so many are there, removes the file and ends by SIGKILL.
"""

import os
import signal
import sys

_ORDER = os.environ.get("DOT_TEST_KILL", "")


def _watch(event: str, args: tuple[object, ...]) -> None:
    if event != "os.rename":
        return
    try:
        with open(_ORDER) as order:
            count, folder = order.read().split(" ", 1)
    except FileNotFoundError:
        return
    target = os.path.abspath(str(args[1]))
    if not target.startswith(folder + os.sep) or _files(folder) < int(count):
        return
    try:
        os.remove(_ORDER)
    except FileNotFoundError:  # another thread or process was first
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _files(folder: str) -> int:
    return sum(1 for _, _, names in os.walk(folder) for name in names if not name.startswith("."))


if _ORDER:
    sys.addaudithook(_watch)
