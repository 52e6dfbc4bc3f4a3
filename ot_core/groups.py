"""Groups of images, each with a map of its own: which group an image is in, and where its map is."""

from __future__ import annotations

from typing import NamedTuple

from ot_core import storage
from ot_core.errors import Cause, ImageError, UserError, one_line

#: Stands for the group's name in the URL of its map.
GROUP = "{group}"
#: Bytes in a group's name; file systems allow 255 for a file's.
_LONGEST = 120


class Grouping(NamedTuple):
    """What tells an image's group: a column of the list that names it, or one of the folders in its key.

    Attributes:
        column: its name, or "".
        folder: counted from 1, below the input's root; 0 where it is a column.
    """

    column: str = ""
    folder: int = 0

    @classmethod
    def parse(cls, spec: str) -> Grouping:
        """From `column:NAME` or `folder:N`.

        Raises:
            UserError: for anything else.
        """
        kind, _, what = spec.partition(":")
        if kind == "column" and what:
            return cls(column=what)
        if kind == "folder" and what.isascii() and what.isdigit() and int(what) > 0:
            return cls(folder=int(what))
        raise UserError(
            f"--group_by {spec}: expected column:NAME, a column of the lists, or folder:N, the N-th folder of the keys "
            "(folder:1 is the first below the input's root)"
        )

    def group_of(self, key: str, value: str) -> str:
        """The group of an image with this key and this value in the column; "" where nothing tells it."""
        if self.column:
            return value
        folders = key.split("/")[:-1]
        return folders[self.folder - 1] if self.folder <= len(folders) else ""


def check_group(group: str) -> None:
    """Refuses groups that can't be part of a map's name.

    Raises:
        ImageError: NO_GROUP where there is none, BAD_KEY where it could lead elsewhere.
    """
    if not group:
        raise ImageError(Cause.NO_GROUP, "nothing tells its group: no such folder in its key, or column in its list")
    try:
        storage.check_key(group)
        good = "/" not in group and len(group.encode()) <= _LONGEST
    except ImageError:
        good = False
    if not good:
        expected = f"expected at most {_LONGEST} bytes and nothing that leads to another folder"
        raise ImageError(Cause.BAD_KEY, f"group {group[:_LONGEST]!r} can't be part of a map's name; {expected}")


def is_pattern(url: str) -> bool:
    """Whether the URL of a map has a place for the group's name.

    Raises:
        UserError: if it has several.
    """
    if url.count(GROUP) > 1:
        raise UserError(f"--map {url}: expected {GROUP} only once")
    return GROUP in url


def map_of_group(pattern: str, group: str) -> str:
    """The URL of a group's map."""
    return pattern.replace(GROUP, group)


def find_maps(pattern: str) -> dict[str, str]:
    """The URLs of the maps that are there, by group.

    Raises:
        UserError: if there is none, or the store can't be asked.
    """
    before, after = pattern.split(GROUP)
    start, (end, slash, _) = before.rpartition("/")[2], after.partition("/")
    try:
        found = [
            name.removesuffix(end).removeprefix(start)
            for name in storage.children(storage.parent(before))
            if name.startswith(start) and name.endswith(end) and len(name) > len(start) + len(end)
        ]
        maps = {name: map_of_group(pattern, name) for name in found}
        if slash:  # the group names a folder
            maps = {name: url for name, url in maps.items() if storage.exists(url)}
    except OSError as error:
        raise UserError(f"--map {pattern}: can't be listed ({one_line(error)})") from None
    if not maps:
        raise UserError(f"--map {pattern}: no such map is there; write them with dot-fit --group_by")
    return dict(sorted(maps.items()))
