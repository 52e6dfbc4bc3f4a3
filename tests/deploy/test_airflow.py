"""deploy/airflow: the Variables here, and under a real Airflow, which `make airflow` installs, the DAGs."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import fit, options, transport

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/airflow"
README = (FOLDER / "README.md").read_text()
VARIABLES = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in ("local", "flink", "dataflow")}
RUNNERS = {"local": "FnApiRunner", "flink": "FlinkRunner", "dataflow": "DataflowRunner"}
AIRFLOW = Path.home() / ".cache/dot-airflow/bin"
needs_airflow = pytest.mark.skipif(
    not (AIRFLOW.parent / "installed").exists(), reason="no Airflow in ~/.cache/dot-airflow; `make airflow` installs it"
)


@pytest.mark.parametrize("name", VARIABLES)
def test_the_flags_of_the_variables_are_ours_or_beams(name):
    jobs = {"dot_nightly": (transport, ["--map=m", "--output=o"]), "dot_refit": (fit, ["--map=m"])}
    for variable, (job, words) in jobs.items():
        given = VARIABLES[name][variable]
        for flag, value in given["flags"].items():
            values = value if isinstance(value, list) else [value]
            words += [f"--{flag}" if one is True else f"--{flag}={one}" for one in values]
        options.parse(job.parser(), [f"--runner={given['runner']}", *words])
    assert VARIABLES[name]["dot_nightly"]["runner"] == RUNNERS[name]
    assert VARIABLES[name]["dot_nightly"]["maps"] == VARIABLES[name]["dot_refit"]["maps"]


def test_every_setting_of_the_variables_is_on_the_page():
    settings = {name for file in VARIABLES.values() for variable in file.values() for name in variable}
    assert settings == set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))


def test_the_page_names_the_airflow_that_is_installed():
    (version,) = re.findall(r"^apache-airflow==(\S+)$", (FOLDER / "requirements.txt").read_text(), re.MULTILINE)
    assert f"Airflow {version}" in README
    pins = (FOLDER / "constraints.txt").read_text().splitlines()
    assert all(line in pins for line in (FOLDER / "requirements.txt").read_text().splitlines())


def test_beam_does_not_log_the_id_that_would_make_the_operator_leave_before_the_summary():
    assert transport.main([]) == 2
    assert not logging.getLogger("apache_beam.runners.dataflow.internal.apiclient").isEnabledFor(logging.INFO)


class Airflow:
    """An Airflow with a home of its own, SQLite, and the folder of our DAGs."""

    def __init__(self, home: Path) -> None:
        self.database, dags = home / "airflow.db", home / "dags"
        dags.mkdir()
        shutil.copy(FOLDER / "dot.py", dags)
        (dags / "export.py").write_text(re.search(r"((?:^    .*\n|^\n)*^    export\(\)$)", README, re.MULTILINE)[1])
        (dags / "export.py").write_text(textwrap.dedent((dags / "export.py").read_text()))
        self.environment = {
            **os.environ,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(FOLDER / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": "google-cloud-platform://",
            "DOT_PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
        }
        self.run("airflow db migrate")

    def run(self, line: str) -> str:
        """What a command printed; line is as on the page."""
        program, *words = shlex.split(line)
        command = [AIRFLOW / program, *words]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == 0, f"{line}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
        return done.stdout

    def python(self, program: str) -> object:
        """The JSON that a program printed last; it finds our DAGs as the module `dot`."""
        dags = self.environment["AIRFLOW__CORE__DAGS_FOLDER"]
        start = f"import json, os, sys; sys.path.insert(0, {dags!r}); import dot\n"
        return json.loads(self.run(f"python -c {shlex.quote(start + program)}").strip().splitlines()[-1])


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    return Airflow(tmp_path_factory.mktemp("airflow"))


#: In place of our interpreter: notes the command line, and fails.
RECORDER = """#!{python}
import json, sys
if sys.argv[1] == "-c":  # the operator asks for Beam's version
    print("2.77.0")
else:
    open("{notes}", "a").write(json.dumps(sys.argv[1:]) + "\\n")
    sys.exit(3)
"""

IMPORT_AND_EXECUTE = """
import asyncio, types
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowException, TaskDeferred

async def events(trigger):
    return [event async for event in trigger.run()]

def execute(task_id, *job):
    operator, context = dot._job(task_id, *job), {"ti": types.SimpleNamespace(try_number=1)}
    try:
        try:
            return operator.execute(context)
        except TaskDeferred as deferred:
            again = []
            for _ in range(2):  # by a second triggerer, too
                deferred.trigger.marker = os.path.join(NOTES, deferred.trigger.marker.rpartition("/")[2])
                again += asyncio.run(events(deferred.trigger))
            assert len(again) == 2
            refused.append(again[1].payload["message"])
            return getattr(operator, deferred.method_name)(context, again[0].payload)
    except AirflowException as error:
        return str(error)

found, refused = {}, []
for name in ("local", "flink", "dataflow"):
    variables = json.load(open(os.path.join(FOLDER, name + ".json")))
    os.environ.update({"AIRFLOW_VAR_" + key.upper(): json.dumps(value) for key, value in variables.items()})
    bag = DagBag(sys.path[0])
    tasks = {key: sorted(dag.task_dict) for key, dag in bag.dags.items()}
    given = [{"dataflow": {}, "deferrable": False, **value, "run": "2026"} for value in variables.values()]
    night, refit = dot.nightly(given[0], given[0]["maps"] + "/run7.safetensors"), dot.refit(given[1])
    transport = "pipelines.transport"
    plan, whole = ("what_is_new", transport, night, "plan"), ("transport", transport, night, "transport")
    ends = [execute(*job) for job in (plan, whole, ("fit", "pipelines.fit", refit, "fit"))]
    found[name] = dict(bag.import_errors), tasks, ends
grouped = {"flags": {"group_by": "folder:1"}, "maps": "maps", "outputs": "out", "run": "2026"}
found_of_groups = dot.refit(grouped)["fit"], dot.nightly(grouped, dot.refit(grouped)["map"])["transport"]
print(json.dumps([found, refused, found_of_groups]))
"""


@needs_airflow
def test_with_each_file_of_variables_the_dags_are_imported_and_run_the_right_commands(airflow, tmp_path, monkeypatch):
    notes, recorder = tmp_path / "notes", tmp_path / "python"
    recorder.write_text(RECORDER.format(python=sys.executable, notes=notes))
    recorder.chmod(0o755)
    monkeypatch.setitem(airflow.environment, "DOT_PYTHON", str(recorder))
    program = IMPORT_AND_EXECUTE.replace("FOLDER", repr(str(FOLDER))).replace("NOTES", repr(str(tmp_path)))
    found, refused, (fit_groups, transport_groups) = airflow.python(program)
    commands = iter([json.loads(line) for line in notes.read_text().splitlines()])
    for name, (errors, tasks, ends) in found.items():
        assert errors == {}
        checks = ["check", "check_drift", "publish", "settings", "transport", "what_is_new"]
        assert tasks == {
            "dot_nightly": ["announce", "anything_new", *checks],
            "dot_refit": ["announce", "check", "check_map", "fit", "publish", "settings"],
            "export": ["output"],
        }
        assert ends == ["Apache Beam process failed with return code 3"] * 3, "a job that fails fails its task"

        given = VARIABLES[name]["dot_nightly"]
        for plan in (True, False):
            dash_m, module, *flags = next(commands)
            assert (dash_m, module) == ("-m", "pipelines.transport")
            args, beam_options = options.parse(transport.parser(), flags)
            assert (args.resume, args.plan) == (True, plan)
            assert args.alpha == given["flags"].get("alpha")
            assert args.map == f"{given['maps']}/run7.safetensors"
            assert args.output == f"{given['outputs']}/run7", "each map has an output of its own"
            assert args.summary == f"{args.output}/reports/2026.json"
            beams = beam_options.get_all_options()
            assert beams["runner"] == RUNNERS[name]
            if name == "dataflow":
                assert (beams["project"], beams["region"]) == tuple(given["dataflow"].values())
                assert beams["job_name"] == given["flags"]["job_name"]
        _, module, *flags = next(commands)
        args, _ = options.parse(fit.parser(), flags)
        assert (module, args.map) == ("pipelines.fit", f"{given['maps']}/2026.safetensors")
    assert next(commands, None) is None, "none was started twice"
    begun = ["2026.what_is_new.1.begun", "2026.transport.1.begun"]
    advice = "a triggerer that is lost began this job; make sure that it has ended, then clear the task"
    assert refused == [f"{tmp_path / marker}: {advice}" for marker in begun], "of Flink's night alone"
    assert fit_groups["map"] == transport_groups["map"] == "maps/2026/{group}.safetensors"
    assert (transport_groups["output"], transport_groups["summary"]) == ("out/2026", "out/2026/reports/2026.json")


CHECK = """
from airflow.sdk.exceptions import AirflowFailException

def said(check, *given):
    try:
        return check.function(*given)
    except AirflowFailException as error:
        return str(error)

def file(name, **found):
    path = os.path.join(FOLDER, name)
    json.dump(found, open(path, "w"))
    return path

def failed(n, before):
    counts = {"encoded": 0, "written": 100 - n, "failed": n}
    latest = file("latest.json", images={"failed": before})
    return said(dot.check, file("report.json", images=counts, failures={"damaged": n}), 0.1, latest)

found = {"few": failed(10, 0), "many": failed(11, 0), "as before": failed(11, 1)}
for name, verdict, relative in [
    ("near", "unlike", 0.19), ("like", "like", 0.1), ("few", "unknown", 9.0), ("far", "unlike", 0.3),
    ("infinite", "unlike", None),
]:
    inputs = {"verdict": verdict, "relative": relative, "p_value": 0.001}
    found[f"drift {name}"] = said(dot.check_drift, file("drift.json", inputs=inputs), 0.2)
found["none"] = said(dot.check_drift, file("drift.json", inputs=None), 0.2)
found["no drift yet"] = said(dot.check_drift, os.path.join(FOLDER, "no.json"), 0.2)
inputs = {"verdict": "unlike", "relative": 0.3, "p_value": 0.001}
groups = {"canon": {"inputs": {**inputs, "relative": 0.1}}, "sony": {"inputs": inputs}, "few": {"inputs": None}}
found["drift of groups"] = said(dot.check_drift, file("drift.json", inputs=None, groups=groups), 0.2)
for name in ("canon", "{group}"):
    found["noise " + name] = said(dot.check_map, os.path.join(FOLDER, "maps", name + ".safetensors"), 0.0)
print(json.dumps(found))
"""


@needs_airflow
def test_the_checks_fail_for_new_failures_drift_and_noise(airflow, tmp_path, photo, vae):
    for index in range(8):
        _put(tmp_path, photo, index, side=f"restored/{('canon', 'sony')[index % 2]}")
        _put(tmp_path, photo, index, seed=1, side="natural")
    sides = ["--target", str(tmp_path / "natural"), "--source", str(tmp_path / "restored"), "--common_target"]
    maps = ["--group_by", "folder:1", "--map", str(tmp_path / "maps/{group}.safetensors"), "--vae", vae]
    assert fit.main([*sides, *maps]) == 0
    found = airflow.python(CHECK.replace("FOLDER", repr(str(tmp_path))))
    assert (found["few"]["failed"], found["as before"]["failed"]) == (10, 11)
    assert found["many"].startswith(
        "11 of 100 images failed ({'damaged': 11}), 0 when last published: over max_failure_"
    )
    assert [found[f"drift {name}"] for name in ("near", "like", "few")] == [None] * 3
    assert found["none"] is found["no drift yet"] is None
    far = "the images drifted by 0.3 times the map's distance, over max_drift 0.2 (by chance with a probability of "
    assert found["drift far"].startswith(far + "0.001): fit a map")
    assert found["drift infinite"].startswith("the images drifted by infinitely many times the map's distance")
    assert found["drift of groups"].startswith(
        "the images of group sony drifted by 0.3 times the map's distance, over "
    )
    noise = r"[^;]*/{}.safetensors: chance explains \d+% of its distance"
    assert re.match(noise.format("canon") + ", over max_noise 0.0: fit on more images", found["noise canon"])
    both = f"{noise.format('canon')}; {noise.format('sony')}, over max_noise 0.0: fit on more images"
    assert re.match(both, found["noise {group}"])


def _put(root: Path, photo, index: int, seed: int = 0, side: str = "restored") -> None:
    (root / side).mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(24, 32, seed=100 * seed + index)).save(root / side / f"{index}.png")


def _command(beginning: str) -> str:
    """A line of the page."""
    (line,) = [line.strip() for line in README.splitlines() if line.startswith(f"    {beginning}")]
    return line


def _published(folder: Path) -> dict:
    return json.loads((folder / "latest.json").read_text())


def _counts(latest: dict) -> dict[str, int]:
    """Of the report that a night has published, without zeros; every image that is written has been read."""
    report = json.loads(Path(latest["report"]).read_text())
    assert latest["images"] == report["images"]
    assert report["failures"] == {}
    counts = {name: n for name, n in report["images"].items() if n}
    assert counts.pop("read", 0) == counts.get("written", counts.get("encoded", 0))
    return counts


def _files(output: Path) -> dict[str, tuple[int, bytes]]:
    return {path.stem: (path.stat().st_mtime_ns, path.read_bytes()) for path in (output / "images").iterdir()}


def _check_manifest(output: Path, files: dict[str, tuple[int, bytes]]) -> None:
    (manifest,) = output.glob("manifest-*.parquet")
    rows = pq.read_table(manifest).to_pylist()
    assert {row["key"]: row["sha256"] for row in rows} == {
        key: hashlib.sha256(data).hexdigest() for key, (_, data) in files.items()
    }
    assert len(rows) == len(files)


@needs_airflow
@pytest.mark.timeout(3600)
def test_a_fit_and_three_nights_of_which_each_does_what_is_new_or_changed_and_says_so(airflow, tmp_path, photo, vae):
    for index in range(60):
        _put(tmp_path, photo, index)
    for index in range(3):
        _put(tmp_path, photo, index, side="natural")
    moved = json.loads((FOLDER / "local.json").read_text().replace("/archive/", f"{tmp_path}/"))
    moved["dot_nightly"]["flags"].update(direct_num_workers=1, direct_running_mode="in_memory")
    moved["dot_refit"]["flags"].update(max_images=3, vae=vae)
    moved["dot_nightly"]["deferrable"] = True
    moved["dot_nightly"]["max_drift"] = moved["dot_refit"]["max_noise"] = 1000  # for so few images
    (tmp_path / "variables.json").write_text(json.dumps(moved))
    airflow.run(_command("airflow variables").replace("deploy/airflow/local.json", str(tmp_path / "variables.json")))

    airflow.run("airflow dags reserialize")  # as Airflow does by itself where its scheduler runs
    airflow.run(_command("airflow dags test dot_refit"))
    fitted = _published(tmp_path / "maps")
    assert _counts(fitted) == {"listed": 63, "encoded": 6}
    assert Path(fitted["map"]).parent == tmp_path / "maps"

    night, outputs = _command("airflow dags test dot_nightly"), tmp_path / "enhanced"
    airflow.run(night)
    first = _published(outputs)
    output = Path(first["output"])
    assert _counts(first) == {"listed": 60, "new": 60, "written": 60}
    assert first["map"] == fitted["map"]
    assert output == outputs / Path(fitted["map"]).stem
    assert json.loads((output / "drift.json").read_text())["inputs"]["relative"] is not None, "there was one to check"
    files = _files(output)
    assert len(files) == 60
    _check_manifest(output, files)

    time.sleep(0.05)  # so that changed files are younger, on a coarse clock too
    for index in range(60, 75):
        _put(tmp_path, photo, index)
    for index in range(5):
        _put(tmp_path, photo, index, seed=1)
    airflow.run(night)
    second = _published(outputs)
    assert _counts(second) == {"listed": 75, "new": 15, "changed": 5, "skipped": 55, "written": 20}
    before, files = files, _files(output)
    assert len(files) == 75
    touched = {key for key, file in files.items() if before.get(key) != file}
    assert touched == {str(index) for index in (*range(5), *range(60, 75))}
    assert all(before[str(index)][1] != files[str(index)][1] for index in range(5))
    _check_manifest(output, files)

    manifest = {path: path.read_bytes() for path in output.glob("*.parquet")}
    airflow.run(night)
    third = _published(outputs)
    assert _counts(third) == {"listed": 75, "skipped": 75}
    assert _files(output) == files
    assert {path: path.read_bytes() for path in output.glob("*.parquet")} == manifest
    assert len({night["report"] for night in (first, second, third)}) == 3
    with contextlib.closing(sqlite3.connect(airflow.database)) as database:
        told = (
            "select name, asset_event.extra from asset_event join asset on asset.id = asset_id order by asset_event.id"
        )
        events = [(name, json.loads(extra)) for name, extra in database.execute(told)]
        waiting = database.execute("select target_dag_id from asset_dag_run_queue").fetchall()
    assert events == [("dot_map", fitted), ("dot_enhanced", first), ("dot_enhanced", second)], "not of nothing new"
    assert waiting == [("export",)], "a DAG that waits for the output"
