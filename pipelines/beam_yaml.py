"""The jobs as transforms of Beam YAML, named in `deploy/yaml/providers.yaml`.

A transform's parameters are flags of the command, and its parser checks them. Rows go in and come out.
"""

import argparse
import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, NamedTuple, Union

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import named_fields_from_element_type

import transforms
from ot_core import UserError, storage
from pipelines import evaluate, fit, options, transport
from pipelines.causes import cause_of
from pipelines.command import told
from pipelines.flags import ArgumentParser
from pipelines.launch import check_inputs
from transforms import Failure, ImageQuality, ImageRecord, ImageRef

#: A transform's rows and its failures.
Wired = tuple[beam.PCollection[Any], Sequence[beam.PCollection[Failure]]]
#: Flags that are about the end of a command, which Beam YAML doesn't wait for.
_OF_COMMANDS = ("max_failure_fraction", "max_drift", "summary", "progress", "quiet", "verbose")


class File(NamedTuple):
    """A row for a file written."""

    url: str


class _YamlTransform(beam.PTransform):
    """What Beam YAML makes of its `config`: checks it, then turns rows into our elements and back.

    The outputs are named: the rows by the class, the failures by `error_handling`, else `failures`.

    Args:
        error_handling: `{output: NAME}`, as Beam's own transforms take it.
        **parameters: flags by name; None is as good as none.

    Raises:
        UserError: one line that names the parameter.
    """

    #: The rows that go in, if any, and come out: the name of that output, and their class.
    takes: ClassVar[Any] = None
    gives: ClassVar[tuple[str, Any]]

    def __init__(self, error_handling: Mapping[str, Any] | None = None, **parameters: Any) -> None:
        super().__init__()
        self._failures = _output_of(error_handling, self.gives[0])
        self._flags = self.flags()
        with _told_as_parameters(self._flags):
            self._args = _parse(self._flags, parameters)

    @classmethod
    def flags(cls) -> ArgumentParser:
        """The parameters."""
        raise NotImplementedError

    def wire(self, given: Any, args: argparse.Namespace) -> Wired:
        """Checks what can be known before any work starts, then applies the transforms."""
        raise NotImplementedError

    @no_annotations
    def expand(self, given: Any) -> dict[str, beam.PCollection[Any]]:
        """From rows to rows."""
        with _told_as_parameters(self._flags):
            options.check_engine(self._args, given.pipeline.options)
            rows, failures = self.wire(_elements(given, self.takes) if self.takes else given, self._args)
        name, row_type = self.gives
        outputs = {name: _rows(rows, name, row_type)}
        if failures:
            all_failures = tuple(failures) | "AllFailures" >> beam.Flatten()
            outputs[self._failures] = _rows(all_failures, "failures", Failure)
        return outputs


class ListImages(_YamlTransform):
    """Lists images: a row of `images` for each key.

    Args:
        inputs: a URL, a list of them, or either for each of several sides.
        group_by: what tells the group of an image, of all sides or for some of several.
        **parameters: of `dot-fit` and `dot-transport`; also `versions` (see `transforms.ListImages`).
    """

    gives = ("images", ImageRef)
    _yaml_requires_inputs = False

    def __init__(self, inputs: Any = None, group_by: Any = None, **parameters: Any) -> None:
        self._inputs = _sides_of(inputs)
        self._group_by = group_by if isinstance(group_by, Mapping) else dict.fromkeys(self._inputs, group_by)
        super().__init__(**parameters)

    @classmethod
    def flags(cls) -> ArgumentParser:
        """The parameters."""
        flags = _flags_of(fit.parser(), only=("max_images", "paired", "max_pixels", "max_bytes"))
        flags._add_action(transport.parser().flags()["since"])
        flags.add_argument("--versions", action="store_true")
        for name in ("--inputs", "--group_by"):
            flags.add_argument(name)  # checked by itself, since a flag can't hold sides; here so that it is known
        return flags

    def wire(self, given: Any, args: argparse.Namespace) -> Wired:
        """See the class."""
        group_by = {side: str(spec) for side, spec in self._group_by.items() if spec}
        for side, specs in self._inputs.items():
            check_inputs((f"inputs {side}".strip(), specs), group_by=group_by.get(side))
        listed = transforms.ListImages(
            self._inputs,
            args.max_images,
            args.paired,
            args.versions,
            args.since,
            group_by,
            args.max_pixels,
            args.max_bytes,
        )
        images, failures = given | "ListImages" >> listed
        return images, (failures,)


class FitTransportMap(_YamlTransform):
    """Fits a map from images of the sides `source` and `target`, and writes it: a row of `maps`."""

    takes = ImageRef
    gives = ("maps", File)

    @classmethod
    def flags(cls) -> ArgumentParser:
        """The parameters."""
        listing = ("target", "source", "max_images", "group_by")
        return _flags_of(fit.parser(), but=(*listing, *_OF_COMMANDS))

    def wire(self, given: Any, args: argparse.Namespace) -> Wired:
        """See the class."""
        urls, failures = fit.fit_map(given, fit.resolve_output(args))
        return urls | "Files" >> beam.Map(File), failures


class TransportImages(_YamlTransform):
    """Transports images and writes them and their manifest: a row of `records` for each file."""

    takes = ImageRef
    gives = ("records", ImageRecord)

    @classmethod
    def flags(cls) -> ArgumentParser:
        """The parameters."""
        return _flags_of(transport.parser(), but=("input", "since", "group_by", "plan", *_OF_COMMANDS))

    def wire(self, given: Any, args: argparse.Namespace) -> Wired:
        """See the class."""
        return transport.transport_images(given, transport.begin(transport.resolve_output(args)))


class EvaluateImages(_YamlTransform):
    """Compares candidates with a reference and writes the report: a row of `quality` for each image compared."""

    gives = ("quality", ImageQuality)
    _yaml_requires_inputs = False

    @classmethod
    def flags(cls) -> ArgumentParser:
        """The parameters."""
        return _flags_of(evaluate.parser(), but=_OF_COMMANDS)

    def wire(self, given: Any, args: argparse.Namespace) -> Wired:
        """See the class."""
        quality, failures = evaluate.evaluate_images(given.pipeline, evaluate.resolve(args))
        return quality, (failures,)


class WriteFailures(_YamlTransform):
    """Writes failures to a folder `output`, or beside a `map` under its name: a row of `files` for each file."""

    takes = Failure
    gives = ("files", File)

    @classmethod
    def flags(cls) -> ArgumentParser:
        """The parameters."""
        flags = _flags_of(transport.parser(), only=("manifest_shards",))
        flags.add_argument("--output")
        flags.add_argument("--map")
        return flags

    def wire(self, given: Any, args: argparse.Namespace) -> Wired:
        """See the class."""
        if bool(args.output) == bool(args.map):
            raise UserError("--output or --map: expected one of them, a folder or the map that the failures go beside")
        folder, name = (args.output, "failures") if args.output else fit.failures_beside(args.map)
        storage.check_writable(folder)
        urls = given | "WriteFailures" >> transforms.WriteFailures(folder, args.manifest_shards, name)
        return urls | "Files" >> beam.Map(File), ()


def _flags_of(command: ArgumentParser, only: Collection[str] = (), but: Collection[str] = ()) -> ArgumentParser:
    """Some of a command's flags."""
    flags = ArgumentParser(command.prog, command.description or "")
    for name, action in command.flags().items():
        if name in only or (not only and name not in but):
            flags._add_action(action)
    return flags


def _parse(flags: ArgumentParser, parameters: Mapping[str, Any]) -> argparse.Namespace:
    known = flags.flags()
    argv: list[str] = []
    for name, value in parameters.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(known))}"
            raise UserError(f"{name}: unknown parameter; {hint}")
        argv += _words(known[name], value)
    return flags.parse_args(argv)


def _words(flag: argparse.Action, value: Any) -> list[str]:
    """A parameter as it stands on a command line."""
    name = flag.option_strings[0]
    if value is None:
        return []
    if flag.nargs == 0:
        if not isinstance(value, bool):
            raise UserError(f"{name}: expected true or false, not {value!r}")
        return [name] if value else []
    if flag.metavar == "NAME=URL" and isinstance(value, Mapping):
        value = [f"{each}={url}" for each, url in value.items()]
    values = value if flag.nargs == "+" and isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            raise UserError(f"{name}: expected text or a number, not {each!r} (a date or true is text in quotes)")
    return [name, *map(str, values)] if flag.nargs == "+" else [f"{name}={value}"]


@contextmanager
def _told_as_parameters(flags: ArgumentParser) -> Iterator[None]:
    """Names parameters without dashes in mistakes, and puts other errors in one line, too."""
    try:
        yield
    except UserError as error:
        message = re.sub(rf"--({'|'.join(flags.flags())})\b", r"\1", " ".join(str(error).split()))
        raise UserError(re.sub(r" \(see \S+ --help\)$", "", message.removeprefix("argument "))) from None
    except OSError as error:  # of a store or this machine
        raise UserError(told(error)) from None
    except Exception as error:  # Beam prints what it was raised from as well
        raise UserError(f"unexpected {type(error).__name__}: {cause_of(str(error))}") from error


def _output_of(error_handling: Mapping[str, Any] | None, taken: str) -> str:
    if error_handling is None:
        return "failures"
    name = error_handling.get("output") if isinstance(error_handling, Mapping) else None
    if not isinstance(name, str) or len(error_handling) > 1 or name == taken:
        raise UserError(f"error_handling: expected {{output: NAME}} with a name other than {taken}")
    return name


def _sides_of(inputs: Any) -> dict[str, list[str]]:
    sides = inputs if isinstance(inputs, Mapping) else {"": inputs}
    listed = {str(side): [specs] if isinstance(specs, str) else specs for side, specs in sides.items()}
    for specs in listed.values():
        if not isinstance(specs, list) or not specs or not all(isinstance(spec, str) for spec in specs):
            raise UserError("inputs: expected a URL, a list of URLs, or either for each of several sides")
        if not all(spec.strip() for spec in specs):
            raise UserError("inputs: empty; expected a path or URL (is a variable unset?)")
    if not listed:
        raise UserError("inputs: expected at least one side")
    return listed


def _elements(rows: Any, kind: Any) -> beam.PCollection[Any]:
    """Our elements from anybody's rows: matches fields by name, and leaves those without a value to the default."""
    if not isinstance(rows, beam.PCollection):
        raise UserError("input: expected one, of rows")
    with suppress(TypeError):  # of elements without a schema nothing is known
        found = dict(named_fields_from_element_type(rows.element_type))
        needed = [name for name in kind._fields if name not in kind._field_defaults]
        if any(found.get(name) not in (str, str | None) for name in needed):
            there = ", ".join(f"{name} ({getattr(type_, '__name__', type_)})" for name, type_ in found.items())
            raise UserError(f"input: expected rows with text in {', '.join(needed)}; found {there or 'no fields'}")
    return rows | "FromRows" >> beam.Map(_from_row, kind).with_output_types(kind)


def _from_row(row: Any, kind: Any) -> Any:
    fields = row._asdict()
    return kind(**{name: fields[name] for name in kind._fields if fields.get(name) is not None})


def _rows(elements: beam.PCollection[Any], name: str, kind: Any) -> beam.PCollection[Any]:
    """Named tuples are rows as they are, but for their type: Beam's schemas know `Optional`, not `float | None`."""
    fields = [(field, Union[type_]) for field, type_ in kind.__annotations__.items()]  # noqa: UP007
    row_type = RowTypeConstraint.from_fields(fields)
    return elements | f"Rows_{name}" >> beam.Map(_same).with_output_types(row_type)


def _same(element: Any) -> Any:
    return element
