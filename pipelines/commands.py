"""The commands that are installed: they check their flags first, and import Beam and torch only then."""

import importlib
from collections.abc import Callable

from ot_core.errors import UserError
from pipelines import parsers
from pipelines.command import complain
from pipelines.flags import ArgumentParser


def _run(module: str, parser: Callable[[], ArgumentParser]) -> int:
    flags = parser()
    try:
        flags.check(None)
        job = importlib.import_module(f"pipelines.{module}")
    except UserError as error:
        complain(flags.prog, str(error))
        return 2
    except KeyboardInterrupt:
        complain(flags.prog, "interrupted")
        return 130
    return int(job.main())


def fit() -> int:
    """dot-fit."""
    return _run("fit", parsers.fit)


def transport() -> int:
    """dot-transport."""
    return _run("transport", parsers.transport)


def evaluate() -> int:
    """dot-evaluate."""
    return _run("evaluate", parsers.evaluate)


def trial() -> int:
    """dot-trial."""
    return _run("trial", parsers.trial)


def maps() -> int:
    """dot-map."""
    return _run("maps", parsers.maps)


def demo() -> int:
    """dot-demo."""
    return _run("demo", parsers.demo)
