"""Airflow's DAGs: `dot_nightly` transports what is new or changed since the last night, `dot_refit` fits its next map.

Copy this file into Airflow's folder of DAGs. What they work on, and on which runner, is told by the Variables
`dot_nightly` and `dot_refit`: README.md, beside this file, has them.
"""

import datetime
import json
import os
import subprocess
from typing import Any

from airflow.providers.apache.beam.operators.beam import BeamRunPythonPipelineOperator
from airflow.sdk import ObjectStoragePath, Variable, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

#: Interpreter of the environment that has our commands, on Airflow's workers: Airflow's own has other dependencies.
PYTHON = os.environ.get("DOT_PYTHON", "/opt/dot/bin/python")


def _job(task_id: str, module: str, settings: Any, flags: str) -> BeamRunPythonPipelineOperator:
    """A command of ours, as a task that ends as it does.

    Not tried again by Airflow: where a worker of Airflow's is lost, the job may go on at Flink or Dataflow, and two
    jobs must not write to one output. On Dataflow the operator would leave the command as soon as Beam logs the job's
    id, which our commands keep it from: so it waits for their summary and exit code there, too.
    """
    return BeamRunPythonPipelineOperator(
        task_id=task_id,
        py_interpreter=PYTHON,
        py_options=["-m"],
        py_file=module,
        runner=settings["runner"],
        pipeline_options=settings[flags],
        dataflow_config=settings["dataflow"],
        deferrable=False,
        retries=0,
    )


def _settings(variable: str) -> dict[str, Any]:
    """What a DAG's Variable says, and a name for this run, the same each time that its tasks run."""
    run = get_current_context()["dag_run"].run_after.strftime("%Y-%m-%dT%H%M%S")
    return {"dataflow": {}, **Variable.get(variable, deserialize_json=True), "run": run}


def nightly(given: dict[str, Any], map: str) -> dict[str, Any]:
    """The command lines of a night, as the operator takes them, where its report goes, and what is published.

    Each map has an output of its own, of its name.
    """
    output = f"{given['outputs']}/{map.rpartition('/')[2].removesuffix('.safetensors')}"
    report = f"{output}/reports/{given['run']}.json"
    flags = {**given["flags"], "map": map, "output": output, "resume": True, "summary": report}
    points_to = {"output": output, "map": map, "report": report}
    return {
        **given,
        "plan": {**flags, "plan": True},
        "transport": flags,
        "report": report,
        "drift": f"{output}/drift.json",
        "latest": f"{given['outputs']}/latest.json",
        "points_to": points_to,
    }


def refit(given: dict[str, Any]) -> dict[str, Any]:
    """The command line of a fit, which never replaces an older map."""
    map, report = (f"{given['maps']}/{given['run']}.{extension}" for extension in ("safetensors", "json"))
    return {
        **given,
        "fit": {**given["flags"], "map": map, "summary": report},
        "map": map,
        "report": report,
        "latest": f"{given['maps']}/latest.json",
        "points_to": {"map": map, "report": report},
    }


def _read(url: str) -> dict[str, Any]:
    return dict(json.loads(ObjectStoragePath(url).read_text()))


@task.short_circuit(ignore_downstream_trigger_rules=False)
def anything_new(report: str) -> bool:
    """Skips the transport where there is nothing to do; the plan's summary is then the night's report."""
    images = _read(report)["images"]
    # What a killed job wrote is recovered: it isn't in the manifest yet.
    return bool(images["new"] or images["changed"] or images["recovered"])


@task(trigger_rule="none_failed")
def check(report: str, max_failure_fraction: float, latest: str) -> dict[str, int]:
    """Fails where, of the images that were tried, a larger share failed than did when last published.

    What failed before is tried again each time, and must not fail every night for good.
    """
    told = _read(report)
    images = dict(told["images"])
    tried = images["encoded"] + images["written"] + images["failed"]
    published = _read(latest) if ObjectStoragePath(latest).exists() else {}
    before = published.get("images", {}).get("failed", 0)  # somebody may have written but the name of a map
    counts = ", ".join(f"{n} {name}" for name, n in images.items())
    print(f"{report}: {counts}; failures {told['failures']}, {before} when last published")
    if images["failed"] - before > max_failure_fraction * tried:
        raise AirflowFailException(
            f"{images['failed']} of {tried} images failed ({told['failures']}), {before} when last published: over "
            f"max_failure_fraction {max_failure_fraction}; the failures' files say which and why"
        )
    return images


@task(trigger_rule="none_failed")
def check_drift(drift: str, max_drift: float) -> None:
    """Fails where the images that this map was last used for drifted further than that, and further than by chance.

    Of too few images to tell it can't be judged: they pass, and are judged with those of the next nights.
    """
    found = _read(drift)["inputs"] if ObjectStoragePath(drift).exists() else None
    print(f"{drift}: {found}")
    if not found or found["verdict"] == "unknown":
        return
    relative, chance = found["relative"], found["p_value"]
    if found["verdict"] == "unlike" and (relative is None or relative > max_drift):
        raise AirflowFailException(
            f"the images drifted by {relative or 'infinitely many'} times the map's distance, over max_drift "
            f"{max_drift} (by chance with a probability of {chance:.2g}): fit a map of them, or raise max_drift if the "
            "results are good all the same"
        )


@task
def check_map(map: str, max_noise: float) -> None:
    """Fails where the choice of images explains a larger share than that of what a map does."""
    command = [PYTHON, "-m", "pipelines.maps", "inspect", map, "--json"]
    told = json.loads(subprocess.check_output(command))
    floor, distance = told["noise_floor"] or 0.0, told["distance_squared"]
    print(f"{map}: noise floor {floor:.4g}, distance {distance:.4g}")
    if floor > max_noise * distance:
        raise AirflowFailException(
            f"{map} is noise by {floor / distance:.2f}, over max_noise {max_noise}: fit on more images, or on pairs"
        )


@task
def publish(latest: str, points_to: dict[str, Any], images: dict[str, int]) -> None:
    """Puts in place what passed the checks, by replacing the file that says which output, or map, is to be used."""
    ObjectStoragePath(latest).write_text(json.dumps({**points_to, "images": images}, indent=1))


_EVERY_DAG: dict[str, Any] = {
    "start_date": datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC),
    "catchup": False,
    "max_active_runs": 1,  # two jobs must not write to one output
    "tags": ["dot"],
}


@dag(schedule="0 2 * * *", **_EVERY_DAG)
def dot_nightly() -> None:
    """What is new -> transport -> check -> publish."""

    @task(multiple_outputs=True)
    def settings() -> dict[str, Any]:
        given = _settings("dot_nightly")
        return nightly(given, _read(f"{given['maps']}/latest.json")["map"])

    night = settings()
    what_is_new = _job("what_is_new", "pipelines.transport", night, "plan")
    transport = _job("transport", "pipelines.transport", night, "transport")
    checked = check(night["report"], night["max_failure_fraction"], night["latest"])
    undrifted = check_drift(night["drift"], night["max_drift"])
    what_is_new >> anything_new(night["report"]) >> transport >> [checked, undrifted]
    undrifted >> publish(night["latest"], night["points_to"], checked)


@dag(schedule=None, **_EVERY_DAG)  # a new map means doing the archive again: somebody decides that
def dot_refit() -> None:
    """Fit a map beside the older ones -> check -> put it in place, for dot_nightly."""

    @task(multiple_outputs=True)
    def settings() -> dict[str, Any]:
        return refit(_settings("dot_refit"))

    new = settings()
    checked = check(new["report"], new["max_failure_fraction"], new["latest"])
    sound = check_map(new["map"], new["max_noise"])
    _job("fit", "pipelines.fit", new, "fit") >> [checked, sound]
    sound >> publish(new["latest"], new["points_to"], checked)


dot_nightly()
dot_refit()
