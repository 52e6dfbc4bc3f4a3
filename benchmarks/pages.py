"""How the benchmarks write their pages: Markdown of lines that people can read in a terminal and in a diff."""

from __future__ import annotations

import re
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Final

_WIDTH: Final = 120
#: Rows of tables, commands, headings and pictures stay on one line.
_WHOLE = re.compile(r"\||    |#|!\[")


def write_page(path: Path, text: str) -> None:
    """Writes a page whose prose is wrapped at 120 characters; an item of a list goes on below its first word."""
    path.write_text("\n".join(map(_wrapped, text.rstrip("\n").split("\n"))) + "\n")


def publish(page: Callable[[Path], str], output: Path | None) -> None:
    """Prints a page that is made in a temporary folder, and writes it where an output is given."""
    with tempfile.TemporaryDirectory() as folder:
        text = page(Path(folder))
    print(text)
    if output:
        write_page(output, text)


def _wrapped(line: str) -> str:
    if len(line) <= _WIDTH or _WHOLE.match(line):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
