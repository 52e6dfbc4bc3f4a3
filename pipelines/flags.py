"""The flags of the commands: what they have in common, and how a command line is checked before Beam is there."""

import argparse
import difflib
import functools
import importlib.util
import itertools
import math
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ot_core import __version__, storage
from ot_core.choices import AUTO_DEVICE, DEVICES, PRECISIONS
from ot_core.errors import UserError, one_line
from ot_core.images import DEFAULT_MAX_BYTES, DEFAULT_MAX_PIXELS, HIGHEST_PIXEL_LIMIT

_INPUT_HELP = (
    "a folder, a glob (** included), one image, or a list of URLs (.txt, .csv, .jsonl, .parquet with a column uri), "
    "local or at any fsspec URL; once or several times"
)

#: Destinations of flags that say nothing of the job.
_OF_EVERY_COMMAND = ("help", "version", "config")

DEGRADATIONS = (
    "noise:25, jpeg:10, blur:1.6, bicubic:4, several after each other (blur:1.6,jpeg:10), a range (jpeg:10-40), or "
    "package.module:function"
)


#: A parser, or a group of its flags.
Flags = argparse._ActionsContainer


class ArgumentParser(argparse.ArgumentParser):
    """Refuses in one line, through UserError; accepts no abbreviations, and no empty text (`filled`).

    Args:
        prog: the command's name.
        description: what it does, in a sentence.
        example: command lines, one to a line.
        on_beam: whether Beam's flags belong to it as well.
    """

    def __init__(self, prog: str, description: str, example: str = "", on_beam: bool = True) -> None:
        ends = [f"example:\n{textwrap.indent(example, '  ')}"] if example else []
        ends += ["Beam's own flags are passed on."] if on_beam else []
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(
            prog, description=description, allow_abbrev=False, epilog="\n\n".join(ends), formatter_class=layout
        )
        self.on_beam = on_beam
        self.register("type", None, filled)  # nearly all text names files
        self.add_argument("--version", action="version", version=f"{prog} {__version__}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Takes --max-images for --max_images, too."""
        known = [option for action in self._actions for option in action.option_strings]
        return super().parse_known_args(_underscored(sys.argv[1:] if args is None else args, known), namespace)

    def error(self, message: str) -> NoReturn:
        """Raises one line instead of printing a page of usage."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def flags(self) -> dict[str, argparse.Action]:
        """The job's own flags, by name."""
        return {action.dest: action for action in self._actions if action.dest not in _OF_EVERY_COMMAND}

    def words(self, argv: Sequence[str] | None) -> list[str]:
        """A command line with the flags of its --config before its own; those that it has itself are left out.

        Args:
            argv: the command line; default that of this process.

        Raises:
            UserError: if the file can't be read, or holds something else than values of flags.
        """
        known = [option for action in self._actions for option in action.option_strings]
        known += beams_flags() if self.on_beam else ()
        found = _underscored(sys.argv[1:] if argv is None else argv, known)
        if "config" not in {action.dest for action in self._actions}:
            return found
        config = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        config.add_argument("--config", action="append", default=[])
        with suppress(argparse.ArgumentError):  # a value is missing, which the whole command line will tell
            urls, found = config.parse_known_args(found)
            given = {token.partition("=")[0] for token in found if token.startswith("--")}
            for url in reversed(urls.config):  # of several files the last one wins
                held = {flag: words for flag, words in self._held_in(url).items() if flag not in given}
                given |= held.keys()
                found = [word for words in held.values() for word in words] + found
        return found

    def _held_in(self, url: str) -> dict[str, list[str]]:
        """The words of each flag that a file holds."""
        try:
            held = yaml.safe_load(storage.read_bytes(url))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"--config {url}: is not YAML ({' '.join(str(error).split())})") from None
        except FileNotFoundError:
            raise UserError(f"--config {url}: not found") from None
        except OSError as error:
            raise UserError(f"--config {url}: can't be read ({one_line(error)})") from None
        if not isinstance(held, dict):
            raise UserError(f"--config {url}: expected the names of flags and their values, such as `alpha: 0.5`")
        ours = {option: action for action in self._actions for option in action.option_strings}
        found = {}
        for name, value in held.items():
            flag = "--" + str(name).replace("-", "_")
            if flag not in ours and not (self.on_beam and flag in beams_flags()):
                raise UserError(f"--config {url}: {name}: unknown flag{self._hint(flag)}")
            try:
                found[flag] = _words(flag, ours.get(flag), value)
            except ValueError as error:
                raise UserError(f"--config {url}: {name}: {error}") from None
        return found

    def check(self, argv: Sequence[str] | None) -> None:
        """Refuses a wrong command line, as far as that can be known without Beam.

        Raises:
            UserError: for an unknown flag, a bad value, or a missing flag.
        """
        words = self.words(argv)
        self.check_names(words, beams_flags() if self.on_beam else ())
        self.parse_known_args(words)

    def check_names(self, words: Sequence[str], others: Collection[str]) -> None:
        """Refuses flags that are neither ours nor among others. A runner with a job server may know more.

        Raises:
            UserError: naming the flag, and the nearest one.
        """
        ours = [option for action in self._actions for option in action.option_strings]
        runners = [after for word, after in itertools.pairwise([*words, ""]) if word == "--runner"]
        runners += [word for word in words if word.startswith("--runner=")]
        foreign = any(has_job_server(runner) for runner in runners)
        for flag in (word.partition("=")[0] for word in words if word.startswith("--") and word != "--"):
            if flag in ours or flag in others:
                continue
            near = difflib.get_close_matches(flag, ours, n=1, cutoff=0.8)
            if near or not foreign:
                raise UserError(f"{flag}: unknown flag{self._hint(flag)}")

    def _hint(self, flag: str) -> str:
        ours = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, ours, n=1, cutoff=0.8) or difflib.get_close_matches(
            flag, [*ours, *(beams_flags() if self.on_beam else ())], n=1
        )
        return f"; did you mean {near[0]}?" if near else f"; see {self.prog} --help"


def has_job_server(runner: str) -> bool:
    """Whether a runner has a job server, which knows flags that Python doesn't."""
    return any(name in runner.lower() for name in ("portable", "flink", "spark"))


@functools.cache
def beams_flags() -> frozenset[str]:
    """Names of Beam's flags, read from its source: importing Beam takes a hundred times as long."""
    found = importlib.util.find_spec("apache_beam")
    assert found is not None
    assert found.submodule_search_locations is not None
    source = Path(found.submodule_search_locations[0], "options", "pipeline_options.py").read_text(encoding="utf-8")
    return frozenset(re.findall(r"""(?:add_argument\(|^)\s*['"](--[\w-]+)['"],""", source, re.MULTILINE))


def _words(flag: str, action: argparse.Action | None, value: Any) -> list[str]:
    """Turns a value of YAML into words of a command line.

    Raises:
        ValueError: if it can't.
    """
    if value is None or value is False:
        return []
    if value is True:
        if action is not None and action.nargs != 0:
            raise ValueError("expected a value, not true")
        return [flag]
    if action is not None and action.nargs == 0:
        raise ValueError(f"expected true or false, not {value!r}")
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, bool) or not isinstance(each, str | int | float) for each in values):
        raise ValueError(f"expected text or numbers, not {value!r} (a date is text in quotes)")
    if action is None or action.nargs is None:
        return [f"{flag}={each}" for each in values]
    return [flag, *map(str, values)]


def filled(text: str) -> str:
    """An argparse type: a path, URL or name. It is empty where a shell's variable is unset, which is refused.

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
    """Values of a flag that may be given several times, as `--input` may. Given values replace the default."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """As argparse calls it."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), *values])


def add_input(parser: Flags, flag: str, what: str, required: bool = True) -> None:
    """A flag that names images."""
    parser.add_argument(
        flag, required=required, nargs="+", action="extend", metavar="URL", help=f"{what}: {_INPUT_HELP}"
    )


def add_model(parser: Flags, precision: str = "float32") -> None:
    """Flags of the autoencoder; precision is the default."""
    parser.add_argument(
        "--vae",
        metavar="SPEC",
        help="autoencoder: a folder or URL in diffusers' format, a hub id (owner/name[/subfolder]), or your own as "
        "package.module:factory; default the small one that ships with the package",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default=precision,
        help="precision of the autoencoder; auto is bfloat16 where the device has it natively, float16 on a T4 or "
        "V100, else float32 (default %(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default=AUTO_DEVICE,
        help="where models compute: a worker that has no such device fails. auto is a CUDA device where there is one, "
        "else the CPU (default %(default)s; cuda with --accelerator)",
    )


def add_limits(parser: Flags) -> None:
    """Limits: of an image, of what is done at once, and of failures."""
    parser.add_argument(
        "--max_pixels",
        type=number(int, 1, HIGHEST_PIXEL_LIMIT),
        default=DEFAULT_MAX_PIXELS,
        metavar="N",
        help="images with more pixels are failures (default %(default)s)",
    )
    parser.add_argument(
        "--max_bytes",
        type=number(int, 1),
        default=DEFAULT_MAX_BYTES,
        metavar="N",
        help="images whose file, member of a tar file or cell of a Parquet file is larger are failures (default "
        "%(default)s)",
    )
    parser.add_argument(
        "--max_batch_pixels",
        type=number(int, 0),
        metavar="N",
        help="pixels that the model works on at once: smaller images are batched, larger ones are cut into overlapping "
        "tiles of 262144 or more (default: 4194304 on a GPU; on a CPU one image, in tiles above 1048576)",
    )
    parser.add_argument(
        "--max_failure_fraction",
        type=number(float, 0, 1),
        default=0.5,
        metavar="X",
        help="exit with 1 if a larger share of the images failed. Everything is written all the same "
        "(default %(default)s)",
    )


def add_run(parser: Flags, summary: bool = True) -> None:
    """Flags of how a command runs and what it tells."""
    parser.add_argument(
        "--config", metavar="URL", help="YAML file of flags and their values; the command line wins over it"
    )
    add_telling(parser)
    if summary:
        parser.add_argument(
            "--summary",
            metavar="URL",
            help="JSON file to write the summary to as well (default: none)",
        )


def add_telling(parser: Flags) -> None:
    """Flags of how much a command tells."""
    parser.add_argument(
        "--progress",
        choices=("auto", "json", "none"),
        default="auto",
        help="how to tell on stderr how far the job is: auto draws a bar at a terminal and prints lines to a log, json "
        "prints an object a line (default %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but what is wrong")
    parser.add_argument(
        "--verbose", action="store_true", help="also print Beam's messages, and the seconds of each stage"
    )


def add_restorer(parser: Flags, what: str) -> None:
    """The flag of jobs that restore images themselves."""
    parser.add_argument(
        "--restorer",
        metavar="SPEC",
        help=f"a model that restores {what} first: weights of a network that spandrel knows (.safetensors, .pth), an "
        "ONNX model (.onnx), local, at any fsspec URL or on the hub (owner/name/file); package.module:factory; or "
        "bicubic:SCALE (default: they are restored already)",
    )


def add_other_restorer(parser: Flags) -> None:
    """The flag of jobs whose maps and statistics may be of another restorer."""
    parser.add_argument(
        "--allow_other_restorer",
        action="store_true",
        help="accept statistics and maps of another restorer than --restorer (default: refuse them)",
    )


def add_group_by(parser: Flags) -> None:
    """The flag of jobs that know groups of images, each with a map of its own."""
    parser.add_argument(
        "--group_by",
        metavar="SPEC",
        help="use a map for each group of images. folder:N takes the N-th folder of a key as the group (folder:1 is "
        "the first below the input's root), column:NAME a column of the lists. {group} in --map is the group's name",
    )


def add_accelerator(parser: Flags) -> None:
    """The flag of jobs whose model may run on workers of its own."""
    parser.add_argument(
        "--accelerator",
        metavar="HINT",
        help="GPU for the workers of the model's stage alone, where the runner can do that (Dataflow), such as "
        "'type:nvidia-l4;count:1;install-nvidia-driver'",
    )


def number(kind: Callable[[str], Any], low: float = -math.inf, high: float = math.inf) -> Callable[[str], Any]:
    """An argparse type: a finite number between two bounds, both included."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(f"{text}: expected a number from {low} to {high}")
        return value

    parse.__name__ = kind.__name__  # argparse names the type in its message
    return parse


def _underscored(argv: Sequence[str], known: Collection[str]) -> list[str]:
    """Replaces dashes within known flags by underscores: other programs spell them so."""
    found = []
    for token in argv:
        flag, equals, value = token.partition("=")
        name = "--" + flag[2:].replace("-", "_")
        found.append(name + equals + value if flag.startswith("--") and name in known else token)
    return found
