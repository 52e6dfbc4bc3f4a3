"""The README is true of what runs today."""

import re
from pathlib import Path

import pytest

from ot_core import Cause
from pipelines import evaluate, fit, maps, transport, trial

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PARSERS = {
    "dot-fit": fit.parser(),
    "dot-transport": transport.parser(),
    "dot-evaluate": evaluate.parser(),
    "dot-trial": trial.parser(),
    "dot-map": maps.parser(),
}


def _flags(prog: str) -> set[str]:
    return {name for action in PARSERS[prog]._actions for name in action.option_strings if name.startswith("--")}


@pytest.mark.parametrize("prog", PARSERS)
def test_every_flag_shown_in_a_command_exists(prog):
    commands = [line for line in README.splitlines() if line.startswith(f"    {prog} ")]
    assert commands
    for command in commands:
        assert set(re.findall(r"--\w+", command)) <= _flags(prog)


def test_every_flag_is_in_the_tables_and_nothing_else_is():
    tables = README.split("## Flags")[1].split("\n## ")[0]
    shown = {
        flag
        for row in tables.splitlines()
        if row.startswith("| `--")
        for flag in re.findall(r"--\w+", row.split("|")[1])
    }
    assert shown == set().union(*map(_flags, PARSERS)) - {"--help"}


def test_every_cause_of_failure_is_listed():
    listed = README.split("`error_type` is one of")[1].split("\n\n")[1]
    assert re.findall(r"`(\w+)`", listed) == [str(cause) for cause in Cause]


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_python_snippets_import_what_exists():
    for snippet in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        imports = [line for line in snippet.splitlines() if line.startswith("from ")]
        assert imports
        exec("\n".join(imports), {})
