"""Tells whether transport would help: fits on half of a few photographs, and tries the other half.

ListImages -> ReadImages -> central crops -> DegradeImages -> WriteImages, below work/
half of them -> dot-fit -> map.safetensors ; the others -> dot-transport -> dot-evaluate -> report.html
and before-after.png
"""

import argparse
import hashlib
import itertools
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np

from ot_core import UserError, listing, load_autoencoder, storage
from ot_core.errors import one_line
from ot_core.layout import FAILURES, IMAGES, PAGE, QUALITY, TOTALS, OutputLayout, alpha_name
from pipelines import evaluate, fit, options, parsers, transport
from pipelines.apart import check_apart
from pipelines.command import JobError, command, complain, say
from pipelines.launch import AnyPlan, Job, Ran, check_inputs, failed_too_many, run_job
from pipelines.parsers import FEWEST
from pipelines.sheet import draw_sheet
from pipelines.summary import Counters
from transforms import DegradeImages, ListImages, LoadedImage, ReadImages, WriteFailures, WriteImages, metrics
from transforms.quiet_beam import PipelineOptions, beam

parser = parsers.trial
#: Half-way, fully, and as restored, which is the alpha that the others are compared with.
ALPHAS = (0.0, 0.5, 1.0)
TRIAL, WORK, MAP, SHEET = "trial.json", "work", "map.safetensors", "before-after.png"
_OF_MAP, _OF_PHOTOGRAPHS = "map.failures", "photographs.failures"
#: Names of what a trial writes.
_WRITTEN = re.compile(
    rf"{WORK}|({TRIAL}|{MAP}|{SHEET}|{PAGE}|{TOTALS})".replace(".", r"\.")
    + rf"|({QUALITY}|{FAILURES}|{_OF_MAP}|{_OF_PHOTOGRAPHS})-\d+-of-\d+\.parquet"
)
_NATURAL, _DEGRADED, _ENHANCED = "natural", "degraded", "enhanced"
#: Flags that all steps share.
_SHARED = (
    *("vae", "precision", "device", "max_pixels", "max_bytes", "max_batch_pixels", "max_failure_fraction"),
    *("progress", "quiet", "verbose"),
)


@dataclass(frozen=True)
class Plan:
    """A trial, as its flags say.

    Attributes:
        args: the flags.
        restorer: the given one, or where none is given and one is needed, that.
        taken: names of what an earlier trial left in the report.
    """

    args: argparse.Namespace
    restorer: str | None
    taken: Sequence[str]


def resolve(args: argparse.Namespace) -> Plan:
    """The plan, of which anything that is wrong is told before any work starts."""
    below = [
        storage.join(args.report, name) for name in (SHEET, f"{WORK}/0.png", f"{WORK}/0/0.png", f"{WORK}/0/0/0.png")
    ]
    inputs = [("--natural", spec) for spec in args.natural]
    check_apart(inputs, f"--report {args.report}", [storage.join(args.report, WORK)], below)
    restorer = fit.restorer_for(args.degrade, args.restorer, options.device_here(args))
    load_autoencoder(args.vae, options.device_here(args), options.precision_of(args))
    check_inputs(("--natural", args.natural))
    listed = (image for spec in args.natural for image in listing.list_images(spec) if not image.problem)
    _check_enough(len(list(itertools.islice(listed, FEWEST))))
    return Plan(args, restorer, _taken(args))


def _check_enough(found: int) -> None:
    if found < FEWEST:
        raise UserError(f"--natural: {found} photographs could be used; expected {FEWEST} or more, better 30")


def _taken(args: argparse.Namespace) -> list[str]:
    """Names of what an earlier trial left in the report.

    Raises:
        UserError: if it is of something else, or may not be removed.
    """
    try:
        taken = sorted(filter(_WRITTEN.fullmatch, storage.children(args.report)))
    except OSError as error:
        raise UserError(f"--report {args.report}: can't be listed ({one_line(error)})") from None
    if taken and not _is_trial(storage.join(args.report, TRIAL)):
        raise UserError(f"--report {args.report}: {taken[0]} there isn't part of a trial; use another --report")
    if taken and not args.overwrite:
        raise UserError(f"--report {args.report}: holds a trial; use another one, or --overwrite to replace it")
    return taken


def begin(plan: Plan) -> Plan:
    """Marks the report as a trial's, and removes what an earlier trial left there."""
    args = plan.args
    storage.check_writable(args.report)
    settings = {name: getattr(args, name) for name in ("natural", "degrade", "vae", "max_images", "crop")}
    marker = storage.join(args.report, TRIAL)
    storage.write_bytes(marker, json.dumps({**settings, "restorer": plan.restorer}, indent=1).encode())
    storage.remove_folder(storage.join(args.report, WORK))
    for name in plan.taken:
        if name not in (TRIAL, WORK):
            storage.remove(storage.join(args.report, name))
    return plan


def _is_trial(marker: str) -> bool:
    try:
        found = json.loads(storage.read_bytes(marker, max_bytes=2**20))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(found, dict) and {"natural", "degrade", "crop"} <= found.keys()


def build(pipeline: beam.Pipeline, plan: Plan) -> None:
    """The photographs, and degraded ones, as files below work/."""
    args = plan.args
    limits = {"max_pixels": args.max_pixels, "max_bytes": args.max_bytes}
    refs, unlisted = pipeline | "ListImages" >> ListImages(args.natural, args.max_images, **limits)
    images, unread = refs | "ReadImages" >> ReadImages(**limits)
    cropped = images | "Crop" >> beam.Map(_cropped, args.crop).with_output_types(LoadedImage)
    both, undegraded = cropped | "DegradeImages" >> DegradeImages(args.degrade, _NATURAL, _DEGRADED)
    failures = [unlisted, unread, undegraded]
    for side in (_NATURAL, _DEGRADED):
        of_side = both | f"Is_{side}" >> beam.Filter(_is_of, side).with_output_types(LoadedImage)
        _, unwritten = of_side | f"Write_{side}" >> WriteImages(storage.join(args.report, WORK, side))
        failures.append(unwritten)
    all_failures = failures | "FlattenFailures" >> beam.Flatten()
    _ = all_failures | "WriteFailures" >> WriteFailures(args.report, name=_OF_PHOTOGRAPHS)


def _cropped(loaded: LoadedImage, side: int) -> LoadedImage:
    """The middle of an image, as the natural side."""
    image = loaded.image
    part = tuple(slice(max(0, (length - side) // 2), max(0, (length - side) // 2) + side) for length in loaded.size)
    transparency = None if image.transparency is None else image.transparency[part]
    ref = loaded.ref._replace(side=_NATURAL)
    return loaded._replace(
        ref=ref, image=replace(image, pixels=np.ascontiguousarray(image.pixels[part]), transparency=transparency)
    )


def _is_of(loaded: LoadedImage, side: str) -> bool:
    return loaded.ref.side == side


class _Steps:
    """Runs one job after the other.

    Attributes:
        code: exit code so far.
        failures: how many images of each step could not be used.
    """

    def __init__(self, prog: str, argv: Sequence[str] | None, args: argparse.Namespace, beams: PipelineOptions) -> None:
        self._prog, self._argv, self._args, self._beams = prog, argv, args, beams
        self.code, self.failures = 0, dict[str, int]()

    def run(self, job: Job[AnyPlan], title: str, flags: argparse.Namespace) -> Ran[AnyPlan]:
        """Runs a job and complains where too many images fail in it."""
        ran = run_job(job, f"{self._prog}: {title}", self._argv, flags, self._beams)
        if ran is None:
            raise UserError("--template_location: leave it out, since a trial is several jobs")
        counters = ran.found.counters
        self.failures[title] = counters.get(metrics.FAILURES, 0)
        problem = failed_too_many(counters, self._args.max_failure_fraction)
        if problem:
            complain(self._prog, f"{title}: {problem}")
            self.code = 1
        return ran

    def run_command(self, command: ModuleType, title: str, *arguments: str) -> str:
        """Runs a job as its command does; gives what it reports."""
        given = vars(command.parser().parse_args(list(arguments)))
        shared = {name: getattr(self._args, name) for name in _SHARED}
        if command is evaluate:
            shared["vae"] = None  # the judge is the default autoencoder, whichever transports
        flags = argparse.Namespace(**{**given, **shared})
        ran = self.run(command.job, title, flags)
        try:
            told: str = command.job.report(ran.plan, ran.found.counters)
        except UserError as error:  # it came to nothing
            raise JobError(f"{title}: {error}") from None
        return told


def run(prog: str, argv: Sequence[str] | None) -> int:
    """The trial from end to end."""
    args, beams = options.parse(parser(), argv)
    start, steps = time.perf_counter(), _Steps(prog, argv, args, beams)
    plan = steps.run(job, "degrade", args).plan
    fitted, tried = _halves(args.report)
    restored = ["--restorer", plan.restorer] if plan.restorer else []
    work, map_url = storage.join(args.report, WORK), storage.join(args.report, MAP)
    natural, output = _list(work, _NATURAL, "fitted", fitted), storage.join(work, _ENHANCED)
    steps.run_command(fit, "fit", "--target", natural, "--degrade", args.degrade, *restored, "--map", map_url)
    degraded, alphas = _list(work, _DEGRADED, "tried", tried), map(str, ALPHAS)
    inputs = ["--input", degraded, *restored]
    steps.run_command(transport, "transport", *inputs, "--map", map_url, "--output", output, "--alpha", *alphas)
    originals = _list(work, _NATURAL, "tried", tried)
    candidates = ["--candidate", f"{_ENHANCED}={output}"]
    told = steps.run_command(evaluate, "evaluate", "--reference", originals, *candidates, "--report", args.report)
    sheet = _sheet(plan, work)
    if args.quiet:
        return steps.code
    say(told)
    say("  alpha 1.00 is what the restorer made" if plan.restorer else "  alpha 1.00 is what --degrade made")
    say(f"fitted on {len(fitted)} photographs, tried on {len(tried)} others")
    for step, failed in steps.failures.items():
        if failed:
            say(f"  {failed} failures in the step {step}, see the failures-*.parquet below {args.report}")
    say(f"map {map_url}\nlook at {sheet}\n{time.perf_counter() - start:.0f} s")
    return steps.code


def _halves(report: str) -> tuple[list[str], list[str]]:
    """Keys of the photographs to fit on and of those to try it on, by their hash: the same in every run."""
    folder = storage.join(report, WORK, _NATURAL, IMAGES)
    keys = sorted((image.key for image in listing.list_folder(folder)), key=_hash)
    _check_enough(len(keys))
    return keys[::2], keys[1::2]


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _list(work: str, side: str, name: str, keys: Sequence[str]) -> str:
    """Writes a list of images, as the jobs take it; gives its URL."""
    url = storage.join(work, side, f"{name}.jsonl")
    rows = (json.dumps({"uri": f"{IMAGES}/{key}.png", "key": key}) for key in keys)
    storage.write_bytes(url, "\n".join(rows).encode())
    return url


def _sheet(plan: Plan, work: str) -> str:
    """Draws the sheet; gives its URL."""
    report = plan.args.report
    url, layout = storage.join(report, SHEET), OutputLayout.of(storage.join(work, _ENHANCED), ALPHAS)
    folders = {"degraded": storage.join(work, _DEGRADED, IMAGES)}
    folders |= {"restored": layout.folder(1.0)} if plan.restorer else {}
    folders |= {"transported, alpha 0.5": layout.folder(0.5), "transported, alpha 0": layout.folder(0.0)}
    folders |= {"original": storage.join(work, _NATURAL, IMAGES)}
    draw_sheet(folders, report, f"{_ENHANCED} {alpha_name(0.0)}", url)
    return url


def _report(plan: Plan, counters: Counters) -> str:
    return ""  # the trial tells of all its jobs at its end


job = Job(resolve, build, _report, begin)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the trial; returns its exit code."""
    return command("dot-trial", argv, lambda: run("dot-trial", argv))


if __name__ == "__main__":
    sys.exit(main())
