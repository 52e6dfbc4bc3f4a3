"""Runnable jobs: flags, wiring and exit codes. `python -m pipelines.<name>`, or the console scripts `dot-<name>`."""

import importlib.util
import logging
import pathlib
import sys

_spec = importlib.util.find_spec("transforms")
if _spec is None or _spec.origin is None or pathlib.Path(_spec.origin).parents[1] != pathlib.Path(__file__).parents[1]:
    # `python -m` puts the current folder first, so a folder of the user's named transforms would be taken for ours.
    _found = _spec and (_spec.origin or list(_spec.submodule_search_locations or []))
    sys.exit(f"error: 'transforms' is {_found}, not this project's; run the job from another folder or as dot-<name>")

# Beam logs on import about optional clients that nothing here uses; launch.py sets the level for the run.
logging.getLogger().setLevel(logging.ERROR)
