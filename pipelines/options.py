"""Beam's side of a command line: its flags, and those of them that our jobs refuse."""

import argparse
import contextlib
import io
from collections.abc import Sequence

from ot_core import UserError
from ot_core.choices import AUTO_DEVICE
from ot_core.groups import GROUP, Grouping, is_pattern
from pipelines.flags import ArgumentParser, beams_flags, has_job_server
from transforms.quiet_beam import DirectOptions, GoogleCloudOptions, PipelineOptions, StandardOptions, beam

#: Runs in this process and starts at once; Beam's default first looks for a Prism binary on the network.
LOCAL_RUNNER = "FnApiRunner"
#: Of one machine. Beam starts as many as it is told, at once.
_MOST_WORKERS = 1024


def check_group_by(args: argparse.Namespace) -> None:
    """Refuses groups without a name for each map, and the other way round.

    Raises:
        UserError: likewise if the flag says neither a column nor a folder.
    """
    if is_pattern(args.map) and not args.group_by:
        raise UserError(f"--map {args.map}: expected --group_by, which says what {GROUP} stands for")
    if args.group_by:
        Grouping.parse(args.group_by)
        if not is_pattern(args.map):
            raise UserError(f"--map {args.map}: expected {GROUP} in it, where the name of each group goes")


def on_accelerator(transform: beam.PTransform, args: argparse.Namespace) -> beam.PTransform:
    """The model's whole composite, with the resource hint of --accelerator.

    A hint on the model alone would tear it from the reads and writes around it, and pixels would cross a shuffle.
    """
    return transform.with_resource_hints(accelerator=args.accelerator) if args.accelerator else transform


def precision_of(args: argparse.Namespace) -> str | None:
    """What the transforms take; None means the device's fastest."""
    return None if args.precision == "auto" else str(args.precision)


def device_of(args: argparse.Namespace) -> str | None:
    """What the transforms take: a GPU that is asked for is used; None means what each worker has."""
    if getattr(args, "accelerator", None):
        return "cuda"
    return None if args.device == AUTO_DEVICE else str(args.device)


def device_here(args: argparse.Namespace) -> str | None:
    """The device of what is tried on the machine that launches: what it has, unless it is told to spare that."""
    return "cpu" if args.device == "cpu" else None


def device_elsewhere(args: argparse.Namespace) -> str | None:
    """The same for stages that --accelerator gives no GPU."""
    return None if getattr(args, "accelerator", None) else device_of(args)


def parse(parser: ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, PipelineOptions]:
    """Splits a command line into our flags and Beam's.

    Raises:
        UserError: for a bad value, a missing flag, or a flag that neither knows; suggests the nearest name.
    """
    words = parser.words(argv)
    beams = beams_flags() | {f"--{name}" for name in PipelineOptions([]).get_all_options()}
    parser.check_names(words, beams)
    args, rest = parser.parse_known_args(words)
    options = _beams(rest)
    standard = options.view_as(StandardOptions)
    standard.runner = standard.runner or LOCAL_RUNNER
    check_engine(args, options)
    if not has_job_server(standard.runner):
        _refuse_unknown(parser, rest)
    return args, options


def _beams(argv: Sequence[str]) -> PipelineOptions:
    """Beam's options, each of which it checks when it is first asked for one.

    Raises:
        UserError: for a bad value, where Beam would print a page of usage and end the process.
    """
    printed = io.StringIO()
    options = PipelineOptions(list(argv))
    try:
        with contextlib.redirect_stderr(printed):
            options.get_all_options()
    except SystemExit:
        raise UserError(printed.getvalue().strip().rpartition("error: ")[2] or "Beam doesn't take its flags") from None
    return options


def check_engine(args: argparse.Namespace, options: PipelineOptions) -> None:
    """Refuses what doesn't work on Beam's side, whatever the job.

    Raises:
        UserError: for runners that would lose images without a word, however they are spelt, for accelerators that
            are asked for twice, and for a number of workers that no machine has.
    """
    workers = options.view_as(DirectOptions).direct_num_workers
    if not 0 <= workers <= _MOST_WORKERS:
        raise UserError(f"--direct_num_workers {workers}: expected 1 to {_MOST_WORKERS}, or 0 for one a core")
    runner = options.view_as(StandardOptions).runner or ""
    if "dask" in runner.lower():
        raise UserError(
            f"--runner {runner}: Beam's DaskRunner loses images (it drops what a bundle gives at its end); use "
            "--direct_running_mode multi_processing --direct_num_workers N on one machine, FlinkRunner on several"
        )
    if getattr(args, "accelerator", None) and getattr(args, "device", None) not in (None, AUTO_DEVICE, "cuda"):
        raise UserError(f"--accelerator: gives the model's stage a GPU; expected no --device {args.device}")
    services = options.view_as(GoogleCloudOptions).dataflow_service_options or []
    if getattr(args, "accelerator", None) and any(service.startswith("worker_accelerator") for service in services):
        raise UserError("--accelerator: gives the model's stage its own workers; leave out worker_accelerator")


def _refuse_unknown(parser: ArgumentParser, rest: Sequence[str]) -> None:
    everything = set(PipelineOptions(rest).get_all_options(retain_unknown_options=True))
    unknown = [f"--{name}" for name in sorted(everything - set(PipelineOptions(rest).get_all_options()))]
    for word in [*unknown, *(token for token in rest[:1] if not token.startswith("-"))]:
        raise UserError(f"{word}: unknown flag; see {parser.prog} --help")
