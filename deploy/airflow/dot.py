"""Airflow's DAGs: `dot_nightly` transports what is new or changed since the last night, `dot_refit` fits its next map.

Copy this file into Airflow's folder of DAGs. The Variables `dot_nightly` and `dot_refit` name what they work on and the
runner: see README.md beside this file.
"""

import datetime
import json
import os
import subprocess
from typing import Any

from airflow.providers.apache.beam.operators.beam import BeamRunPythonPipelineOperator
from airflow.sdk import Asset, ObjectStoragePath, Variable, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

#: Interpreter of the environment that has our commands, on Airflow's workers: Airflow's own has other dependencies.
PYTHON = os.environ.get("DOT_PYTHON", "/opt/dot/bin/python")
#: What a run puts in place. DAGs that are scheduled by one start then, and find the URLs in the event's `extra`.
ENHANCED, MAP = Asset("dot_enhanced"), Asset("dot_map")
#: Ends the name of the maps of an archive in groups.
_GROUPS = "/{group}.safetensors"


class Job(BeamRunPythonPipelineOperator):
    """A task that runs one of our commands, and fails where that fails.

    Airflow doesn't try it again: if a worker of Airflow's is lost, the job may go on at Flink or Dataflow, and two jobs
    must not write to one output. On Dataflow the operator would leave the command as soon as Beam logs the job's id.
    Our commands don't log it, so the operator waits for their summary and exit code; there it is never deferred.

    Args:
        deferred: whether the triggerer runs the command, instead of a worker.
        report: URL of its summary.
        given: what Beam's own operator takes.
    """

    template_fields = (*BeamRunPythonPipelineOperator.template_fields, "deferred", "report")

    def __init__(self, *, deferred: bool, report: str, **given: Any) -> None:
        super().__init__(py_interpreter=PYTHON, py_options=["-m"], deferrable=False, retries=0, **given)
        self.deferred, self.report = deferred, report

    def execute(self, context: Any) -> Any:
        """Runs it, or has it run."""
        self.deferrable = self.deferred and self.runner != "DataflowRunner"
        return super().execute(context)

    def defer(self, *, trigger: Any, **given: Any) -> None:
        """Has the triggerer start the command, once for each try of the task."""
        from dot_trigger import CommandTrigger  # noqa: PLC0415 - a plugin that only this needs

        attempt = self._execute_context["ti"].try_number
        marker = f"{self.report.removesuffix('.json')}.{self.task_id}.{attempt}.begun"
        super().defer(trigger=CommandTrigger(marker, **trigger.serialize()[1]), **given)


def _job(task_id: str, module: str, settings: Any, flags: str) -> Job:
    return Job(
        task_id=task_id,
        py_file=module,
        runner=settings["runner"],
        pipeline_options=settings[flags],
        dataflow_config=settings["dataflow"],
        deferred=settings["deferrable"],
        report=settings["report"],
    )


def _settings(variable: str) -> dict[str, Any]:
    """The settings in a DAG's Variable, and a name for this run, the same each time that its tasks run."""
    run = get_current_context()["dag_run"].run_after.strftime("%Y-%m-%dT%H%M%S")
    return {"dataflow": {}, "deferrable": False, **Variable.get(variable, deserialize_json=True), "run": run}


def nightly(given: dict[str, Any], map: str) -> dict[str, Any]:
    """The command lines of a night, as the operator takes them, where its report goes, and what is published.

    Each map, or each folder of the maps of groups, has an output of its own, of its name.
    """
    output = f"{given['outputs']}/{map.removesuffix(_GROUPS).rpartition('/')[2].removesuffix('.safetensors')}"
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
    """The command line of a fit, which never replaces an older map. In groups, a folder holds the map of each."""
    map = f"{given['maps']}/{given['run']}{_GROUPS if 'group_by' in given['flags'] else '.safetensors'}"
    report = f"{given['maps']}/{given['run']}.json"
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
    """Fails where a larger share of the images that were tried failed than when last published.

    Images that failed before are tried again each time, and must not make every night fail.
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
    """Fails where the images of a map drifted further than that, and further than by chance.

    Too few images to tell pass, and are judged with those of the next nights.
    """
    told = _read(drift) if ObjectStoragePath(drift).exists() else {}
    problems = []
    for group, one in {"": told, **told.get("groups", {})}.items():
        found = one.get("inputs")
        print(f"{drift} {group}: {found}")
        if not found or found["verdict"] != "unlike":
            continue
        relative, of_group = found["relative"], f" of group {group}" if group else ""
        if relative is None or relative > max_drift:
            problems.append(
                f"the images{of_group} drifted by {relative or 'infinitely many'} times the map's distance, over "
                f"max_drift {max_drift} (by chance with a probability of {found['p_value']:.2g})"
            )
    if problems:
        advice = "fit a map of them, or raise max_drift if the results are good all the same"
        raise AirflowFailException(f"{'; '.join(problems)}: {advice}")


@task
def check_map(map_url: str, max_noise: float) -> None:
    """Fails where chance explains a larger share than that of a map's distance; in groups, of any group's map."""
    grouped = map_url.endswith(_GROUPS)
    maps = ObjectStoragePath(map_url.removesuffix(_GROUPS)).glob("*.safetensors") if grouped else [map_url]
    problems = []
    for one in sorted(map(str, maps)):
        told = json.loads(subprocess.check_output([PYTHON, "-m", "pipelines.maps", "inspect", one, "--json"]))
        floor, distance = told["noise_floor"] or 0.0, told["distance_squared"]
        print(f"{one}: noise floor {floor:.4g}, distance {distance:.4g}")
        if floor > max_noise * distance:
            problems.append(f"{one}: chance explains {floor / distance:.0%} of its distance")
    if problems:
        advice = "fit on more images, or on pairs"
        raise AirflowFailException(f"{'; '.join(problems)}, over max_noise {max_noise}: {advice}")


@task
def publish(latest: str, points_to: dict[str, Any], images: dict[str, int]) -> None:
    """Puts in place what passed the checks: replaces the file that says which output or map to use."""
    ObjectStoragePath(latest).write_text(json.dumps({**points_to, "images": images}, indent=1))


def _announce(asset: Asset, points_to: Any, images: Any) -> Any:
    """A task that starts the DAGs that wait for what was put in place."""

    @task(outlets=[asset])
    def announce(points_to: dict[str, Any], images: dict[str, int], outlet_events: Any = None) -> None:
        outlet_events[asset].extra = {**points_to, "images": images}

    return announce(points_to, images)


_EVERY_DAG: dict[str, Any] = {
    "start_date": datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC),
    "catchup": False,
    "max_active_runs": 1,  # two jobs must not write to one output
    "tags": ["dot"],
}


@dag(schedule="0 2 * * *", **_EVERY_DAG)
def dot_nightly() -> None:
    """What is new -> transport -> check -> publish -> announce, which is skipped where nothing was new."""

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
    published = publish(night["latest"], night["points_to"], checked)
    undrifted >> published >> (announced := _announce(ENHANCED, night["points_to"], checked))
    transport >> announced


@dag(schedule=None, **_EVERY_DAG)  # a new map means doing the archive again: somebody decides that
def dot_refit() -> None:
    """Fit a map beside the older ones -> check -> put it in place, for dot_nightly -> announce."""

    @task(multiple_outputs=True)
    def settings() -> dict[str, Any]:
        return refit(_settings("dot_refit"))

    new = settings()
    checked = check(new["report"], new["max_failure_fraction"], new["latest"])
    sound = check_map(new["map"], new["max_noise"])
    _job("fit", "pipelines.fit", new, "fit") >> [checked, sound]
    published = publish(new["latest"], new["points_to"], checked)
    sound >> published >> _announce(MAP, new["points_to"], checked)


dot_nightly()
dot_refit()
