"""Airflow's DAGs: `dot_nightly` transports what is new or changed since the last night, `dot_refit` fits a map.

Copy this file into Airflow's folder of DAGs. What they work on, and on which runner, is told by the Variables
`dot_nightly` and `dot_refit`: README.md, beside this file, has them.
"""

import datetime
import json
import os
from typing import Any

from airflow.providers.apache.beam.operators.beam import BeamRunPythonPipelineOperator
from airflow.sdk import ObjectStoragePath, Variable, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

#: Interpreter of the environment that has our commands, on Airflow's workers: Airflow's own has other dependencies.
PYTHON = os.environ.get("DOT_PYTHON", "/opt/dot/bin/python")


def _job(task_id: str, module: str, settings: Any, flags: str) -> BeamRunPythonPipelineOperator:
    """A command of ours, as a task that ends as it does.

    Not tried again by Airflow: where a worker of Airflow's is lost, the job may go on at Flink or Dataflow, and two
    jobs must not write to one output.
    """
    return BeamRunPythonPipelineOperator(
        task_id=task_id,
        py_interpreter=PYTHON,
        py_options=["-m"],
        py_file=module,
        runner=settings["runner"],
        pipeline_options=settings[flags],
        dataflow_config=settings["dataflow"],
        deferrable=False,  # the command waits for its job, writes its summary and tells by its exit code how it went
        retries=0,
    )


def _common(variable: str) -> dict[str, Any]:
    """What both DAGs take from their Variable, and a name for this run, the same each time that its tasks run."""
    given = Variable.get(variable, deserialize_json=True)
    return {
        "runner": given["runner"],
        "dataflow": given.get("dataflow", {}),
        "max_failure_fraction": given["max_failure_fraction"],
        "flags": given["flags"],
        "latest": given["latest"],
        "run": get_current_context()["dag_run"].run_after.strftime("%Y-%m-%dT%H%M%S"),
    }


def nightly(common: dict[str, Any]) -> dict[str, Any]:
    """The command lines of a night, as the operator takes them, where its report goes, and what is published."""
    output = common["flags"]["output"]
    report = f"{output.rstrip('/')}/reports/{common['run']}.json"
    flags = {**common["flags"], "resume": True, "summary": report}
    points_to = {"output": output, "map": flags["map"], "report": report}
    return {**common, "transport": flags, "plan": {**flags, "plan": True}, "report": report, "points_to": points_to}


def refit(common: dict[str, Any]) -> dict[str, Any]:
    """The command line of a fit, which never replaces an older map."""
    stem = common["latest"].rpartition("/")[0] + "/" + common["run"]
    points_to = {"map": f"{stem}.safetensors", "report": f"{stem}.json"}
    fit = {**common["flags"], "map": points_to["map"], "summary": points_to["report"]}
    return {**common, "fit": fit, "report": points_to["report"], "points_to": points_to}


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
    before = _read(latest)["images"]["failed"] if ObjectStoragePath(latest).exists() else 0
    counts = ", ".join(f"{n} {name}" for name, n in images.items())
    print(f"{report}: {counts}; failures {told['failures']}, {before} when last published")
    if images["failed"] - before > max_failure_fraction * tried:
        raise AirflowFailException(
            f"{images['failed']} of {tried} images failed ({told['failures']}), {before} when last published: over "
            f"max_failure_fraction {max_failure_fraction}; the failures' files say which and why"
        )
    return images


@task
def publish(latest: str, points_to: dict[str, Any], images: dict[str, int]) -> None:
    """Replaces the file that readers start from; only what passed the check gets here."""
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
        return nightly(_common("dot_nightly"))

    night = settings()
    what_is_new = _job("what_is_new", "pipelines.transport", night, "plan")
    transport = _job("transport", "pipelines.transport", night, "transport")
    checked = check(night["report"], night["max_failure_fraction"], night["latest"])
    what_is_new >> anything_new(night["report"]) >> transport >> checked
    publish(night["latest"], night["points_to"], checked)


@dag(schedule=None, **_EVERY_DAG)  # a new map means doing the archive again: somebody decides that
def dot_refit() -> None:
    """Fit -> check -> publish: a new map beside the older ones."""

    @task(multiple_outputs=True)
    def settings() -> dict[str, Any]:
        return refit(_common("dot_refit"))

    new = settings()
    checked = check(new["report"], new["max_failure_fraction"], new["latest"])
    _job("fit", "pipelines.fit", new, "fit") >> checked
    publish(new["latest"], new["points_to"], checked)


dot_nightly()
dot_refit()
