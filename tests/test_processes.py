"""Nothing that a test starts outlives it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import processes

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")


def test_what_is_left_running_is_named_and_killed_even_if_its_parent_is_gone():
    before = processes.alive()
    subprocess.run(["sh", "-c", "sleep 1000 >&- 2>&- &"], check=True)
    while "sleep 1000" not in processes.alive().values():  # the shell's fork isn't sleep yet
        time.sleep(0.01)
    left = processes.left(before.keys(), grace=0)
    assert list(left.values()) == ["sleep 1000"]
    while left.keys() & processes.alive().keys():
        time.sleep(0.01)


def test_what_is_expected_to_run_is_let_be():
    before = processes.alive()
    with processes.started(["sleep", "1000"]) as process:
        assert processes.left({*before, process.pid}, grace=0) == {}
        assert process.poll() is None
    assert process.poll() is not None


PROGRAM = """
import os, signal, subprocess, processes
processes.mark()
print(subprocess.Popen(["sleep", "1000"], start_new_session=True, stdout=subprocess.DEVNULL).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_started_is_killed():
    environment = {**os.environ, "PYTHONPATH": str(Path(processes.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, env=environment, text=True)
    while processes.command_line(int(done.stdout)):
        time.sleep(0.01)
