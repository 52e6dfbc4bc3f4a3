"""Pages that mkdocs makes while it builds: flags and classes from the code, operations and results from elsewhere."""

from __future__ import annotations

import argparse
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import ot_core
import transforms
from ot_core import images, tiff
from pipelines import parsers
from pipelines.flags import ArgumentParser

ROOT = Path(__file__).parents[1]
#: Where files outside of this folder appear; links between them follow.
PLACES = {
    "README.md": "index.md",
    "deploy/README.md": "operations/index.md",
    **{f"deploy/{name}/README.md": f"operations/{name}.md" for name in ("airflow", "dataflow", "flink", "yaml")},
    "ot_core/vae/README.md": "results/model-card.md",
    "CHANGELOG.md": "changes.md",
    **{
        f"benchmarks/results/{path.name}": f"results/{path.name}"
        for path in sorted((ROOT / "benchmarks/results").iterdir())
        if path.suffix in (".md", ".svg", ".png", ".jpg")
    },
}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages and pictures."""
    for source, place in PLACES.items():
        if place == "index.md":
            continue
        path = ROOT / source
        content = moved(path.read_text("utf-8"), source, place) if path.suffix == ".md" else path.read_bytes()
        files.append(File.generated(config, place, content=content))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fills in what comments ask for."""
    texts = {
        "docstring of ot_core.images": table_of(images.__doc__),
        "docstring of ot_core.tiff": table_of(tiff.__doc__),
        "members of ot_core": members(ot_core),
        "members of transforms": members(transforms),
    }
    return re.sub(r"<!-- (.*?) -->", lambda found: texts[found[1]] if found[1] in texts else found[0], markdown)


def moved(text: str, source: str, place: str) -> str:
    """A page whose links lead to pages where these are, and are plain names elsewhere."""

    def link(found: re.Match[str]) -> str:
        name, target, anchor = found[1], found[2], found[3] or ""
        if not target or target.startswith("http"):
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if target == "README.md" and anchor == "#flags":
            target, anchor = "reference/commands.md", ""
        elif target not in PLACES:
            return f"`{target}`" if name in target else f"{name} (`{target}`)"
        else:
            target = PLACES[target]
        return f"[{name}]({posixpath.relpath(target, posixpath.dirname(place))}{anchor})"

    return _LINK.sub(link, text)


def table_of(docstring: str | None) -> str:
    """A docstring without its first line, which says what code does."""
    return (docstring or "").partition("\n\n")[2]


def members(package: Any) -> str:
    """A block of mkdocstrings for each public name."""
    return "\n\n".join(f"::: {package.__name__}.{name}" for name in package.__all__)


def commands() -> str:
    """Every flag of every command."""
    made = [parsers.fit(), parsers.transport(), parsers.evaluate(), parsers.trial(), parsers.maps(), parsers.demo()]
    top = (
        "# Commands\n\nAny flag may be spelt with dashes: `--max-images` is `--max_images`. A flag that neither we nor "
    )
    top += "Beam know is refused, with the nearest name.\n"
    return "\n".join([top, *map(command, made)])


def command(parser: ArgumentParser) -> str:
    """A command's flags, a table for each of its groups."""
    lines = [f"## {parser.prog}", "", parser.description or "", "", f"```text\n{parser.epilog}\n```", ""]
    for group in parser._action_groups:
        flags = [action for action in group._group_actions if action.dest not in ("help", "version")]
        if flags:
            title = "flags" if group.title in ("options", "positional arguments") else group.title
            lines += [f"### {parser.prog}: {title}", "", "| flag | |", "|---|---|"]
            lines += [f"| {named(flag)} | {told(flag)} |" for flag in flags]
            lines += [""]
    return "\n".join(lines)


def named(flag: argparse.Action) -> str:
    """A flag with its value, as it is typed."""
    value = flag.metavar or ("{" + ",".join(map(str, flag.choices)) + "}" if flag.choices else flag.dest.upper())
    several = f"{value} ..." if flag.nargs == "+" else str(value)
    words = [*(flag.option_strings[:1] or []), *([] if flag.nargs == 0 else [several])]
    return f"`{' '.join(words)}`" + (", required" if flag.required and flag.option_strings else "")


def told(flag: argparse.Action) -> str:
    """Its help."""
    return ((flag.help or "") % {**vars(flag)}).replace("|", "\\|").replace("{", "&#123;").replace("*", "\\*")
