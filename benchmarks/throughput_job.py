"""The part of several benchmarks that runs dot-transport."""

from __future__ import annotations

import time
from typing import Any

import apache_beam as beam
import torch
from apache_beam.metrics import MetricsFilter

import benchmarks.slow_storage  # noqa: F401 - registers slow://
from benchmarks.measure import Figures, peak_rss_bytes, serve
from pipelines import transport
from transforms.metrics import METRICS_NAMESPACE


def job(settings: Figures) -> Figures:
    """dot-transport, from its command line, a second time in one process: the first has loaded the model."""
    torch.set_num_threads(settings["threads"])
    results: list[Any] = []
    run = beam.Pipeline.run

    def run_and_keep(self: beam.Pipeline, *args: Any, **kwargs: Any) -> Any:
        results.append(run(self, *args, **kwargs))
        return results[-1]

    beam.Pipeline.run = run_and_keep  # for the metrics, which the command doesn't give
    for name in ("warm_up", "input"):
        ready_at, start = time.time(), time.perf_counter()
        argv = ["--input", settings[name], "--output", f"{settings['output']}/{name}", "--map", settings["map"]]
        argv += ["--vae", settings["vae"]] if settings["vae"] else []
        argv += ["--precision", settings["precision"]] if settings["precision"] else []
        if code := transport.main([*argv, *settings["job_args"]]):
            raise SystemExit(code)
    seconds = time.perf_counter() - start
    distributions = results[-1].metrics().query(MetricsFilter().with_namespace(METRICS_NAMESPACE))["distributions"]
    stages: dict[str, float] = {}
    for found in distributions:
        stage, _, unit = found.key.metric.name.rpartition("_")
        if unit == "milliseconds":
            stages[stage] = stages.get(stage, 0.0) + (found.committed or found.attempted).sum / 1000
    return {"seconds": seconds, "ready_at": ready_at, "peak_rss_bytes": peak_rss_bytes(), "stage_seconds": stages}


if __name__ == "__main__":
    serve([job])
