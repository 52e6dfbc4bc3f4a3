"""The worker processes of Beam's own runner (`--direct_running_mode multi_processing`): none is waited for in vain.

Beam waits without end in three cases: for the answer of a worker that died, as one does where memory runs out; for a
worker to end that connected only when the job was already over; and for a worker that has a thread which never ends.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    BeamFnControlServicer,
    SubprocessSdkWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.portability.local_job_service import SubprocessSdkWorker

from pipelines.command import descendants

#: Seconds that a worker has to end in when the job is over.
GRACE = 20.0
#: Between two looks at what the runner asks of a worker that is lost.
_INTERVAL = 0.1
_logger = logging.getLogger("apache_beam.workers")


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Watches the workers that are started in this block: a job fails with a worker that dies, and waits for none."""
    _register(_Watched)
    try:
        yield
    finally:
        _register(SubprocessSdkWorkerHandler)


def _register(handler: type[WorkerHandler]) -> None:
    WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(handler)


class _Watched(SubprocessSdkWorkerHandler):
    """A worker process and the thread that waits for it to end."""

    def start_worker(self) -> None:
        """Starts both; a thread that still waits doesn't keep the launching process from ending."""
        self._closing = threading.Event()
        self.worker_thread = threading.Thread(target=self._run, name="run_worker", daemon=True)
        self.worker_thread.start()

    def close(self) -> None:
        """Ends the worker, since the job is over."""
        self._closing.set()
        super().close()

    def stop_worker(self) -> None:
        """Waits for the process, and kills it where that takes longer than it should."""
        # Beam sends this only to a worker that has connected; any other would wait for work as soon as it has.
        self.control_conn.push(BeamFnControlServicer._DONE_MARKER)
        self.worker_thread.join(GRACE)
        if not self.worker_thread.is_alive():
            return
        _logger.warning("%s did not end within %g seconds of the job's end: it is killed", self.worker_id, GRACE)
        for process in descendants(os.getpid()):
            if _is_of(process, self.worker_id):
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        self.worker_thread.join(GRACE)  # but not for good, since not every system tells who its processes are

    def _run(self) -> None:
        worker = SubprocessSdkWorker(
            self._worker_command_line, self.control_address, self.provision_info, self.worker_id
        )
        try:
            worker.run()
            how = "it ended before the job"
        except RuntimeError as error:
            how = str(error)
        if not self._closing.is_set():
            self._answer(f"a worker process is lost ({how}); if memory ran out, use fewer --direct_num_workers")

    def _answer(self, problem: str) -> None:
        """Fails what the runner asks of this worker until it gives up."""
        while not self._closing.wait(_INTERVAL):
            for name, future in list(self.control_conn._futures_by_id.items()):
                if not future.is_done():
                    future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=name, error=problem))


def _is_of(process: int, worker_id: str) -> bool:
    """Whether a process has been started for a worker."""
    try:
        environment = Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return False
    return f"WORKER_ID={worker_id}".encode() in environment.split(b"\0")
