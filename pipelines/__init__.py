"""Runnable jobs: flags, wiring and exit codes. `python -m pipelines.<name>`, or the console scripts `dot-<name>`."""

import importlib
import importlib.util
import logging
import os
import pathlib
import sys

try:
    os.getcwd()
except FileNotFoundError:  # torch's libraries would end the process, and say something else
    print("error: the working folder is gone; change to one that is there", file=sys.stderr)
    sys.exit(2)

_spec = importlib.util.find_spec("transforms")
if _spec is None or _spec.origin is None or pathlib.Path(_spec.origin).parents[1] != pathlib.Path(__file__).parents[1]:
    # `python -m` puts the current folder first, so a folder of the user's named transforms would be taken for ours.
    _found = _spec and (_spec.origin or list(_spec.submodule_search_locations or []))
    sys.exit(f"error: 'transforms' is {_found}, not this project's; run the job from another folder or as dot-<name>")


def _import_beam() -> None:
    """Imports Beam without what it does to the logging of whoever imports us.

    It warns of clients that nothing here uses, and so sets up a handler where there was none.
    """
    root, silence = logging.getLogger(), logging.Filter("nothing")
    silence.filter = lambda record: False  # type: ignore[method-assign]
    before = list(root.handlers)
    root.addFilter(silence)
    try:
        importlib.import_module("apache_beam")
    finally:
        root.removeFilter(silence)
        root.handlers[:] = before


_import_beam()
