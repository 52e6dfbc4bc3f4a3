"""Runs a job's command in Airflow's triggerer, so that it holds no slot of a worker while Flink works.

Copy this file into Airflow's folder of plugins: the triggerer doesn't look into the folder of DAGs.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.providers.apache.beam.triggers.beam import BeamPythonPipelineTrigger
from airflow.sdk import ObjectStoragePath
from airflow.triggers.base import TriggerEvent


class CommandTrigger(BeamPythonPipelineTrigger):
    """A command that is started once: a triggerer that takes over from one that is lost doesn't start a second job.

    Args:
        marker: URL of an empty file that is written when the command starts, and must not be there before.
        given: what Beam's own trigger takes.
    """

    def __init__(self, marker: str, **given: Any) -> None:
        super().__init__(**given)
        self.marker = marker

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """As Airflow keeps it."""
        return f"dot_trigger.{type(self).__name__}", {**super().serialize()[1], "marker": self.marker}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Gives one event, when the command has ended."""
        if await asyncio.to_thread(self._begun_before):
            advice = "make sure that it has ended, then clear the task"
            message = f"{self.marker}: a triggerer that is lost began this job; {advice}"
            yield TriggerEvent({"status": "error", "message": message})
            return
        async for event in super().run():
            yield event

    def _begun_before(self) -> bool:
        """Whether the marker was there; it is afterwards."""
        marker = ObjectStoragePath(self.marker)
        if marker.exists():
            return True
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text("")
        return False
