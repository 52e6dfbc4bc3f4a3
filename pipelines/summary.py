"""What a job measured, and the lines that say so."""

import datetime
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ot_core.names import told_ignored
from transforms import metrics
from transforms.quiet_beam import MetricsFilter

Counters = Mapping[str, int]

#: An image is done when it is counted in one of these.
DONE = (metrics.IMAGES_ENCODED, metrics.IMAGES_WRITTEN, metrics.IMAGES_SKIPPED, metrics.FAILURES)
_STEPS = {
    "listed": metrics.IMAGES_LISTED,
    "new": metrics.IMAGES_NEW,
    "changed": metrics.IMAGES_CHANGED,
    "read": metrics.IMAGES_READ,
    "encoded": metrics.IMAGES_ENCODED,
    "compared": metrics.IMAGES_COMPARED,
    "written": metrics.IMAGES_WRITTEN,
    "skipped": metrics.IMAGES_SKIPPED,
    "recovered": metrics.IMAGES_RECOVERED,
}
#: Beam itself measures a RunInference, and unlike us also where it loads the model: outside of any element.
_BEAMS_STAGES = {
    "load_model_latency_milli_secs": ("load model", 1e3),
    "inference_batch_latency_micro_secs": ("model, a batch", 1e6),
}
_OURS = "_milliseconds"
#: The same as Beam's "model, a batch".
_LEFT_OUT = "transport" + _OURS


class Distribution(NamedTuple):
    """Number, sum and largest of values that aren't kept."""

    times: int
    total: int
    largest: int

    @property
    def mean(self) -> float:
        """Of the values."""
        return self.total / self.times


class Measured(NamedTuple):
    """Counters and distributions of a job by name, over all its steps and workers."""

    counters: Counters
    distributions: Mapping[str, Distribution]


def measured(result: Any) -> Measured:
    """What a job measured, from Beam's result."""
    found = result.metrics().query(MetricsFilter().with_namespace(metrics.METRICS_NAMESPACE))
    counters: dict[str, int] = {}
    for name, value in _values(found["counters"]):
        counters[name] = counters.get(name, 0) + value
    distributions: dict[str, Distribution] = {}
    for name, value in _values(found["distributions"]):
        if value.count:
            before = distributions.get(name, Distribution(0, 0, value.max))
            distributions[name] = Distribution(
                before.times + value.count, before.total + value.sum, max(before.largest, value.max)
            )
    return Measured(counters, distributions)


def _values(found: Any) -> Iterator[tuple[str, Any]]:
    for metric in found:
        value = metric.committed if metric.committed is not None else metric.attempted
        if value is not None:
            yield metric.key.metric.name, value


def summary(found: Measured, seconds: float, stages: bool = False) -> str:
    """The last lines of a job's output: how much was done, how fast, and if asked for where the time went."""
    counters = found.counters
    failed = counters.get(metrics.FAILURES, 0)
    done = sum(counters.get(name, 0) for name in DONE) - failed
    lines = [f"{done} images in {seconds:.1f} s ({done / seconds:.2f} images/s), {failed} failures"]
    lines += [f"  {n} {cause}" for cause, n in _parts(counters, metrics.FAILURES).items()]
    steps = [f"{counters[name]} {step}" for step, name in _STEPS.items() if counters.get(name)]
    read, written = counters.get(metrics.BYTES_READ, 0), counters.get(metrics.BYTES_WRITTEN, 0)
    lines.append(f"  images: {', '.join(steps) or 'none'}; {read / 1e6:.1f} MB read, {written / 1e6:.1f} MB written")
    ignored = _parts(counters, metrics.FILES_IGNORED)
    lines += [f"  {told_ignored(ignored)}"] if ignored else []
    batches = found.distributions.get(metrics.BATCH_SIZE)
    if batches:
        line = f"  batches: {batches.times}, of {batches.mean:.1f} images on average, {batches.largest} at most"
        pixels = found.distributions.get(metrics.BATCH_PIXELS)
        lines.append(line + (f"; {pixels.largest / 1e6:.2f} megapixels at most at once" if pixels else ""))
    lines += [f"  device: {device}" for device in _devices(counters)]
    memory = found.distributions.get(metrics.DEVICE_MEMORY)
    if memory:
        lines.append(f"  device memory: {memory.largest / 1e6:.0f} MB at most")
    return "\n".join(lines + (_table(found.distributions) if stages else []))


def as_json(job: str, found: Measured, seconds: float) -> bytes:
    """How many images came to what, as JSON; those from new to recovered are counted only with --resume."""
    counters = found.counters
    images = {step: counters.get(name, 0) for step, name in _STEPS.items()}
    told = {
        "job": job,
        "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "images": {**images, "failed": counters.get(metrics.FAILURES, 0)},
        "failures": _parts(counters, metrics.FAILURES),
        "ignored": _parts(counters, metrics.FILES_IGNORED),
        "devices": _devices(counters),
    }
    return json.dumps(told, indent=1).encode()


def is_summary(data: bytes) -> bool:
    """Whether a file holds what `as_json` makes."""
    try:
        told = json.loads(data)
    except ValueError:
        return False
    return isinstance(told, dict) and {"job", "ended", "images", "failures"} <= told.keys()


def _devices(counters: Counters) -> list[str]:
    """What models ran on, over all workers."""
    return sorted(name.removeprefix(metrics.DEVICE) for name in counters if name.startswith(metrics.DEVICE))


def _parts(counters: Counters, whole: str) -> dict[str, int]:
    """What a counter is made up of: failures by their cause, ignored files by their extension."""
    prefix = whole + "_"
    return {name.removeprefix(prefix): n for name, n in sorted(counters.items()) if name.startswith(prefix)}


def _table(distributions: Mapping[str, Distribution]) -> list[str]:
    """Seconds of each stage, the longest first. Several are at work at a time, so they don't add up to the job's."""
    stages = []
    for name, values in distributions.items():
        if name in _BEAMS_STAGES:
            stages.append((*_BEAMS_STAGES[name], values))
        elif name.endswith(_OURS) and name != _LEFT_OUT:
            stages.append((name.removesuffix(_OURS).replace("_", " "), 1e3, values))
    if not stages:
        return []
    stages.sort(key=lambda stage: stage[2].total / stage[1], reverse=True)
    header = f"  {'seconds of a stage':<18} {'times':>9} {'mean':>9} {'max':>9} {'total':>9}"
    return [header] + [
        f"  {name:<18} {values.times:>9} {values.mean / unit:>9.3f} {values.largest / unit:>9.3f}"
        f" {values.total / unit:>9.2f}"
        for name, unit, values in stages
    ]
