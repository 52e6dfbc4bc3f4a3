"""All of deploy/dataflow that runs without an account: the graphs that are submitted, the metadata, the image."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
from apache_beam.portability.api import beam_runner_api_pb2
from google.cloud.dataflow_v1beta3.types import LaunchFlexTemplateRequest, TemplateMetadata
from google.protobuf import json_format
from PIL import Image

from deploy.dataflow import launch_template, metadata
from ot_core import UserError, storage
from pipelines import fit, options, transport

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/dataflow"
README = (FOLDER / "README.md").read_text()
ACCELERATOR = "beam:resources:accelerator:v1"
HINT = "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver"


def _command(beginning: str) -> list[str]:
    lines = README.replace("\\\n    ", "").splitlines()
    (line,) = [line for line in lines if line.startswith(f"    {beginning} ")]
    return shlex.split(line)


def _flag(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def _parameters_of_launch() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in _flag(_command("gcloud dataflow"), "--parameters").split(","))


def _body() -> dict:
    return json.loads((FOLDER / "nightly.json").read_text())["launchParameter"]


@pytest.fixture(scope="module")
def bucket(gcs, photo, vae):
    """Images, and a map of them, in the fake Cloud Storage."""
    root = f"{gcs}/{uuid.uuid4().hex[:8]}"
    for index in range(2):
        for side in ("restored", "natural"):
            file = io.BytesIO()
            Image.fromarray(photo(40, 48, seed=index)).save(file, "PNG")
            storage.write_bytes(f"{root}/{side}/{index}.png", file.getvalue())
    sides = ["--source", f"{root}/restored", "--target", f"{root}/natural"]
    assert fit.main([*sides, "--map", f"{root}/run7.safetensors", "--vae", vae]) == 0
    return root


def _service_flags(root: str) -> list[str]:
    """What Dataflow's launcher adds, but for no_auth: the fake Cloud Storage asks for no credentials."""
    places = {"template": f"{root}/job.json", "staging": f"{root}/staging", "temp": f"{root}/temp"}
    flags = [f"--{name}_location={url}" for name, url in places.items()]
    return [*flags, "--runner=DataflowRunner", "--region=europe-west4", "--no_auth"]


def _staged(root: str) -> tuple[dict, beam_runner_api_pb2.Pipeline]:
    """The job that the service would be sent, and the graph that it names."""
    job = json.loads(storage.read_bytes(f"{root}/job.json"))
    graph = storage.read_bytes(job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"])
    return job, beam_runner_api_pb2.Pipeline.FromString(graph)


def _launch(monkeypatch, root: str, job: str, parameters: dict[str, str], flags: list[str]) -> int:
    """Starts the image's program as the launcher does, with parameters moved from the example's buckets to ours."""
    urls = {"input": "restored", "source": "restored", "target": "natural", "map": "run7.safetensors", "output": "out"}
    moved = {name: f"{root}/{urls[name]}" if name in urls else value for name, value in parameters.items()}
    monkeypatch.setenv("DOT_JOB", job)
    given = [f"--{name}={value}" for name, value in {"project": "my-project", **moved}.items()]
    monkeypatch.setattr(sys, "argv", ["launch_template.py", *given, *flags, *_service_flags(root)])
    return launch_template.main()


def _hinted(graph: beam_runner_api_pb2.Pipeline) -> set[str]:
    """Outermost transforms whose workers have the GPU."""
    hinted = set()
    for transform in graph.components.transforms.values():
        environment = graph.components.environments[transform.environment_id] if transform.environment_id else None
        if environment and ACCELERATOR in environment.resource_hints:
            assert environment.resource_hints[ACCELERATOR] == HINT.encode()
            hinted.add(transform.unique_name.split("/")[0])
    return hinted


def _without_hint_below(graph: beam_runner_api_pb2.Pipeline, composite: str) -> list[str]:
    return [
        transform.unique_name
        for transform in graph.components.transforms.values()
        if transform.unique_name.startswith(f"{composite}/")
        and transform.environment_id
        and ACCELERATOR not in graph.components.environments[transform.environment_id].resource_hints
    ]


def _steps(graph: beam_runner_api_pb2.Pipeline) -> set[str]:
    """Labels of the outermost transforms, no label of ours having what changes with a rewritten line (Beam's may)."""
    transforms = graph.components.transforms
    (root,) = graph.root_transform_ids
    below = {transforms[name].unique_name for name in transforms if name != root}
    assert not [label for label in below if re.search(r"<(?!lambda at core\.py)|AppliedPTransform", label)]
    return {transforms[name].unique_name for name in transforms[root].subtransforms}


def test_the_launch_command_stages_a_job_whose_model_alone_gets_gpus(bucket, monkeypatch, capsys):
    command, parameters = _command("gcloud dataflow"), _parameters_of_launch()
    flags = [
        f"--machine_type={_flag(command, '--worker-machine-type')}",
        f"--max_num_workers={_flag(command, '--max-workers')}",
        f"--experiments={_flag(command, '--additional-experiments')}",
        f"--job_name={command[4]}",
    ]
    assert _launch(monkeypatch, bucket, "transport", parameters, flags) == 0
    assert "job graph" in capsys.readouterr().out
    job, graph = _staged(bucket)
    environment, (pool,) = job["environment"], job["environment"]["workerPools"]
    assert job["name"] == "dot-transport"
    assert job["type"] == "JOB_TYPE_BATCH"
    assert pool["machineType"] == "n2-standard-4"
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 100
    assert {image["containerImage"] for image in pool["sdkHarnessContainerImages"]} == {
        parameters["sdk_container_image"]
    }
    assert "no_use_multiple_sdk_containers" in environment["experiments"]
    assert "use_multiple_sdk_containers" not in environment["experiments"]
    assert not environment.get("serviceOptions")
    assert _hinted(graph) == {"TransportImages"}
    assert not _without_hint_below(graph, "TransportImages")
    ends = {"WriteManifest", "WriteDrift", "FlattenFailures", "WriteFailures"}
    assert _steps(graph) == {"ListImages", "SkipDone", "TransportImages", "FlattenRecords", "ReplaceOutdated", *ends}


def test_the_nightly_body_is_what_the_api_takes_and_stages_the_same_graph(bucket, monkeypatch):
    text = (FOLDER / "nightly.json").read_text()
    request = json_format.Parse(text, LaunchFlexTemplateRequest.pb()())
    assert request.launch_parameter.environment.max_workers == 100
    body = _body()
    assert body["parameters"] == _parameters_of_launch()
    assert body["containerSpecGcsPath"] == _flag(_command("gcloud dataflow"), "--template-file-gcs-location")
    command = _command("gcloud scheduler")
    assert ROOT / _flag(command, "--message-body-from-file") == FOLDER / "nightly.json"
    assert _flag(command, "--uri").endswith("/flexTemplates:launch")
    assert body["environment"]["machineType"] == _flag(_command("gcloud dataflow"), "--worker-machine-type")
    assert body["environment"]["additionalExperiments"] == ["no_use_multiple_sdk_containers"]
    assert _launch(monkeypatch, bucket, "transport", body["parameters"], [f"--job_name={body['jobName']}"]) == 0
    job, graph = _staged(bucket)
    assert job["name"] == "dot-transport-nightly"
    assert "SkipDone" in {transform.unique_name for transform in graph.components.transforms.values()}


def test_fit_has_its_hint_on_the_statistics_alone(bucket, monkeypatch, vae):
    parameters = {"source": "", "target": "", "map": "", "paired": "true", "vae": vae, "accelerator": HINT}
    assert _launch(monkeypatch, bucket, "fit", parameters, ["--job_name=dot-fit"]) == 0
    _, graph = _staged(bucket)
    assert _hinted(graph) == {"LatentStatistics"}
    assert not _without_hint_below(graph, "LatentStatistics")
    ends = {"WriteTransportMap", "FlattenFailures", "WriteFailures"}
    assert _steps(graph) == {"ListImages", "SplitSides", "LatentStatistics", "KeepBackPairs", "FitTransportMap", *ends}


def test_without_accelerator_one_pool_has_the_gpus_and_no_transform_a_hint(bucket, monkeypatch):
    service = re.search(r"`dataflow_service_options=(worker_accelerator=\S+)`", README)
    parameters = {**_parameters_of_launch(), "dataflow_service_options": service[1]}
    del parameters["accelerator"]
    assert _launch(monkeypatch, bucket, "transport", parameters, ["--machine_type=g2-standard-8"]) == 0
    job, graph = _staged(bucket)
    assert job["environment"]["serviceOptions"] == [service[1]]
    assert job["environment"]["workerPools"][0]["machineType"] == "g2-standard-8"
    assert _hinted(graph) == set()


def test_both_kinds_of_gpu_at_once_are_refused_in_one_line(bucket, monkeypatch, capsys):
    parameters = {**_parameters_of_launch(), "dataflow_service_options": "worker_accelerator=type:nvidia-l4;count:1"}
    assert _launch(monkeypatch, bucket, "transport", parameters, []) == 2
    assert re.fullmatch(r"dot-transport: error: --accelerator: .*worker_accelerator\n", capsys.readouterr().err)


def test_a_template_has_no_summary(bucket, monkeypatch, capsys):
    """Its launcher is gone before the job ends."""
    parameters = {**_parameters_of_launch(), "summary": f"{bucket}/summary.json"}
    assert _launch(monkeypatch, bucket, "transport", parameters, []) == 2
    assert "--summary: leave it out with a template" in capsys.readouterr().err
    assert all('"summary"' not in text for text in metadata.files().values())


def test_the_command_without_a_template_asks_for_the_same():
    args, beam_options = options.parse(transport.parser(), _command("dot-transport")[1:])
    given = beam_options.get_all_options()
    assert args.accelerator == HINT
    assert given["experiments"] == ["no_use_multiple_sdk_containers"]
    assert given["sdk_container_image"] == _parameters_of_launch()["sdk_container_image"]
    assert given["machine_type"] == "n2-standard-4"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("flag", [["--accelerator", HINT], ["--device", "cuda"]])
def test_a_worker_without_the_gpu_that_was_asked_for_fails_in_one_line(bucket, tmp_path, capsys, flag):
    """Else a machine with a GPU that torch doesn't see would be paid for, and compute on its CPU."""
    command = ["--input", f"{bucket}/restored", "--map", f"{bucket}/run7.safetensors", "--output", str(tmp_path)]
    assert transport.main([*command, *flag]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"dot-transport: error: device cuda: torch \S+ finds none on .*; give this worker one", told)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (["--resume=true", "--zero_shot=false"], ["--resume"]),
        (["--alpha=-0.25 0 1"], ["--alpha", "-0.25", "0", "1"]),
        (["--input=gs://a/b 'gs://c/d e/**'"], ["--input", "gs://a/b", "gs://c/d e/**"]),
        (["--since=", "--vae="], []),
        (["--map=gs://m?a=b", "--labels=a=b"], ["--map=gs://m?a=b", "--labels=a=b"]),
    ],
)
def test_parameters_become_the_command_line(parameters, expected):
    assert launch_template.command_line(transport.parser(), parameters) == expected


def test_a_switch_is_true_or_false():
    argv = launch_template.command_line(transport.parser(), ["--resume=yes"])
    with pytest.raises(UserError, match="resume"):
        options.parse(transport.parser(), argv)


@pytest.mark.parametrize("path", metadata.files(), ids=lambda path: path.name)
def test_metadata_is_that_of_the_flags_and_what_the_api_takes(path):
    assert path.read_text() == metadata.files()[path], "run python -m deploy.dataflow.metadata"
    found = json_format.Parse(path.read_text(), TemplateMetadata.pb()())
    parser = launch_template.JOBS[path.name.partition(".")[0]].parser()
    required = {parameter.name for parameter in found.parameters if not parameter.is_optional}
    assert required == {action.dest for action in parser._actions if action.required}
    examples = {"TEXT": "gs://a/b", "BOOLEAN": "true", "NUMBER": "1"}
    kinds = TemplateMetadata.pb()().parameters.add().DESCRIPTOR.fields_by_name["param_type"].enum_type.values_by_number
    given = []
    for parameter in found.parameters:
        if parameter.default_value or not parameter.is_optional:
            first = parameter.enum_options[0].value if parameter.enum_options else None
            value = parameter.default_value or first or examples[kinds[parameter.param_type].name]
            assert all(re.fullmatch(regex, value) for regex in parameter.regexes)
            given.append(f"--{parameter.name}={value}")
    args, _ = options.parse(parser, launch_template.command_line(parser, given))
    bare, _ = options.parse(parser, [word for name in sorted(required) for word in (f"--{name}", "gs://a/b")])
    assert args == bare, "a default of the metadata is not the flag's"


def _dockerfile() -> list[list[str]]:
    text = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_dockerfile_passes_its_linter():
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, FOLDER / "Dockerfile"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_image_has_the_beam_that_is_pinned():
    (beam,) = [line[1] for line in _dockerfile() if line[0] == "FROM" and line[-1] == "beam"]
    assert f"apache-beam=={beam.rpartition(':')[2]}\n" in (ROOT / "constraints.txt").read_text()


def test_what_the_dockerfile_does_with_python_works_on_what_it_copies(tmp_path):
    """Its COPY and RUN lines, in a bare environment that borrows the dependencies of this one instead of fetching."""
    context, venv = tmp_path / "opt/dot", tmp_path / "venv"
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin/python"
    (site,) = venv.glob("lib/*/site-packages")
    (site / "borrowed.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"DOT_JOB": "transport"}

    for line in _dockerfile():
        if line[0] == "COPY" and not line[1].startswith("--from"):
            *sources, target = line[1:]
            for source in sources:
                assert any(source == name or source.startswith(f"{name}/") for name in admitted), f"{source}: ignored"
                into = context / target / (Path(source).name if target.endswith("/") else "")
                into.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-rT", ROOT / source, into], check=True)
        elif line[:3] == ["RUN", "pip", "install"] and "--no-deps" in line:
            end = line.index("&&")
            command = [sys.executable, "-m", "pip", "--python", python, *line[2:end], "--no-build-isolation", "--quiet"]
            subprocess.run(command, cwd=context, check=True, env=environment)
        elif line[:3] == ["RUN", "python", "-c"]:
            subprocess.run([python, *line[2:-1], ""], cwd=tmp_path, check=True, env=environment)

    (start,) = [word.split("=")[1] for line in _dockerfile() for word in line if word.startswith("FLEX_TEMPLATE")]
    program = tmp_path / start.lstrip("/")
    command = [python, "-I", program, "--help"]  # -I: not from this checkout, whatever the environment says
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "usage: dot-transport" in shown.stdout, shown.stderr
    assert (site / "pipelines/transport.py").is_file(), "the image's own copy was not installed"


@pytest.mark.parametrize(("restorer", "loads"), [("bicubic:2", True), ("/opt/dot/models/nothing.onnx", False)])
def test_the_image_is_not_built_with_a_restorer_that_cannot_be_loaded(restorer, loads):
    (line,) = [line for line in _dockerfile() if line[:3] == ["RUN", "python", "-c"] and "load_restorer" in line[3]]
    assert line[4:] == ["${RESTORER}"]
    tried = subprocess.run([sys.executable, "-c", line[3], restorer], capture_output=True, cwd=ROOT, timeout=120)
    assert (tried.returncode == 0) is loads


def test_build_makes_both_images_and_templates_of_one_commit(tmp_path):
    """With stand-ins for docker and gcloud that write down how they were called."""
    log = tmp_path / "log"
    for name in ("docker", "gcloud"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n')
        (tmp_path / name).chmod(0o755)
    words = [*_command("deploy/dataflow/build"), "", "/opt/dot/models/swinir.safetensors"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([ROOT / words[0], *words[1:]], check=True, env=environment, cwd=tmp_path)
    lines = log.read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [["docker", "build"], ["docker", "push"], ["gcloud", "dataflow"]] * 2
    for job, (build, push, template) in {"fit": lines[:3], "transport": lines[3:]}.items():
        (image,) = re.findall(rf"{re.escape(words[1])}/{job}:\w{{7,}}", push)
        assert f"--tag {image} ." in build
        assert f"--build-arg JOB={job} " in build
        assert "--build-arg RESTORER=/opt/dot/models/swinir.safetensors " in build
        assert f"{words[2]}/{job}.json --image {image} --sdk-language PYTHON" in template
        assert (ROOT / template.split("--metadata-file ")[1]).is_file()
        assert (ROOT / build.split("--file ")[1].split()[0]).is_file()
