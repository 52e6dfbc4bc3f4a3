"""Is started by the launcher of a Flex Template: turns the template's parameters into a job's command line.

The environment variable DOT_JOB names the job, and each parameter comes as `--name=value`: also a switch
(`--resume=true`), and a flag of several values (`--alpha=0 0.5`), which are separated by spaces and quoted like a
shell's.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from types import ModuleType

from pipelines import fit, transport

JOBS: dict[str, ModuleType] = {"fit": fit, "transport": transport}


def command_line(parser: argparse.ArgumentParser, parameters: Sequence[str]) -> list[str]:
    """The job's command line. Parameters that aren't ours are Beam's, and stay as they are."""
    ours = {option: action for action in parser._actions for option in action.option_strings}
    argv: list[str] = []
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        action = ours.get(name)
        if action is not None and equals and not value:
            continue  # the console sends what was left empty
        if action is not None and action.nargs == 0 and value in ("true", "false"):
            argv += [name] * (value == "true")
        elif action is not None and action.nargs == "+":
            argv += [name, *shlex.split(value)]
        else:
            argv.append(parameter)
    return argv


def main() -> int:
    """Stages the job's graph; returns the job's exit code."""
    job = JOBS[os.environ["DOT_JOB"]]
    return int(job.main(command_line(job.parser(), sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
