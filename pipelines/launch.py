"""What every job does around its pipeline: early checks, progress, summary, exit code.

Exit codes: 0, every image is accounted for; 1, the job failed or more images failed than allowed; 2, a mistake
that was found before any work started.
"""

import argparse
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)
from tqdm import tqdm

from ot_core import UserError, listing
from pipelines.options import LOCAL_RUNNER, ArgumentParser, parse
from transforms import metrics

Counters = Mapping[str, int]
_DONE = (metrics.IMAGES_ENCODED, metrics.IMAGES_WRITTEN, metrics.IMAGES_SKIPPED, metrics.FAILURES)


def launch(
    parser: ArgumentParser,
    argv: Sequence[str] | None,
    check: Callable[[argparse.Namespace], None],
    build: Callable[[beam.Pipeline, argparse.Namespace], None],
    report: Callable[[argparse.Namespace, Counters], str],
) -> int:
    """Runs a job from its command line and gives its exit code.

    Args:
        parser: the job's flags.
        argv: the command line without the program's name; default this process's.
        check: raises UserError for what can be known to be wrong before any work starts.
        build: wires the pipeline.
        report: the summary's first lines, from the counters; raises UserError where the job came to nothing.
    """
    _quiet_logs()
    try:
        args, options = parse(parser, argv)
        check(args)
        pipeline = beam.Pipeline(options=options)
        build(pipeline, args)
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    try:
        with _progress(parser.prog, options, getattr(args, "max_images", None)):
            result = pipeline.run()
            template = options.view_as(GoogleCloudOptions).template_location
            if template:  # a Flex Template's launcher starts the job from this file once we are gone
                print(f"job graph {template}")
                return 0
            result.wait_until_finish()
        counters = _counters(result)
        try:
            print(report(args, counters))
        finally:
            print(_summary(counters, time.perf_counter() - start))
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    return _exit_code(parser.prog, counters, args.max_failure_fraction)


def check_inputs(*flags: tuple[str, Sequence[str]]) -> None:
    """Finds at least one image in every input.

    Raises:
        UserError: naming the flag and the input.
    """
    for flag, specs in flags:
        for spec in specs:
            first = next(listing.list_images(spec), None)
            if first is None:
                raise UserError(f"{flag} {spec}: no image matched; expected a folder, glob, image or list of images")
            if first.problem:
                raise UserError(f"{flag} {first.problem}")


def _exit_code(prog: str, counters: Counters, max_failure_fraction: float) -> int:
    failed, listed = counters.get(metrics.FAILURES, 0), counters.get(metrics.IMAGES_LISTED, 0)
    if failed > max_failure_fraction * listed:
        print(
            f"{prog}: error: {failed} of {listed} images failed, over --max_failure_fraction {max_failure_fraction}",
            file=sys.stderr,
        )
        return 1
    return 0


def _summary(counters: Counters, seconds: float) -> str:
    failed = counters.get(metrics.FAILURES, 0)
    done = sum(counters.get(name, 0) for name in _DONE) - failed
    lines = [f"{done} images in {seconds:.1f} s ({done / seconds:.2f} images/s), {failed} failures"]
    prefix = metrics.FAILURES + "_"
    lines += [f"  {n} {name.removeprefix(prefix)}" for name, n in sorted(counters.items()) if name.startswith(prefix)]
    return "\n".join(lines)


def _counters(result: Any) -> Counters:
    found = result.metrics().query(MetricsFilter().with_namespace(metrics.METRICS_NAMESPACE))["counters"]
    totals: dict[str, int] = {}
    for counter in found:
        value = counter.committed if counter.committed is not None else counter.attempted
        totals[counter.key.metric.name] = totals.get(counter.key.metric.name, 0) + (value or 0)
    return totals


@contextmanager
def _progress(prog: str, options: PipelineOptions, max_images: int | None) -> Iterator[None]:
    """A bar where the pipeline runs in this process: on a terminal a live one, else a line now and then."""
    mode = options.view_as(DirectOptions).direct_running_mode
    if options.view_as(StandardOptions).runner != LOCAL_RUNNER or mode == "multi_processing":
        yield
        return
    done = threading.Event()
    interval = 0.2 if sys.stderr.isatty() else 10.0
    watcher = threading.Thread(target=_watch, args=(prog, interval, max_images, done), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(prog: str, interval: float, max_images: int | None, done: threading.Event) -> None:
    before = metrics.tally()
    with tqdm(desc=prog, unit=" images", mininterval=interval, file=sys.stderr) as bar:
        while not done.wait(interval):
            _update(bar, before, max_images)
        _update(bar, before, max_images)


def _update(bar: "tqdm[Any]", before: Counters, max_images: int | None) -> None:
    now = metrics.tally()
    since = {name: now[name] - before.get(name, 0) for name in now}
    if max_images is None:  # with a limit, how many will be taken isn't known while listing
        bar.total = since.get(metrics.IMAGES_LISTED)
    bar.n = sum(since.get(name, 0) for name in _DONE)
    bar.refresh()


def _quiet_logs() -> None:
    """Beam and the libraries log warnings about themselves; what concerns the user is printed."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
