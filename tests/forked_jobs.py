"""Jobs in processes of their own that start at once: forks of a process that has imported everything.

As a program, that process: reads a request a line, forks, and answers with the number and the exit code of the fork.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ != "__main__":
    from tests.processes import Killer, started


class ForkedJobs:
    """Runs `dot-<name>` as its command line would.

    Attributes:
        killer: can have a run die at a given moment.
    """

    def __init__(self, process: subprocess.Popen[str], folder: Path, killer: Killer) -> None:
        self._process, self._folder, self.killer = process, folder, killer
        self._pid, self._started = 0, threading.Event()

    def run(self, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """What a command gives and prints.

        Args:
            name: fit, transport or evaluate.
            arguments: of its command line.
            environment: variables that the process has beside those of its parent.
        """
        outputs = [str(self._folder / name) for name in ("stdout", "stderr")]
        print(json.dumps([name, arguments, environment, outputs]), file=self._process.stdin, flush=True)
        self._pid = int(self._process.stdout.readline())
        self._started.set()
        code = int(self._process.stdout.readline())
        self._started.clear()
        return subprocess.CompletedProcess([name, *arguments], code, *(Path(path).read_text() for path in outputs))

    def kill(self) -> None:
        """Kills the run that is under way in another thread."""
        self._started.wait()
        os.kill(self._pid, signal.SIGKILL)


@contextmanager
def forked_jobs(folder: Path) -> Iterator[ForkedJobs]:
    """The process that forks.

    Args:
        folder: an empty one, for what the jobs print.
    """
    killer = Killer(folder)
    command = [sys.executable, __file__]
    environment = {**os.environ, **killer.environment}
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as process:
        yield ForkedJobs(process, folder, killer)


def _serve() -> None:
    sys.path[0] = str(Path(__file__).parents[1])  # tests/ has a folder pipelines/ of its own
    modules = {name: importlib.import_module(f"pipelines.{name}") for name in ("fit", "transport", "evaluate")}
    for name in ("gcsfs", "s3fs"):  # which fsspec imports when they are first asked for
        importlib.import_module(name)
    for line in sys.stdin:
        name, arguments, environment, outputs = json.loads(line)
        child = os.fork()
        if not child:
            for stream, path in zip((1, 2), outputs, strict=True):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            os.environ.update(environment)
            sys.exit(modules[name].main(arguments))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
