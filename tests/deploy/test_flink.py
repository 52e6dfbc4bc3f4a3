"""All of deploy/flink that runs without Flink and Kubernetes: the manifests, and what the job submits."""

import contextlib
import http.server
import io
import json
import re
import shlex
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import jsonschema
import kubernetes_validate
import pytest
import yaml
from apache_beam.options.pipeline_options import FlinkRunnerOptions
from apache_beam.portability.api import beam_runner_api_pb2
from google.protobuf import json_format
from PIL import Image

from ot_core import storage
from pipelines import fit, options, transport

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/flink"
CLUSTER = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
JOB = yaml.safe_load((FOLDER / "job.yaml").read_text())
POD = JOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]
(SUBMIT,) = POD["containers"]
NEEDED = ["--input=in", "--map=map.safetensors", "--output=out"]


def _object(**properties: object) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_TEXT = {"type": "string"}
_RESOURCE = _object(cpu={"type": "number"}, memory={"type": "string", "pattern": r"^\d+[mg]$"})
#: The options of Flink 1.20 that cluster.yaml sets; Flink ignores a name that it doesn't know.
_FLINK_OPTIONS = _object(
    **{
        "taskmanager.numberOfTaskSlots": {"type": "string", "pattern": r"^\d+$"},
        "restart-strategy.type": {"enum": ["exponential-delay", "failure-rate", "fixed-delay"]},
        "restart-strategy.exponential-delay.attempts-before-reset-backoff": {"type": "string", "pattern": r"^\d+$"},
    }
)
#: The part of the operator's schema that cluster.yaml uses, written after its published form.
FLINK_DEPLOYMENT = _object(
    apiVersion={"const": "flink.apache.org/v1beta1"},
    kind={"const": "FlinkDeployment"},
    metadata=_object(name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}),
    spec=_object(
        image=_TEXT,
        flinkVersion={"type": "string", "pattern": r"^v\d+_\d+$"},
        serviceAccount=_TEXT,
        flinkConfiguration=_FLINK_OPTIONS,
        jobManager=_object(resource=_RESOURCE),
        taskManager=_object(resource=_RESOURCE, podTemplate={"type": "object"}),
    ),
)


def _side_car() -> dict:
    containers = CLUSTER["spec"]["taskManager"]["podTemplate"]["spec"]["containers"]
    main, side_car = containers
    assert main == {"name": "flink-main-container"}, "the operator merges its own container by this name"
    return side_car


def _strictly_valid(manifest: dict) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_manifests_are_what_kubernetes_takes():
    _strictly_valid(JOB)
    _strictly_valid(CLUSTER["spec"]["taskManager"]["podTemplate"])
    jsonschema.validate(CLUSTER, FLINK_DEPLOYMENT)


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "taskmanager"),
        ("spec", "taskManager", "resource", "gpu"),
        ("spec", "flinkConfiguration", "restart-strategy.kind"),
        ("spac",),
    ],
)
def test_a_misspelt_field_of_the_cluster_is_noticed(path):
    wrong = json.loads(json.dumps(CLUSTER))
    inner = wrong
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, FLINK_DEPLOYMENT)


def test_the_two_files_and_the_image_agree():
    args, beam_options = options.parse(transport.parser(), SUBMIT["args"])
    given = beam_options.get_all_options()
    side_car = _side_car()
    assert given["environment_config"] == f"localhost:{side_car['ports'][0]['containerPort']}"
    assert side_car["ports"][0]["containerPort"] == 50000, "Beam's boot program starts its worker pool there"
    assert side_car["args"] == ["--worker_pool"]
    assert "command" not in side_car, "the image's entry point is Beam's boot program"
    assert side_car["image"] == SUBMIT["image"], "the graph is unpickled with the packages that pickled it"
    assert given["flink_master"] == f"http://{CLUSTER['metadata']['name']}-rest:8081"
    version = CLUSTER["spec"]["flinkVersion"].removeprefix("v").replace("_", ".")
    assert version in FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
    assert CLUSTER["spec"]["image"].startswith(f"flink:{version}-")
    slots = int(CLUSTER["spec"]["flinkConfiguration"]["taskmanager.numberOfTaskSlots"])
    assert given["parallelism"] % slots == 0
    readme = " ".join((FOLDER / "README.md").read_text().split())
    assert f"{given['parallelism']} with two slots each makes four task managers" in readme
    assert (slots, given["parallelism"] // slots) == (2, 4)
    assert args.resume, "the pod runs every night"
    assert JOB["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert POD["serviceAccountName"] == CLUSTER["spec"]["serviceAccount"]
    entry_points = re.findall(r'"(dot-\w+)=', (ROOT / "setup.py").read_text())
    assert SUBMIT["command"][0] in entry_points
    assert 'ENTRYPOINT ["/opt/apache/beam/boot"]' in (ROOT / "deploy/dataflow/Dockerfile").read_text()


def test_a_lost_worker_or_task_manager_does_not_end_the_job():
    """One lost task manager was four failures, and both cost less than the attempts that there are."""
    settings = CLUSTER["spec"]["flinkConfiguration"]
    assert settings["restart-strategy.type"] == "exponential-delay"
    assert int(settings["restart-strategy.exponential-delay.attempts-before-reset-backoff"]) >= 2 * 4


def test_every_task_manager_has_a_worker_pool_of_its_own():
    _, beam_options = options.parse(transport.parser(), SUBMIT["args"])
    host, _, _ = beam_options.get_all_options()["environment_config"].partition(":")
    assert host == "localhost", "a pool in the pod of the task manager that asks for workers"


def test_the_readme_tells_flink_how_many_slots_to_use():
    (row,) = [
        line for line in (ROOT / "docs/how-to/engines.md").read_text().splitlines() if "--runner FlinkRunner" in line
    ]
    (flags,) = re.findall(r"`(--runner FlinkRunner[^`]*)`", row)
    given = options.parse(transport.parser(), [*shlex.split(flags.replace("SLOTS", "3")), *NEEDED])[1].get_all_options()
    assert given["parallelism"] == 3
    assert {argument.partition("=")[0] for argument in SUBMIT["args"]} >= set(re.findall(r"--\w+", flags))


def test_the_commands_of_the_page_name_files_and_jobs_that_exist():
    readme = (FOLDER / "README.md").read_text()
    files = re.findall(r"(?:-f|--file) (\S+)", readme)
    assert len(files) == 3
    assert all((ROOT / file).is_file() for file in files)
    assert f"--from=cronjob/{JOB['metadata']['name']} " in readme
    (image,) = re.findall(r"--tag (\S+)", readme)
    assert image == SUBMIT["image"]


class _FlinkRest(http.server.BaseHTTPRequestHandler):
    """As much of Flink's REST interface as a submission uses; the job ends at once. Keeps the jar."""

    jar = b""
    answers: ClassVar = {
        "/v1/jars/upload": {"filename": "/tmp/flink-web/1_beam.jar"},
        "/v1/jars/1_beam.jar/run": {"jobid": "1"},
        "/v1/jobs/1/execution-result": {"status": {"id": "COMPLETED"}},
        "/v1/jobs/1": {"state": "FINISHED"},
        "/v1/jobs/1/exceptions": {"all-exceptions": []},
        "/v1/jobs/1/accumulators": {"user-task-accumulators": [{"name": "__metricscontainers", "value": "{}"}]},
        "/v1/jars/1_beam.jar": {},
    }

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/v1/jars/upload":
            type(self).jar = body[body.index(b"\r\n\r\n") + 4 : body.rindex(b"\r\n--")]
        data = json.dumps(self.answers.get(self.path, {})).encode()
        self.send_response(200 if self.path in self.answers else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def _flink() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _FlinkRest)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_pods_command_submits_a_graph_for_the_worker_pool(tmp_path, photo, vae):
    for index in range(2):
        for side in ("restored", "natural"):
            file = io.BytesIO()
            Image.fromarray(photo(40, 48, seed=index)).save(file, "PNG")
            storage.write_bytes(str(tmp_path / side / f"{index}.png"), file.getvalue())
    map_url, jar = str(tmp_path / "map.safetensors"), tmp_path / "runner.jar"
    sides = ["--source", str(tmp_path / "restored"), "--target", str(tmp_path / "natural")]
    assert fit.main([*sides, "--map", map_url, "--vae", vae]) == 0
    with zipfile.ZipFile(jar, "w") as archive:  # in place of Beam's runner, to which the graph is added
        archive.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")
    moved = {"--input": str(tmp_path / "restored"), "--map": map_url, "--output": str(tmp_path / "out")}
    with _flink() as master:
        moved["--flink_master"] = master
        names = [argument.partition("=")[0] for argument in SUBMIT["args"]]
        assert set(moved) <= set(names)
        kept = [given for name, given in zip(names, SUBMIT["args"], strict=True) if name not in moved]
        command = [*kept, *(f"{name}={value}" for name, value in moved.items())]
        assert transport.main([*command, f"--flink_job_server_jar={jar}"]) == 0

    with zipfile.ZipFile(io.BytesIO(_FlinkRest.jar)) as archive:
        graph = json_format.Parse(archive.read("BEAM-PIPELINE/pipeline/pipeline.json"), beam_runner_api_pb2.Pipeline())
        submitted = json.loads(archive.read("BEAM-PIPELINE/pipeline/pipeline-options.json"))
    assert int(submitted["beam:option:parallelism:v1"]) == 8
    used = {
        graph.components.environments[t.environment_id].urn
        for t in graph.components.transforms.values()
        if t.environment_id
    }
    assert used == {"beam:env:external:v1"}
    for environment in graph.components.environments.values():
        if environment.urn in used:
            payload = beam_runner_api_pb2.ExternalPayload.FromString(environment.payload)
            assert payload.endpoint.url == "localhost:50000"
    labels = {transform.unique_name for transform in graph.components.transforms.values()}
    assert {"ListImages", "SkipDone", "TransportImages", "WriteManifest", "WriteFailures"} <= labels
