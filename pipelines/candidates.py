"""What `--candidate NAME=URL` stands for: images to compare, and where they lie on the scale of alpha."""

import glob
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ot_core import UserError, names, shards, storage
from ot_core.layout import (
    IMAGES,
    MANIFEST,
    SHARD,
    OutputLayout,
    find_numbered,
    read_job,
    roots_of,
    rows_of_manifest,
)
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

    An output folder is known by its `job.json`, which names the alphas; where there is none, by its `images/alpha=...`
    or its manifest.

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


def autoencoders_of(candidates: Sequence[Candidate]) -> set[str]:
    """Fingerprints of the autoencoders that made the candidates, as far as their outputs' `job.json` tells."""
    urls = [candidate.url for candidate in candidates if candidate.alpha is not None]
    jobs = (next(filter(None, (read_job(root) for root, _ in roots_of(url))), None) for url in urls)
    return {str(job["vae_sha256"]) for job in jobs if job and job.get("vae_sha256")}


def _expand(name: str, url: str) -> Iterator[Candidate]:
    if names.is_web(url) or not _exists(url):  # a pattern, say
        yield Candidate(name, url, None, name)
        return
    for root, below in roots_of(url):
        job = read_job(root)
        if job is not None:
            layout = OutputLayout.of_job(root, job)
            # What is wrong with a folder that isn't one of the job's, listing it will tell.
            alphas = sorted((a for a, folder in layout.folders.items() if below in ("", folder)), reverse=True)
            for alpha in alphas:
                several = f" alpha={alpha:.2f}" if len(alphas) > 1 else ""
                yield Candidate(name + several, layout.folder(alpha), alpha, name)
            if not alphas:
                yield Candidate(name, url, None, name)
            return
    yield from _expand_without_job(name, url)


def _expand_without_job(name: str, url: str) -> Iterator[Candidate]:
    """The same of a folder that no job of ours has written, but perhaps a pipeline with our transforms."""
    last = _ALPHA_FOLDER.fullmatch(url.rstrip("/").rpartition("/")[2])
    if last:
        yield Candidate(name, url, float(last[1]), name)
        return
    images = storage.join(url, IMAGES)
    alphas = {float(found[1]): child for child in _children(images) if (found := _ALPHA_FOLDER.fullmatch(child))}
    if alphas:
        for alpha in sorted(alphas, reverse=True):
            folder = storage.join(images, alphas[alpha])
            yield Candidate(f"{name} alpha={alpha:.2f}", _images_in(folder), alpha, name)
        return
    rows = (next(rows_of_manifest(found.url), None) for found in find_numbered(url, MANIFEST))
    row = next(filter(None, rows), None)
    if row is None:
        yield Candidate(name, url, None, name)
    else:
        yield Candidate(name, _images_in(images), row.alpha, name)


def _exists(url: str) -> bool:
    try:
        return storage.exists(url)
    except OSError as error:
        raise UserError(f"input {url}: can't be listed ({storage.one_line(error)})") from None


def _children(folder: str) -> list[str]:
    try:
        return list(storage.children(folder))
    except OSError as error:
        raise UserError(f"input {folder}: can't be listed ({storage.one_line(error)})") from None


def _images_in(folder: str) -> str:
    """The input that the images of an alpha are: the folder, or the shards in it."""
    for extension in shards.EXTENSIONS.values():
        if find_numbered(folder, SHARD, [extension]):
            return storage.join(glob.escape(folder), f"{SHARD}-*-of-*{extension}")
    return folder
