"""Runs jobs in processes forked from one that has imported what they need: imports take longer than small jobs do.

Run as a program, this is that process. It takes a job a line, and answers with its process, and then how that ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


class Jobs:
    """Runs of dot-transport, one at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: str) -> int:
        """The process of a job, which has begun; what it prints goes to a file."""
        assert self._process.stdin is not None
        request = {"arguments": list(arguments), "environment": dict(environment), "log": log}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """The exit code of the job; a signal's number below 0."""
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def jobs() -> Iterator[Jobs]:
    """A process that runs jobs."""
    from tests import processes

    paths = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-P", __file__]
    with processes.started(command, env=paths, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Jobs(process)


def _serve() -> None:
    import gcsfs  # noqa: F401
    import s3fs  # noqa: F401
    import torch  # noqa: F401

    import transforms
    from pipelines import transport

    for name in transforms.__all__:
        getattr(transforms, name)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            os.environ.update(request["environment"])
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(log, stream)
            code = 99
            try:
                code = transport.main(request["arguments"])
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
