"""Keeps what a job writes apart from what it reads: else a second run would read the results of the first."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from fsspec.utils import glob_translate

from ot_core import UserError, storage
from ot_core.places import Place


def check_apart(
    inputs: Iterable[tuple[str, str]], output: str, folders: Sequence[str], examples: Sequence[str] = ()
) -> None:
    """Refuses inputs that name what a job writes, however they and the output are spelt.

    Args:
        inputs: flag and spec of each.
        output: flag and URL of the output, for the message.
        folders: URLs of the folders that are written to.
        examples: URLs of files such as are written: no pattern may match one.

    Raises:
        UserError: naming both.
    """
    for flag, spec in inputs:
        try:
            where = _overlap(spec, folders, examples)
        except OSError:  # an unknown store, say: listing it will tell
            continue
        if where == "in":
            raise UserError(f"{output}: lies in {flag} {spec}, so a second run would read its results")
        if where == "around":
            raise UserError(f"{flag} {spec}: lies where {output} has its results; keep the two apart")


def _overlap(spec: str, folders: Sequence[str], examples: Sequence[str]) -> str | None:
    """Whether what is written lies "in" an input, or "around" it; None where they are apart."""
    if glob.has_magic(spec):
        if _matches(spec, examples):
            return "in"
        if not storage.exists(spec):  # a folder may have such a name, too
            return None
    place = Place.of(spec)
    written = [Place.of(folder) for folder in folders]
    if any(folder.lies_below(place) for folder in written) or place in map(Place.of, examples):
        return "in"
    return "around" if any(map(place.lies_below, written)) else None


def _matches(pattern: str, examples: Sequence[str]) -> bool:
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    folder, slash, start = fixed.rpartition("/")
    root = Place.of(folder or slash or ".")
    try:
        expression = re.compile(glob_translate(start + pattern[len(fixed) :]))
    except ValueError:  # listing it will tell
        return False
    return any(expression.match(path) for path in _below(root, examples))


def _below(root: Place, urls: Sequence[str]) -> Iterator[str]:
    """Those of the URLs that lie below a folder, as paths from there."""
    for place in map(Place.of, urls):
        if place.lies_below(root) and place.path.startswith(root.path):
            yield os.path.relpath(place.path, root.path)
