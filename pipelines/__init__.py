"""Runnable jobs: flags, wiring and exit codes. `python -m pipelines.<name>`, or the console scripts `dot-<name>`."""

import importlib.util
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
