"""The cause in what engines, clients and services say of a failure."""

import pytest

from pipelines.causes import cause_of

WORKER = """Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1498, in apache_beam.runners.common.DoFnRunner.process
  File "/opt/dot/transforms/transport_images.py", line 120, in process
    raise ValueError("bad pixels")
ValueError: bad pixels

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/usr/local/lib/python3.11/site-packages/apache_beam/runners/worker/sdk_worker.py", line 312, in _execute
    response = task()
               ^^^^^^
  File "/usr/local/lib/python3.11/site-packages/apache_beam/runners/worker/sdk_worker.py", line 386, in <lambda>
    lambda: self.create_worker().do_instruction(request), request)
ValueError: bad pixels [while running 'TransportImages/Model/ParDo(X)-ptransform-12']
"""
WORKERS_CAUSE = "ValueError: bad pixels [while running 'TransportImages/Model/ParDo(X)-ptransform-12']"

UBER_JAR = """org.apache.flink.client.program.ProgramInvocationException: The main method caused an error: Job failed
\tat org.apache.flink.client.program.PackagedProgram.callMainMethod(PackagedProgram.java:374)
\tat java.base/java.lang.Thread.run(Thread.java:840)
Caused by: java.util.concurrent.ExecutionException: org.apache.flink.runtime.client.JobExecutionException: Job failed.
\tat java.base/java.util.concurrent.CompletableFuture.reportGet(CompletableFuture.java:396)
\t... 12 more
\tSuppressed: java.io.IOException: Stream closed
\t\tat org.apache.flink.core.fs.Closer.close(Closer.java:71)
\t\t... 3 more
\tCaused by: java.lang.IllegalStateException: closed twice
\t\t... 4 more
Caused by: org.apache.flink.runtime.JobException: Recovery is suppressed by NoRestartBackoffTimeStrategy
\tat org.apache.flink.runtime.executiongraph.failover.ExecutionFailureHandler.handleFailure(X.java:219)
\t... 5 more
Caused by: {deepest}
\tat org.apache.beam.runners.fnexecution.control.SingleEnvironmentInstanceJobBundleFactory.<init>(S.java:57)
\tat org.apache.beam.vendor.grpc.v1p69p0.io.grpc.Status$2.run(Unknown Source)
\t... 1 more
"""

REFUSED = """java.util.concurrent.CompletionException: org.apache.flink.shaded.netty4.io.netty.channel.AbstractChannel$\
AnnotatedConnectException: finishConnect(..) failed: Connection refused: localhost/127.0.0.1:8081
\tat java.base/java.util.concurrent.CompletableFuture.encodeThrowable(CompletableFuture.java:332)
Caused by: org.apache.flink.shaded.netty4.io.netty.channel.AbstractChannel$\
AnnotatedConnectException: finishConnect(..) failed: Connection refused: localhost/127.0.0.1:8081
Caused by: java.net.ConnectException: finishConnect(..) failed: Connection refused
\tat org.apache.flink.shaded.netty4.io.netty.channel.unix.Errors.newConnectException0(Errors.java:166)
\t... 1 more
"""

RPC = """<_MultiThreadedRendezvous of RPC that terminated with:
\tstatus = StatusCode.{status}
\tdetails = "{details}"
\tdebug_error_string = "UNKNOWN:Error received from peer  {{grpc_status:14, grpc_message:"something \\"else\\""}}"
>"""

DENIED = """HttpError accessing <https://dataflow.googleapis.com/v1b3/projects/p/jobs?alt=json>: response: \
<{'vary': 'Origin', 'status': '403', 'content-length': '150'}>, content <{
  "error": {
    "code": 403,
    "message": "Could not create workflow; user does not have write access to project: \\"p\\"",
    "status": "PERMISSION_DENIED"
  }
}
>"""


@pytest.mark.parametrize(
    ("deepest", "cause"),
    [
        ("java.net.ConnectException: Connection refused", "Connection refused"),
        (
            "java.io.IOException: Insufficient number of network buffers: required 512, but only 128 available.",
            "Insufficient number of network buffers: required 512, but only 128 available.",
        ),
        ("java.io.IOException: a message\nof two lines", "a message of two lines"),
        ("java.net.UnknownHostException: flink-jobmanager", "UnknownHostException: flink-jobmanager"),
        ("java.lang.OutOfMemoryError: Java heap space", "OutOfMemoryError: Java heap space"),
        (
            "java.util.concurrent.TimeoutException",
            "Recovery is suppressed by NoRestartBackoffTimeStrategy (TimeoutException)",
        ),
        (f"java.lang.RuntimeException: Error received from SDK harness for instruction 4: {WORKER}", WORKERS_CAUSE),
    ],
)
def test_of_a_java_stack_trace_the_deepest_cause_is_told(deepest, cause):
    trace = UBER_JAR.replace("{deepest}", deepest)
    assert cause_of(trace) == cause
    assert cause_of(trace.replace("\n", "\r\n")) == cause
    assert cause_of(f"Pipeline BeamApp-root-1 failed in state FAILED: {trace}") == cause
    escaped = trace.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace('"', '\\"')
    assert cause_of(RPC.format(status="INTERNAL", details=escaped)) == cause


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (REFUSED, "finishConnect(..) failed: Connection refused: localhost/127.0.0.1:8081"),  # the one with the address
        ("java.lang.IllegalStateException: No pool\n\tat a.B.c(B.java:1)\n\t... 1 more", "No pool"),
        (WORKER, WORKERS_CAUSE),
        (f"{WORKER[: WORKER.rindex('ValueError')]}ot_core.errors.UserError: vae x: not found", "vae x: not found"),
        (f"bundle inst002 stage-001 failed:{WORKER}", WORKERS_CAUSE),  # as Prism says it
        (f"Dataflow pipeline failed. State: FAILED, Error:\n{WORKER}", WORKERS_CAUSE),
        (
            "Dataflow pipeline failed. State: FAILED, Error:\nWorkflow failed. Causes: S01:Create+Write failed., The "
            "job failed because a work item has failed 4 times. Root cause: The worker lost contact with the service.",
            "The worker lost contact with the service.",
        ),
        (
            "Workflow failed. Causes: Project p has insufficient quota(s): GPUS_ALL_REGIONS.",
            "Project p has insufficient quota(s): GPUS_ALL_REGIONS.",
        ),
        (
            RPC.format(status="UNAVAILABLE", details="failed to connect to all addresses; Connection refused (111)"),
            "failed to connect to all addresses; Connection refused (111)",
        ),
        (RPC.format(status="DEADLINE_EXCEEDED", details=""), "DEADLINE_EXCEEDED"),
        (
            f"Traceback (most recent call last):\n  File 'x', line 1, in f\ngrpc._channel._InactiveRpcError: "
            f"{RPC.format(status='UNAVAILABLE', details='Socket closed')}",
            "Socket closed",
        ),
        (
            "HTTPConnectionPool(host='flink', port=8081): Max retries exceeded with url: /v1/config (Caused by "
            "NewConnectionError(\"HTTPConnection(host='flink', port=8081): Failed to establish a new connection: [Err"
            'no 111] Connection refused"))',
            "flink:8081: Failed to establish a new connection: [Errno 111] Connection refused",
        ),
        (
            "HTTPSConnectionPool(host='flink', port=443): Max retries exceeded with url: /jars/upload (Caused by "
            "ResponseError('too many 502 error responses'))",
            "flink:443: too many 502 error responses",
        ),
        (DENIED, 'Could not create workflow; user does not have write access to project: "p"'),
        (
            '<HttpError 404 when requesting https://storage.googleapis.com/x?alt=json returned "The bucket is missing."'
            ". Details: \"[{'message': 'other'}]\">",
            "The bucket is missing.",
        ),
        ('{"error": "invalid_grant", "error_description": "Token has been revoked."}', "Token has been revoked."),
        ("panic: no such stage\n\ngoroutine 1 [running]:\nmain.main()\n\t/src/main.go:3 +0x1d", "no such stage"),
        ("no disk\n  for 0 [while running 'Write']", "no disk for 0 [while running 'Write']"),
        ("CUDA out of memory. Tried to allocate 2 GiB.", "CUDA out of memory. Tried to allocate 2 GiB."),
        ("", ""),
    ],
)
def test_the_cause_of_any_engine_or_service_is_told(text, cause):
    assert cause_of(text) == cause


def test_a_cause_is_one_line_of_bounded_length():
    told = cause_of("word\n" * 10_000)
    assert "\n" not in told
    assert len(told) <= 400
    assert told.endswith("...")
