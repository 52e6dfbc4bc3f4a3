"""Flags shared by the jobs, and the line between our flags and Beam's."""

import argparse
import contextlib
import difflib
import io
import math
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions, PipelineOptions, StandardOptions

from ot_core import UserError
from ot_core.autoencoder import PRECISIONS
from ot_core.groups import GROUP, Grouping, is_pattern
from ot_core.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS, HIGHEST_PIXEL_LIMIT

#: Runs in this process and starts at once; Beam's default first looks for a Prism binary on the network.
LOCAL_RUNNER = "FnApiRunner"
#: Of one machine. Beam starts as many as it is told, at once.
_MOST_WORKERS = 1024
_INPUT_HELP = (
    "a folder, a glob (** included), one image, or a list of URLs (.txt, .csv, .jsonl, .parquet with a column uri), "
    "local or at any fsspec URL; once or several times"
)

DEGRADATIONS = (
    "noise:25, jpeg:10, blur:1.6, bicubic:4, chains by commas, ranges such as jpeg:10-40, or package.module:function"
)


class ArgumentParser(argparse.ArgumentParser):
    """Refuses in one line, through UserError; accepts no abbreviations, and no empty text (`filled`)."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, allow_abbrev=False, epilog="Beam's own flags are passed on.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Takes --max-images for --max_images, too."""
        known = [option for action in self._actions for option in action.option_strings]
        return super().parse_known_args(_underscored(sys.argv[1:] if args is None else args, known), namespace)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """As argparse has it; text is `filled`, since nearly all of it names files."""
        if "choices" not in options and options.get("action") not in ("store_true", "help"):
            options.setdefault("type", filled)
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        """One line instead of a page of usage."""
        raise UserError(f"{message} (see {self.prog} --help)")


def filled(text: str) -> str:
    """An argparse type: a path, URL or name, which an unset variable of a shell would leave empty.

    Raises:
        argparse.ArgumentTypeError: if it is empty or blank, or not UTF-8, which Beam can't tell its workers.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("empty; expected a path or URL (is a variable unset?)")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a path or URL in UTF-8") from None
    return text


class Several(argparse.Action):
    """Values of a flag that may be given several times, as `--input` may: the given ones take the default's place."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """As argparse calls it."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), *values])


def add_input(parser: ArgumentParser, flag: str, what: str, required: bool = True) -> None:
    """A flag that names images."""
    parser.add_argument(
        flag, required=required, nargs="+", action="extend", metavar="URL", help=f"{what}: {_INPUT_HELP}"
    )


def add_common(parser: ArgumentParser, precision: str = "float32") -> None:
    """Flags that every job has; precision is the default."""
    add_model(parser, precision)
    parser.add_argument(
        "--summary",
        metavar="URL",
        help="JSON file to write as well, of how many images came to what (default: none)",
    )


def add_model(parser: ArgumentParser, precision: str = "float32") -> None:
    """Flags of the autoencoder, and of which images are too much; precision is the default."""
    parser.add_argument(
        "--vae",
        metavar="SPEC",
        help="autoencoder: a folder or URL in diffusers' format, a hub id (owner/name[/subfolder]), or your own as "
        "package.module:factory; default the small one that ships with the package",
    )
    parser.add_argument(
        "--max_pixels",
        type=number(int, 1, HIGHEST_PIXEL_LIMIT),
        default=DEFAULT_MAX_PIXELS,
        help="images with more are failures (default %(default)s)",
    )
    parser.add_argument(
        "--max_bytes",
        type=number(int, 1),
        default=DEFAULT_MAX_BYTES,
        help="larger files, members of tar files and cells of Parquet files are failures (default %(default)s)",
    )
    parser.add_argument(
        "--max_batch_pixels",
        type=number(int, 0),
        help="pixels that the model works on at once; smaller images are batched, and larger ones done in overlapping "
        "tiles of 262144 or more (default: 4194304 on a GPU; on a CPU one image, in tiles above 1048576)",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default=precision,
        help="of the autoencoder; auto: bfloat16 where the device computes in it natively, else float32 "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--max_failure_fraction",
        type=number(float, 0, 1),
        default=0.5,
        help="exit with 1 if a larger share of the images failed; everything is written all the same "
        "(default %(default)s)",
    )


def add_restorer(parser: ArgumentParser, what: str, others: bool = True) -> None:
    """The flags of jobs that restore images themselves; others: that may have been fitted for another restorer."""
    parser.add_argument(
        "--restorer",
        metavar="SPEC",
        help=f"a model that restores {what} first: weights of a network that spandrel knows (.safetensors, .pth), an "
        "ONNX model (.onnx), local, at any fsspec URL or on the hub (owner/name/file); package.module:factory; or "
        "bicubic:SCALE (default: they are restored already)",
    )
    if others:
        parser.add_argument(
            "--allow_other_restorer",
            action="store_true",
            help="take statistics and maps of another restorer than --restorer (default: refuse)",
        )


def add_group_by(parser: ArgumentParser) -> None:
    """The flag of jobs that know groups of images, each with a map of its own; see `check_group_by`."""
    parser.add_argument(
        "--group_by",
        metavar="SPEC",
        help="what tells an image's group, each of which has a map: folder:N, the N-th folder of its key (folder:1 is "
        "the first below the input's root), or column:NAME, a column of the lists; {group} in --map is its name",
    )


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


def add_accelerator(parser: ArgumentParser) -> None:
    """The flag of jobs whose model may have workers of its own; see `on_accelerator`."""
    parser.add_argument(
        "--accelerator",
        metavar="HINT",
        help="workers with such a GPU for the stage of the model alone, where the runner can (Dataflow): for example "
        "'type:nvidia-l4;count:1;install-nvidia-driver'",
    )


def on_accelerator(transform: beam.PTransform, args: argparse.Namespace) -> beam.PTransform:
    """The model's whole composite, with the resource hint of --accelerator.

    A hint on the model alone would tear it from the reads and writes around it, and pixels would cross a shuffle.
    """
    return transform.with_resource_hints(accelerator=args.accelerator) if args.accelerator else transform


def precision_of(args: argparse.Namespace) -> str | None:
    """What the transforms take; None means the device's fastest."""
    return None if args.precision == "auto" else str(args.precision)


def number(kind: Callable[[str], Any], low: float = -math.inf, high: float = math.inf) -> Callable[[str], Any]:
    """An argparse type: a finite number between two bounds, both included."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(f"{text}: expected a number from {low} to {high}")
        return value

    parse.__name__ = kind.__name__  # argparse names the type in its message
    return parse


def parse(parser: ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, PipelineOptions]:
    """Splits a command line into our flags and Beam's.

    Raises:
        UserError: for a bad value, a missing flag, or a flag that neither knows; suggests the nearest name.
    """
    ours = [option for action in parser._actions for option in action.option_strings]
    beams = ["--" + name for name in PipelineOptions([]).get_all_options()]
    argv = _underscored(sys.argv[1:] if argv is None else argv, ours + beams)
    for flag in (token.split("=")[0] for token in argv if token.startswith("--")):
        near_ours = difflib.get_close_matches(flag, ours, n=1, cutoff=0.8)
        if near_ours and flag not in ours + beams:
            raise UserError(f"{flag}: unknown flag; did you mean {near_ours[0]}?")
    args, rest = parser.parse_known_args(argv)
    options = _beams(rest)
    standard = options.view_as(StandardOptions)
    standard.runner = standard.runner or LOCAL_RUNNER
    check_engine(args, options)
    if not _has_job_server(standard.runner):
        _refuse_unknown(parser, rest, ours + beams)
    return args, options


def _underscored(argv: Sequence[str], known: Collection[str]) -> list[str]:
    """Flags with dashes within, as other programs have them, by the names that are known."""
    found = []
    for token in argv:
        flag, equals, value = token.partition("=")
        name = "--" + flag[2:].replace("-", "_")
        found.append(name + equals + value if flag.startswith("--") and name in known else token)
    return found


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
    services = options.view_as(GoogleCloudOptions).dataflow_service_options or []
    if getattr(args, "accelerator", None) and any(service.startswith("worker_accelerator") for service in services):
        raise UserError("--accelerator: gives the model's stage its own workers; leave out worker_accelerator")


def _has_job_server(runner: str) -> bool:
    """Portable runners know flags that Python doesn't: their job server describes them."""
    return any(name in runner.lower() for name in ("portable", "flink", "spark"))


def _refuse_unknown(parser: ArgumentParser, rest: Sequence[str], known: Sequence[str]) -> None:
    everything = set(PipelineOptions(rest).get_all_options(retain_unknown_options=True))
    unknown = sorted(everything - set(PipelineOptions(rest).get_all_options()))
    stray = [token for token in rest[:1] if not token.startswith("-")]
    if unknown or stray:
        flag = "--" + unknown[0] if unknown else stray[0]
        near = difflib.get_close_matches(flag, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"see {parser.prog} --help"
        raise UserError(f"{flag}: unknown flag; {hint}")
