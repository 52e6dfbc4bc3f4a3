"""What every job does around its pipeline: early checks, progress, summary, exit code.

Exit codes: 0, every image is accounted for; 1, the job failed or more images failed than allowed; 2, a mistake
that was found before any work started.
"""

import argparse
import difflib
import itertools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)
from tqdm import tqdm

from ot_core import UserError, listing, storage
from ot_core.groups import Grouping
from pipelines.options import LOCAL_RUNNER, ArgumentParser, parse
from pipelines.summary import DONE, Counters, as_json, measured, summary
from transforms import metrics

#: Images of an input of which one at least must have a group.
_SEEN = 1000


def launch(
    parser: ArgumentParser,
    argv: Sequence[str] | None,
    check: Callable[[argparse.Namespace], None],
    build: Callable[[beam.Pipeline, argparse.Namespace], None],
    report: Callable[[argparse.Namespace, Counters], str],
    objection: Callable[[argparse.Namespace], str | None] = lambda args: None,
) -> int:
    """Runs a job from its command line and gives its exit code.

    Args:
        parser: the job's flags.
        argv: the command line without the program's name; default this process's.
        check: raises UserError for what can be known to be wrong before any work starts.
        build: wires the pipeline.
        report: the summary's first lines, from the counters; raises UserError where the job came to nothing.
        objection: what is wrong with the results of a job that did all its work, in one line.
    """
    _quiet_logs()
    try:
        args, options = parse(parser, argv)
        pipeline = _pipeline(options)
        if args.summary:
            _check_summary(args.summary, options)
        check(args)
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
        seconds, found = time.perf_counter() - start, measured(result)
        if args.summary:
            storage.write_bytes(args.summary, as_json(parser.prog, found, seconds))
        try:
            print(report(args, found.counters))
        finally:
            print(summary(found, seconds))
        wrong = objection(args)
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # whatever an engine raises where it gives up, as most do when they lose a worker
        _tell_failure(parser, args, options, error)
        return 1
    if wrong:
        print(f"{parser.prog}: error: {wrong}", file=sys.stderr)
    return _exit_code(parser.prog, found.counters, args.max_failure_fraction) or int(bool(wrong))


def check_inputs(*flags: tuple[str, Sequence[str]], group_by: str | None = None) -> None:
    """Finds at least one image in every input, and in groups one that has a group.

    Raises:
        UserError: naming the flag and the input.
    """
    grouping = Grouping.parse(group_by) if group_by else None
    for flag, specs in flags:
        for spec in specs:
            images = listing.list_images(spec, grouping)
            first = next(images, None)
            if first is None:
                raise UserError(f"{flag} {spec}: no image matched; expected a folder, glob, image or list of images")
            if first.problem:
                raise UserError(f"{flag} {first.problem}")
            if grouping and not (first.group or any(image.group for image in itertools.islice(images, _SEEN))):
                raise UserError(f"--group_by {group_by}: none of the first images of {flag} {spec} has a group")


def _exit_code(prog: str, counters: Counters, max_failure_fraction: float) -> int:
    failed, listed = counters.get(metrics.FAILURES, 0), counters.get(metrics.IMAGES_LISTED, 0)
    if failed > max_failure_fraction * listed:
        print(
            f"{prog}: error: {failed} of {listed} images failed, over --max_failure_fraction {max_failure_fraction}",
            file=sys.stderr,
        )
        return 1
    return 0


def _check_summary(url: str, options: PipelineOptions) -> None:
    if options.view_as(GoogleCloudOptions).template_location:
        raise UserError("--summary: a template's launcher is gone before the job ends; Dataflow shows its counters")
    storage.check_writable(storage.parent(url))


def _pipeline(options: PipelineOptions) -> beam.Pipeline:
    """An empty pipeline.

    Raises:
        UserError: if Beam doesn't know the runner, or misses one of its flags.
    """
    runner = options.view_as(StandardOptions).runner
    try:
        return beam.Pipeline(options=options)
    except (ValueError, ImportError, AttributeError) as error:
        near = difflib.get_close_matches(runner, StandardOptions.KNOWN_RUNNER_NAMES, n=1)
        said = f"unknown; did you mean {near[0]}?" if near and runner not in near else " ".join(str(error).split())
        raise UserError(f"--runner {runner}: {said}") from None


def _tell_failure(parser: ArgumentParser, args: argparse.Namespace, options: PipelineOptions, error: Exception) -> None:
    """The whole story, and then a line that says what happened and what to do."""
    traceback.print_exception(error)
    said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    hint = "; with --resume the same command does only what is missing" if hasattr(args, "resume") else ""
    runner = options.view_as(StandardOptions).runner
    print(f"{parser.prog}: error: the job failed on {runner}: {said[-1].rstrip('.')}{hint}", file=sys.stderr)


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
    bar.n = sum(since.get(name, 0) for name in DONE)
    bar.refresh()


def _quiet_logs() -> None:
    """Beam and the libraries log warnings about themselves; what concerns the user is printed."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
