"""What `--candidate NAME=URL` stands for: images to compare, and where they lie on the scale of alpha."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ot_core import UserError, shards, storage
from transforms.quality import REFERENCE

_ALPHA_FOLDER = re.compile(r"alpha=(-?\d+(?:\.\d+)?)")


class Candidate(NamedTuple):
    """Images to compare with the reference.

    Attributes:
        name: unique.
        url: an input, as `ListImages` takes it.
        alpha: weight of the restored image in these, or None for images that transport did not make.
        series: the name that the user gave; candidates of one output folder share it.
    """

    name: str
    url: str
    alpha: float | None
    series: str


def parse_candidates(specs: Sequence[str]) -> list[Candidate]:
    """The candidates of the command line; an output folder of dot-transport gives one for each alpha, falling.

    An output folder is known by its `images/alpha=...` or, with a single alpha, by its manifest, which names it.

    Raises:
        UserError: for what isn't NAME=URL, a name given twice, or a folder that can't be listed.
    """
    candidates: list[Candidate] = []
    for spec in specs:
        name, equals, url = spec.partition("=")
        if not (equals and name.strip() and url.strip()) or "/" in name:
            raise UserError(f"--candidate {spec}: expected NAME=URL, for example restored=gs://bucket/restored/")
        candidates += _expand(name.strip(), url.strip())
    names = [REFERENCE, *(candidate.name for candidate in candidates)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--candidate {twice[0]}: this name is taken; give each candidate its own")
    return candidates


def baseline_of(candidates: Sequence[Candidate]) -> Candidate | None:
    """The restored images: the first candidate that transport didn't make, else the one of alpha 1."""
    by_preference = [c for c in candidates if c.alpha is None] + [c for c in candidates if c.alpha == 1]
    return by_preference[0] if by_preference else None


def _expand(name: str, url: str) -> Iterator[Candidate]:
    last = _ALPHA_FOLDER.fullmatch(url.rstrip("/").rpartition("/")[2])
    if last or any(character in url for character in "*?["):
        yield Candidate(name, url, float(last[1]) if last else None, name)
        return
    folders = storage.match(storage.join(url, "images", "alpha=*"))
    alphas = {float(found[1]): folder for folder in folders if (found := _ALPHA_FOLDER.search(folder, len(url) - 1))}
    if alphas:
        for alpha in sorted(alphas, reverse=True):
            yield Candidate(f"{name} alpha={alpha:.2f}", _images_in(alphas[alpha]), alpha, name)
        return
    rows = (storage.first_row(found, ["alpha"]) for found in storage.match(storage.join(url, "manifest-*.parquet")))
    row = next(filter(None, rows), None)
    if row is None:
        yield Candidate(name, url, None, name)
    else:
        yield Candidate(name, _images_in(storage.join(url, "images")), float(row["alpha"]), name)


def _images_in(folder: str) -> str:
    """The input that the images of an alpha are: the folder, or the shards in it."""
    for extension in shards.EXTENSIONS.values():
        pattern = storage.join(folder, f"shard-*-of-*{extension}")
        if storage.match(pattern):
            return pattern
    return folder
