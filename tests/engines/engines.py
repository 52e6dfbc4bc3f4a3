"""The engines that the jobs are tested on: started, described by the flags that reach them, and stopped.

- `local`: Beam's local runner in the launching process, which is the jobs' default.
- `processes`: the same over two worker processes.
- `portable`: Beam's job service in Python, with a pool that starts its worker process.
- `prism`: Beam's portable runner in Go, started by the launching process, which is also its worker.
- `prism pool`: Prism as a server of its own, with a pool that starts its worker process; only where `DOT_ALL_ENGINES`
  is set, since it takes long and differs little from the two before.
- `flink`: Flink inside its job server, with the launching process for a worker.
- `flink cluster`: a session cluster of `$FLINK_HOME`, with a pool that starts its worker processes.

Prism is taken from `$DOT_PRISM`, or from where `make prism` builds it; Flink's job server from
`$DOT_FLINK_JOB_SERVER_JAR`. Where they aren't at hand, the tests skip and say so.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from apache_beam.runners.portability.job_server import EmbeddedJobServer, StopOnExitJobServer
from apache_beam.runners.portability.prism_runner import PrismRunner
from apache_beam.version import __version__ as BEAM

from tests.processes import started

ROOT = Path(__file__).parents[2]
CACHE = Path.home() / ".cache" / "dot-engines"


@dataclass(frozen=True)
class Engine:
    """An engine that runs.

    Attributes:
        flags: what a job's command line needs to run there.
    """

    flags: tuple[str, ...]


def prism() -> str:
    """Path of the binary, or skips."""
    path = Path(os.environ.get("DOT_PRISM", CACHE / f"prism-{BEAM}"))
    if not path.exists():
        pytest.skip("Beam's Prism is not at hand: `make prism` builds it with Go, or set DOT_PRISM to the binary")
    return str(path)


def flink_job_server() -> str:
    """Path of the jar, or skips."""
    path = os.environ.get("DOT_FLINK_JOB_SERVER_JAR")
    if not path:
        pytest.skip(
            "Beam's Flink job server jar is not at hand: set DOT_FLINK_JOB_SERVER_JAR, or try `make test-flink`"
        )
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _server(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    """A process that listens."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # a pool starts `python`
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": python_path}
    with open(log, "wb") as output, started(command, stdout=output, stderr=output, env=environment) as process:
        while not _listens(port):
            if process.poll() is not None:
                raise RuntimeError(f"{command} doesn't listen on port {port}: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _module(name: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"apache_beam.runners.{name}", *flags]


def _local(stack: ExitStack, logs: Path) -> Engine:
    return Engine(())


def _processes(stack: ExitStack, logs: Path) -> Engine:
    return Engine(("--direct_num_workers=2", "--direct_running_mode=multi_processing"))


def _with_pool(stack: ExitStack, logs: Path, flags: Sequence[str]) -> Engine:
    port = _free_port()
    command = _module("worker.worker_pool_main", f"--service_port={port}")
    stack.enter_context(_server(command, port, logs / "pool.log"))
    return Engine((*flags, "--environment_type=EXTERNAL", f"--environment_config=localhost:{port}"))


def _portable(stack: ExitStack, logs: Path) -> Engine:
    port = _free_port()
    command = _module("portability.local_job_service_main", f"--port={port}")
    stack.enter_context(_server(command, port, logs / "job-service.log"))
    return _with_pool(stack, logs, ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}"])


def _prism(stack: ExitStack, logs: Path) -> Engine:
    # Beam keeps the server for further jobs until its process ends.
    stack.callback(lambda: PrismRunner.shared_handle.acquire(lambda: StopOnExitJobServer(EmbeddedJobServer())).stop())
    return Engine(("--runner=PrismRunner", f"--prism_location={prism()}"))


def _prism_pool(stack: ExitStack, logs: Path) -> Engine:
    if not os.environ.get("DOT_ALL_ENGINES"):
        pytest.skip("left to `make test-engines`, which sets DOT_ALL_ENGINES")
    port = _free_port()
    command = [prism(), f"-job_port={port}", "-serve_http=false"]
    stack.enter_context(_server(command, port, logs / "prism.log"))
    return _with_pool(stack, logs, ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}"])


def _flink(stack: ExitStack, logs: Path) -> Engine:
    jar = f"--flink_job_server_jar={flink_job_server()}"
    return Engine(("--runner=FlinkRunner", "--flink_master=[local]", jar, "--parallelism=2"))


def _flink_cluster(stack: ExitStack, logs: Path) -> Engine:
    jar = f"--flink_job_server_jar={flink_job_server()}"
    home = os.environ.get("FLINK_HOME")
    if not home:
        pytest.skip("no Flink to start a cluster from: set FLINK_HOME to an unpacked distribution")
    subprocess.run([f"{home}/bin/start-cluster.sh"], check=True)
    stack.callback(subprocess.run, [f"{home}/bin/stop-cluster.sh"], check=True)
    return _with_pool(stack, logs, ["--runner=FlinkRunner", "--flink_master=localhost:8081", jar, "--parallelism=1"])


ENGINES: dict[str, Callable[[ExitStack, Path], Engine]] = {
    "local": _local,
    "processes": _processes,
    "portable": _portable,
    "prism": _prism,
    "prism pool": _prism_pool,
    "flink": _flink,
    "flink cluster": _flink_cluster,
}


@contextmanager
def running(name: str, logs: Path) -> Iterator[Engine]:
    """Starts an engine, and stops it."""
    with ExitStack() as stack:
        yield ENGINES[name](stack, logs)
