"""deploy/airflow: the Variables here, and under a real Airflow, which `make test-airflow` installs, the DAGs."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from pipelines import fit, options, transport
from tests.deploy.test_flink import _flink, _FlinkRest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/airflow"
README = (FOLDER / "README.md").read_text()
VARIABLES = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in ("local", "flink", "dataflow")}
RUNNERS = {"local": "FnApiRunner", "flink": "FlinkRunner", "dataflow": "DataflowRunner"}
needs_airflow = pytest.mark.skipif(
    "DOT_AIRFLOW" not in os.environ, reason="Airflow is installed and tested by make test-airflow"
)


@pytest.mark.parametrize("name", VARIABLES)
def test_the_flags_of_the_variables_are_ours_or_beams(name):
    for variable, job in (("dot_nightly", transport), ("dot_refit", fit)):
        given = VARIABLES[name][variable]
        assert set(given) - {"dataflow"} == {"runner", "flags", "max_failure_fraction", "latest"}
        words = ["--map=m.safetensors"] if variable == "dot_refit" else []
        for flag, value in given["flags"].items():
            values = value if isinstance(value, list) else [value]
            words += [f"--{flag}" if one is True else f"--{flag}={one}" for one in values]
        args, _ = options.parse(job.parser(), [f"--runner={given['runner']}", *words])
        assert given["latest"].rpartition("/")[0] in getattr(args, "output", given["latest"])
    assert VARIABLES[name]["dot_nightly"]["runner"] == RUNNERS[name]


def test_the_page_names_the_airflow_that_is_installed():
    (version,) = re.findall(r"^apache-airflow==(\S+)$", (FOLDER / "requirements.txt").read_text(), re.M)
    assert f"installs Airflow {version} into" in README
    pins = (FOLDER / "constraints.txt").read_text().splitlines()
    assert all(line in pins for line in (FOLDER / "requirements.txt").read_text().splitlines())


class Airflow:
    """An Airflow with a home of its own, SQLite, and the folder of our DAGs."""

    def __init__(self, home: Path) -> None:
        self.bin = Path(os.environ["DOT_AIRFLOW"])
        self.environment = {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(FOLDER),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "DOT_PYTHON": sys.executable,
        }
        self.run("airflow db migrate")

    def run(self, line: str, code: int = 0) -> str:
        """What a command printed; line is as on the page."""
        program, *words = shlex.split(line)
        command = [self.bin / program, *words]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, text=True, capture_output=True, timeout=280)
        assert done.returncode == code, f"{line}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
        return done.stderr + done.stdout

    def python(self, program: str) -> object:
        """The JSON that a program printed last."""
        return json.loads(self.run(f"python -c {shlex.quote(program)}").strip().splitlines()[-1])


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    return Airflow(tmp_path_factory.mktemp("airflow"))


@needs_airflow
def test_the_dags_are_imported_without_an_error(airflow):
    program = (
        "import json\n"
        "from airflow.dag_processing.dagbag import DagBag\n"
        f"bag = DagBag({str(FOLDER)!r})\n"
        "tasks = {name: list(dag.task_dict) for name, dag in bag.dags.items()}\n"
        "print(json.dumps([dict(bag.import_errors), tasks]))\n"
    )
    errors, tasks = airflow.python(program)
    assert errors == {}
    assert {name: set(found) for name, found in tasks.items()} == {
        "dot_nightly": {"settings", "what_is_new", "anything_new", "transport", "check", "publish"},
        "dot_refit": {"settings", "fit", "check", "publish"},
    }


@needs_airflow
@pytest.mark.parametrize("name", VARIABLES)
def test_the_operators_command_lines_are_what_the_jobs_take(airflow, name):
    program = (
        "import json, sys\n"
        f"sys.path.insert(0, {str(FOLDER)!r})\n"
        "import dot\n"
        "from airflow.providers.apache.beam.hooks.beam import beam_options_to_args\n"
        "from airflow.providers.google.cloud.operators.dataflow import DataflowConfiguration\n"
        f"variables = json.load(open({str(FOLDER / name)!r} + '.json'))\n"
        "night, new = ({**given, 'run': '2026'} for given in variables.values())\n"
        "night, new = dot.nightly(night), dot.refit(new)\n"
        "DataflowConfiguration(**night.get('dataflow', {}))\n"
        "flags = (night['plan'], night['transport'], new['fit'])\n"
        "print(json.dumps([beam_options_to_args(given) for given in flags]))\n"
    )
    plan, whole, refit = airflow.python(program)
    given = VARIABLES[name]["dot_nightly"]
    args, beam_options = options.parse(transport.parser(), [f"--runner={given['runner']}", *whole])
    assert args.resume
    assert args.alpha == given["flags"].get("alpha", [0.0])
    assert args.summary == f"{args.output.rstrip('/')}/reports/2026.json"
    assert beam_options.get_all_options()["runner"] == RUNNERS[name]
    assert plan == [*whole, "--plan"]
    args, _ = options.parse(fit.parser(), refit)
    assert args.map == VARIABLES[name]["dot_refit"]["latest"].replace("latest.json", "2026.safetensors")


@pytest.fixture
def archive(tmp_path, photo, vae):
    """Sixty images, a map, and the page's local Variables moved here, as a file."""
    for index in range(60):
        _put(tmp_path, photo, index)
    for index in range(3):
        _put(tmp_path, photo, index, side="natural")
    sides = ["--target", str(tmp_path / "natural"), "--source", str(tmp_path / "restored"), "--max_images", "3"]
    assert fit.main([*sides, "--map", str(tmp_path / "maps/run7.safetensors"), "--vae", vae]) == 0
    moved = json.loads((FOLDER / "local.json").read_text().replace("/archive/", f"{tmp_path}/"))
    moved["dot_nightly"]["flags"].update(direct_num_workers=1, direct_running_mode="in_memory")
    moved["dot_refit"]["flags"]["vae"] = vae
    (tmp_path / "variables.json").write_text(json.dumps(moved))
    return tmp_path


def _put(root, photo, index, seed=0, side="restored"):
    (root / side).mkdir(exist_ok=True)
    Image.fromarray(photo(24, 32, seed=100 * seed + index)).save(root / side / f"{index}.png")


def _pages_command(beginning: str) -> str:
    (line,) = [line.strip() for line in README.splitlines() if line.startswith(f"    {beginning}")]
    return line


def _latest(root):
    return json.loads((root / "latest.json").read_text())


def _counts(report):
    return {name: n for name, n in json.loads(Path(report).read_text())["images"].items() if n and name != "read"}


@needs_airflow
@pytest.mark.timeout(900)
def test_nights_do_only_what_is_new_or_changed_and_say_so(airflow, archive, photo):
    output = archive / "enhanced/run7"
    command = _pages_command("airflow variables").replace("deploy/airflow/local.json", str(archive / "variables.json"))
    airflow.run(command)
    night = _pages_command("airflow dags test dot_nightly")

    airflow.run(night)
    latest = _latest(archive / "enhanced")
    assert _counts(latest["report"]) == {"listed": 60, "new": 60, "written": 60}
    assert (latest["output"], latest["map"]) == (str(output), str(archive / "maps/run7.safetensors"))
    first = {path.name: path.stat().st_mtime_ns for path in (output / "images").iterdir()}
    assert len(first) == 60

    time.sleep(0.05)
    for index in range(60, 75):
        _put(archive, photo, index)
    for index in range(5):
        _put(archive, photo, index, seed=1)
    airflow.run(night)
    report = _latest(archive / "enhanced")["report"]
    assert _counts(report) == {"listed": 75, "new": 15, "changed": 5, "skipped": 55, "written": 20}
    second = {path.name: path.stat().st_mtime_ns for path in (output / "images").iterdir()}
    assert len(second) == 75
    assert sum(first.get(name) != written for name, written in second.items()) == 20

    airflow.run(night)
    third = _latest(archive / "enhanced")
    assert _counts(third["report"]) == {"listed": 75, "skipped": 75}
    assert {path.name: path.stat().st_mtime_ns for path in (output / "images").iterdir()} == second

    for index in range(3):
        (archive / f"restored/bad{index}.png").write_text("no image")
    printed = airflow.run(night, code=1)
    assert "3 of 3 images failed ({'not_an_image': 3}), 0 when last published" in printed
    assert _latest(archive / "enhanced") == third, "what failed the check is not published"
    reports = sorted((output / "reports").iterdir())
    assert len(reports) == 4
    assert _counts(reports[-1]) == {"listed": 78, "new": 3, "skipped": 75, "failed": 3}


@needs_airflow
@pytest.mark.timeout(600)
def test_a_refit_puts_a_new_map_beside_the_old_one(airflow, archive):
    old = (archive / "maps/run7.safetensors").read_bytes()
    airflow.run(f"airflow variables import {archive / 'variables.json'}")
    airflow.run(_pages_command("airflow dags test dot_refit"))
    latest = _latest(archive / "maps")
    assert Path(latest["map"]).is_file()
    assert Path(latest["map"]).parent == archive / "maps"
    assert latest["images"]["encoded"] == 63
    assert (archive / "maps/run7.safetensors").read_bytes() == old


@needs_airflow
@pytest.mark.timeout(600)
def test_with_flinks_variables_the_same_dag_submits_to_flink(airflow, archive):
    """To a stand-in that ends each job at once, with nothing counted: so there is nothing to transport."""
    moved = json.loads((FOLDER / "flink.json").read_text().replace('"gs://', f'"{archive}/'))
    jar = archive / "runner.jar"
    with zipfile.ZipFile(jar, "w") as archived:  # in place of Beam's runner, to which the graph is added
        archived.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")
    with _flink() as master:
        moved["dot_nightly"]["flags"].update(flink_master=master, flink_job_server_jar=str(jar))
        (archive / "flink.json").write_text(json.dumps(moved))
        airflow.run(f"airflow variables import {archive / 'flink.json'}")
        (archive / "enhanced").mkdir()
        airflow.run(_pages_command("airflow dags test dot_nightly"))
    with zipfile.ZipFile(io.BytesIO(_FlinkRest.jar)) as archived:
        graph = archived.read("BEAM-PIPELINE/pipeline/pipeline.json").decode()
    assert "SkipDone" in graph
    assert "beam:env:external:v1" in graph
    assert not (archive / "enhanced/run7/images").exists()
