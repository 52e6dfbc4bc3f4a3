"""Writes the metadata of the Flex Templates, `<job>.metadata.json` beside this file, from the flags of the jobs.

python -m deploy.dataflow.metadata
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from deploy.dataflow.launch_template import JOBS
from pipelines.flags import ArgumentParser

FOLDER = Path(__file__).parent
#: Dataflow's workers don't see the launching machine's files.
_URL, _URLS = r"^[a-z0-9]+://.+$", r"^['\"]?[a-z0-9]+://.+$"

#: A template's launcher doesn't wait for the job that the summary is of.
_NOT_IN_TEMPLATES = ("summary", "progress", "quiet", "verbose")


def metadata(parser: ArgumentParser) -> dict[str, Any]:
    """Dataflow's TemplateMetadata, with a parameter for each flag."""
    flags = [action for name, action in parser.flags().items() if name not in _NOT_IN_TEMPLATES]
    return {
        "name": parser.prog,
        "description": parser.description,
        "parameters": [_parameter(parser, action) for action in flags],
    }


def _parameter(parser: ArgumentParser, action: argparse.Action) -> dict[str, Any]:
    several = action.nargs == "+"
    explained = (action.help or "") % {**vars(action), "prog": parser.prog}
    parameter: dict[str, Any] = {
        "name": action.dest,
        "label": action.dest.replace("_", " ").capitalize(),
        "helpText": explained + (" [several are separated by spaces]" if several else ""),
        "isOptional": not action.required,
        "paramType": _type(action),
    }
    if action.choices is not None:
        parameter["enumOptions"] = [{"value": str(choice), "label": str(choice)} for choice in action.choices]
    if action.metavar == "URL":
        parameter["regexes"] = [_URLS if several else _URL]
    default = " ".join(map(str, action.default)) if several and action.default else action.default
    if action.nargs == 0:
        parameter["defaultValue"] = "false"
    elif default is not None and default != math.inf:
        parameter["defaultValue"] = str(default)
    return parameter


def _type(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "BOOLEAN"
    if action.choices is not None:
        return "ENUM"
    number = getattr(action.type, "__name__", "") in ("int", "float")
    return "NUMBER" if number and action.nargs is None else "TEXT"


def files() -> dict[Path, str]:
    """What each file should hold."""
    return {
        FOLDER / f"{name}.metadata.json": json.dumps(metadata(job.parser()), indent=2) + "\n"
        for name, job in JOBS.items()
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
