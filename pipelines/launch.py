"""What every job does around its pipeline: early checks, progress, summary, exit code.

Exit codes: 0, every image is accounted for; 1, the job failed, or more images failed than allowed, or none could be
used; 2, a mistake that was found before any work started.
"""

import argparse
import copy
import difflib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ot_core import Cause, UserError, listing, storage
from ot_core.errors import TooManyBytesError, one_line
from ot_core.groups import Grouping
from ot_core.names import Ignored, told_ignored
from pipelines import local_workers, progress
from pipelines.command import JobError, command, complain, on_ending, print_messages, say, told, workers_kept_quiet
from pipelines.flags import ArgumentParser, has_job_server
from pipelines.options import LOCAL_RUNNER, parse
from pipelines.summary import DONE, Counters, Measured, as_json, is_summary, measured, summary
from transforms import metrics
from transforms.quiet_beam import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    beam,
)

#: A job as its flags, and what they name, say: frozen, and of the job's own class.
AnyPlan = TypeVar("AnyPlan")
#: Images of an input of which one at least must be named by it and have a group.
_SEEN = 1000
_LARGEST_SUMMARY = 2**20
#: What a job is at, most of the time.
_WORK = {"dot-fit": "encoding", "dot-transport": "transporting", "dot-evaluate": "comparing"}
_EXPECTED = "expected a folder, glob, image or list of images"


@dataclass(frozen=True)
class Job(Generic[AnyPlan]):
    """What a job is made of, between its flags and what it tells.

    Attributes:
        resolve: makes the plan of the flags, and changes nothing; raises UserError for what can be known to be wrong.
        build: wires the pipeline.
        report: the summary's first lines, from the counters; raises UserError where the job came to nothing.
        begin: does what must be done on this machine before the pipeline is built, and gives the plan with what came
            of it.
        objection: what is wrong with the results of a job that did all its work, in one line.
    """

    resolve: Callable[[argparse.Namespace], AnyPlan]
    build: Callable[[beam.Pipeline, AnyPlan], None]
    report: Callable[[AnyPlan, Counters], str]
    begin: Callable[[AnyPlan], AnyPlan] = lambda plan: plan
    objection: Callable[[AnyPlan], str | None] = lambda plan: None


@dataclass(frozen=True)
class Ran(Generic[AnyPlan]):
    """A job that came to its end: its plan, what it measured, and the seconds that it took."""

    plan: AnyPlan
    found: Measured
    seconds: float


def launch(job: Job[AnyPlan], parser: ArgumentParser, argv: Sequence[str] | None) -> int:
    """Runs a job from its command line and gives its exit code.

    Args:
        job: see the class.
        parser: its flags.
        argv: the command line without the program's name; default this process's.
    """

    def work() -> int:
        args, options = parse(parser, argv)
        if args.verbose:
            print_messages()
        hint = "; with --resume the same command does only what is missing" if hasattr(args, "resume") else ""
        ran = run_job(job, parser.prog, argv, args, options, hint)
        return 0 if ran is None else _tell(job, parser.prog, args, ran)

    return command(parser.prog, argv, work)


def run_job(
    job: Job[AnyPlan],
    title: str,
    argv: Sequence[str] | None,
    args: argparse.Namespace,
    options: PipelineOptions,
    hint: str = "",
) -> Ran[AnyPlan] | None:
    """Plans, builds and runs one job of a command.

    Args:
        job: see the class.
        title: what its progress is shown under.
        argv: the command line, as in `launch`.
        args: the job's flags.
        options: Beam's.
        hint: how to go on where the job is ended.

    Returns:
        None where the job's graph is all that was asked for.

    Raises:
        UserError: if something is wrong before any work starts.
        JobError: if the job fails.
    """
    pipeline = _pipeline(options)
    if getattr(args, "summary", None):
        _check_summary(args.summary, options)
    plan = job.begin(job.resolve(args))
    job.build(pipeline, plan)
    start = time.perf_counter()
    with _running(title, argv, args, options, hint) as results:
        result = pipeline.run()
        results.append(result)
        template = options.view_as(GoogleCloudOptions).template_location
        if template:  # a Flex Template's launcher starts the job from this file once we are gone
            say(f"job graph {template}")
            return None
        result.wait_until_finish()
        found = measured(result)
    return Ran(plan, found, time.perf_counter() - start)


@contextmanager
def _running(
    title: str, argv: Sequence[str] | None, args: argparse.Namespace, options: PipelineOptions, hint: str
) -> Iterator[list[Any]]:
    """Shows progress, and tells in one line why an engine gave up, as most do when they lose a worker.

    Gives a list for Beam's result, which an engine can then be asked through how far it is.
    """
    runner = options.view_as(StandardOptions).runner
    local = runner == LOCAL_RUNNER
    processes = local and options.view_as(DirectOptions).direct_running_mode == "multi_processing"
    here = local or "prism" in runner.lower()
    remote = "" if here else f"; the job at {runner} goes on until you cancel it there"
    try:
        with ExitStack() as stack:
            stack.enter_context(on_ending(hint + remote, within_line=local and not processes))
            if processes and argv is None:
                stack.enter_context(workers_kept_quiet())
            results: list[Any] = []
            look = progress.here()
            if processes:
                stack.enter_context(local_workers.watched())
                stack.enter_context(metrics.shared_tally())
                look = progress.here()
            elif not local:

                def look() -> progress.Seen:
                    # Of a copy, since a result keeps the metrics that it gave first. An error until the job has begun.
                    return progress.Seen(measured(copy.copy(results[0])).counters, {})

            if local or here or has_job_server(runner):
                limited = getattr(args, "max_images", None) is not None
                work = _WORK.get(title, "working")
                times = 2 if title == "dot-fit" and args.degrade else 1  # the original and what is made of it
                form = "none" if getattr(args, "quiet", False) else getattr(args, "progress", "auto")
                stack.enter_context(progress.shown(form, title, work, look, limited, times))
            yield results
    except UserError as error:
        raise JobError(str(error)) from None
    except Exception as error:
        cause = told(error)
        if type(error).__name__ == "FutureTimeoutError":  # gRPC's, which says no more
            cause = f"no job server answered at {options.view_as(PortableOptions).job_endpoint or 'its endpoint'}"
        raise JobError(f"the job failed on {runner}: {cause.rstrip('.')}{hint}") from error


def _tell(job: Job[AnyPlan], prog: str, args: argparse.Namespace, ran: Ran[AnyPlan]) -> int:
    """Tells what a job did that came to its end, and gives its exit code. Trouble with telling doesn't change it."""
    found, seconds = ran.found, ran.seconds
    if args.summary:
        try:
            _check_replaced(args.summary)  # the job itself may have written there
            storage.write_bytes(args.summary, as_json(prog, found, seconds))
        except Exception as error:  # each store has its own errors
            complain(prog, f"--summary {args.summary}: not written ({told(error)})", "warning")
    wrong: str | None = None
    tell = (lambda text: None) if args.quiet else say
    try:
        tell(job.report(ran.plan, found.counters))
    except UserError as error:
        wrong = str(error)
    except Exception as error:  # it reads what the job wrote
        complain(prog, f"the results can't be read back ({told(error)})", "warning")
    tell(summary(found, seconds, stages=args.verbose))
    try:
        wrong = wrong or job.objection(ran.plan)
    except Exception as error:
        wrong = f"the results can't be judged ({told(error)})"
    too_few = failed_too_many(found.counters, args.max_failure_fraction, getattr(args, "plan", False))
    in_one_line = "; ".join(filter(None, [wrong, too_few]))
    if in_one_line:
        complain(prog, in_one_line)
    return int(bool(in_one_line))


def check_inputs(*flags: tuple[str, Sequence[str]], group_by: str | None = None) -> None:
    """Finds at least one image in every input, and in groups one that has a group.

    Raises:
        UserError: naming the flag and the input.
    """
    grouping = Grouping.parse(group_by) if group_by else None
    for flag, specs in flags:
        for spec in specs:
            ignored, first, problem = Ignored(), None, None
            for image in itertools.islice(listing.list_images(spec, grouping, ignored), _SEEN):
                problem = problem or image.problem
                if not image.problem:
                    first = image
                    if not grouping or image.group:
                        break
            if first is None:
                said = problem.message if problem else f"{spec}: no image matched; {_EXPECTED}"
                raise UserError(f"{flag} {said}{f' ({told_ignored(ignored.counts)})' if ignored.counts else ''}")
            if grouping and not first.group:
                raise UserError(f"--group_by {group_by}: none of the first images of {flag} {spec} has a group")


def failed_too_many(counters: Counters, max_failure_fraction: float, plan: bool = False) -> str | None:
    """Says if too many images failed, or none was done; a plan does none."""
    failed = counters.get(metrics.FAILURES, 0)
    done = sum(counters.get(name, 0) for name in DONE) - failed
    listed = counters.get(metrics.IMAGES_LISTED, 0) - counters.get(metrics.IMAGES_OLDER, 0)
    if failed > max_failure_fraction * listed:
        return (
            f"{failed} of {listed} images failed, over --max_failure_fraction {max_failure_fraction}; the failures' "
            "files say which and why"
        )
    unequal = counters.get(f"{metrics.FAILURES}_{Cause.SIZE_MISMATCH}", 0)
    if unequal and not counters.get(metrics.IMAGES_COMPARED):
        return f"none of {unequal} pairs could be compared: candidate and reference differ in size in all of them"
    if failed and not done and not plan:
        return f"none of {listed} images could be used: {failed} failed, and the failures' files say which and why"
    return None


def _check_summary(url: str, options: PipelineOptions) -> None:
    if options.view_as(GoogleCloudOptions).template_location:
        raise UserError(
            "--summary: leave it out with a template, whose launcher ends before the job; Dataflow shows the counters"
        )
    storage.check_writable(storage.parent(url))
    try:
        _check_replaced(url)
    except (OSError, UserError) as error:
        raise UserError(f"--summary {url}: {one_line(error)}") from None


def _check_replaced(summary_url: str) -> None:
    """Refuses to write a summary over anything but an earlier one.

    Raises:
        UserError: if there is something else.
        OSError: if it can't be read.
    """
    try:
        there = storage.read_bytes(summary_url, max_bytes=_LARGEST_SUMMARY)
    except FileNotFoundError:
        return
    except TooManyBytesError:
        there = b"too large"
    if there and not is_summary(there):
        raise UserError("is a file that isn't a summary; choose another name")


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
        said = f"unknown; did you mean {near[0]}?" if near and runner not in near else one_line(error)
        raise UserError(f"--runner {runner}: {said}") from None
