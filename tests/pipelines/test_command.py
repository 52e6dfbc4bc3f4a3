"""How commands tell things and end: streams that break, signals, faults, logs."""

import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import ot_core
from ot_core import UserError
from pipelines.command import command, complain, say, told

ROOT = Path(__file__).parents[2]


class _Broken(io.RawIOBase):
    """A file whose reader is gone."""

    def writable(self):
        return True

    def write(self, data):
        raise BrokenPipeError(32, "Broken pipe")


def _closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, _closed(), io.TextIOWrapper(_Broken(), "utf-8", write_through=True)])
def test_what_nobody_can_read_is_dropped(stream, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    say("done")
    complain("dot-test", "a problem")
    assert command("dot-test", [], lambda: say("done") or 0) == 0


@pytest.mark.parametrize(("encoding", "printed"), [("ascii", r"out/\xfc \udcff"), ("utf-8", "out/\xfc " + r"\udcff")])
def test_characters_that_a_stream_lacks_are_escaped(encoding, printed, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    say("out/\xfc \udcff")  # as Python reads a file's name that isn't UTF-8
    complain("dot-test", "out/\xfc \udcff")
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    assert (out, err) == (f"{printed}\n", f"dot-test: error: {printed}\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("--map x: missing"), 2, "--map x: missing"),
        (PermissionError(13, "Permission denied", "/out"), 2, "[Errno 13] Permission denied: '/out'"),
        (KeyError("x"), 1, "unexpected KeyError: 'x'; the whole story is in "),
    ],
)
def test_whatever_a_command_raises_ends_in_one_line(error, code, line, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def work():
        raise error

    assert command("dot-test", [], work) == code
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(f"dot-test: error: {line}")
    kept = list(tmp_path.iterdir())
    assert [f"{path}" for path in kept] == re.findall(r"story is in (\S+)", printed)
    assert all("Traceback" in path.read_text() for path in kept)


def test_without_a_place_for_the_story_it_is_printed_before_the_line(capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert command("dot-test", [], lambda: [][0]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "Traceback (most recent call last):"
    assert printed[-1] == "dot-test: error: unexpected IndexError: list index out of range"


def test_an_exception_is_told_by_what_it_says_and_where_that_is_little_by_its_type():
    assert told(ValueError("too\nlong")) == "ValueError: too long"
    assert told(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"
    assert told(RuntimeError("Traceback (most recent call last):\n  File 'x'\nOSError: no disk")) == "OSError: no disk"
    assert told(TimeoutError()) == "TimeoutError"


def test_a_command_leaves_the_logging_of_the_program_around_it_as_it_is():
    root, beams = logging.getLogger(), logging.getLogger("apache_beam")

    def state():
        return [(x.level, list(x.handlers), x.propagate, list(x.filters)) for x in (root, beams)]

    before = state()
    assert command("dot-test", [], lambda: 0) == 0
    assert state() == before
    handlers, root.handlers = root.handlers, []
    try:
        assert command("dot-test", [], lambda: logging.warning("would set up handlers") or 0) == 0
        assert root.handlers == []
    finally:
        root.handlers = handlers


def test_what_libraries_log_goes_to_the_story_alone_and_what_others_warn_of_to_stderr(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def work():
        for name in ("apache_beam.runners", "gcsfs", "botocore.credentials", "users_factory"):
            logging.getLogger(name).warning("of %s", name)
        raise KeyError("x")

    assert command("dot-test", [], work) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "WARNING users_factory: of users_factory"
    assert len(lines) == 2
    (story,) = tmp_path.iterdir()
    assert [line.partition("of ")[2] for line in story.read_text().splitlines()[:3]] == [
        "apache_beam.runners", "gcsfs", "botocore.credentials"
    ]  # fmt: skip


def _run(work: str, *, wait_for: str = "", close: str = "", **kwargs) -> subprocess.Popen:
    """Starts a process whose command does this work; gives it once it has printed `ready`."""
    program = f"""
import os, signal, subprocess, sys, time
from pipelines.command import *
def work():
{work}
sys.exit(command("dot-test", None, work))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", program]
    if close:
        call = ["sh", "-c", f'exec "$@" {close}', "sh", *call]
    process = subprocess.Popen(call, text=True, env=environment, start_new_session=True, **kwargs)
    if wait_for:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == wait_for
    return process


BUSY = """
    say("ready")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])  # as far within a library
    time.sleep(600)
"""
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.mark.parametrize(
    ("number", "how"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM"), (signal.SIGHUP, "ended by SIGHUP")],
)
def test_a_signal_ends_a_command_in_one_line_whatever_it_is_doing(number, how):
    with _run(BUSY, wait_for="ready", **PIPES) as process:
        os.kill(process.pid, number)
        out, err = process.communicate()
    assert (out, err) == ("", f"dot-test: {how}\n")
    assert process.returncode == 128 + number


def test_an_interrupted_command_ends_what_it_started_and_these_print_nothing():
    work = """
    with on_ending("; advice", within_line=False), workers_kept_quiet():
        child = subprocess.Popen([sys.executable, "-c", "import time; print('child', flush=True); time.sleep(600)"])
        say(str(child.pid))
        time.sleep(600)
"""
    with _run(work, **PIPES) as process:
        lines = {process.stdout.readline().strip() for _ in range(2)}
        assert "child" in lines
        child = int((lines - {"child"}).pop())
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate()
    assert err == "dot-test: interrupted; advice\n"
    assert process.returncode == 130
    while _is_alive(child):  # it is killed, but somebody has to notice
        time.sleep(0.01)


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_signals_to_a_forked_child_do_not_end_the_command():
    work = """
    child = os.fork()
    if not child:
        time.sleep(600)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    say(str(os.waitstatus_to_exitcode(status)))
    return 0
"""
    with _run(work, **PIPES) as process:
        out, err = process.communicate()
    assert (out, err, process.returncode) == ("-15\n", "", 0)


def test_what_was_ignored_stays_ignored():
    work = """
    os.kill(os.getpid(), signal.SIGHUP)
    return 0
"""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _run(work, **PIPES) as process:
            process.communicate()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.returncode == 0


SAYS = """
    say("x" * 100_000 + "\\xfc")
    complain("dot-test", "y")
    return 0
"""


@pytest.mark.parametrize("close", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full"])
def test_streams_that_are_closed_or_full_change_no_exit_code(close):
    with _run(SAYS, close=close, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert process.wait() == 0


def test_a_reader_that_is_gone_changes_no_exit_code():
    reader, writer = os.pipe()
    os.close(reader)
    with _run(SAYS, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        assert process.communicate()[1] == "dot-test: error: y\n"
    assert process.returncode == 0


def test_a_file_never_takes_the_number_of_a_closed_stream(tmp_path):
    path = tmp_path / "file"
    work = f"""
    with open({str(path)!r}, "w") as file:
        os.write(1, b"from a library")
        os.write(2, b"from a library")
    return 0
"""
    with _run(work, close=">&- 2>&-") as process:
        assert process.wait() == 0
    assert path.read_text() == ""


def test_a_working_folder_that_is_gone_is_told_in_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    call = f"import os; os.rmdir({str(tmp_path / 'gone')!r}); from pipelines.command import command"
    program = f"{call}; raise SystemExit(command('dot-test', None, lambda: 0))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "gone", env=environment, capture_output=True, text=True
    )
    assert done.stderr == "error: the working folder is gone; change to one that is there\n"
    assert done.returncode == 2


def test_the_version_is_told(capsys):
    assert command("dot-test", ["--version"], lambda: 1) == 0
    assert capsys.readouterr().out == f"dot-test {ot_core.__version__}\n"


def test_signals_and_threads_are_as_before_when_a_command_has_ended(monkeypatch):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers], threading.active_count()
    monkeypatch.setattr(sys, "argv", ["dot-test"])
    assert command("dot-test", None, lambda: 0) == 0
    assert ([signal.getsignal(number) for number in numbers], threading.active_count()) == before
