"""What `--candidate NAME=URL` stands for: images to compare, and where they lie on the scale of alpha."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from ot_core import UserError, names, storage
from ot_core.errors import one_line
from ot_core.layout import OutputLayout, alpha_name
from ot_core.results import images_without_job, read_job, roots_of
from transforms.compare_images import REFERENCE


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
    return {str(job["vae_sha256"]) for job in _jobs_of(candidates).values() if job.get("vae_sha256")}


def told_jobs(candidates: Sequence[Candidate]) -> list[tuple[str, str]]:
    """By series, what its job made the images with, in a line."""
    names = ("map_sha256", "vae_sha256", "restorer_sha256", "precision", "interpolation", "residual")
    return [
        (
            f"how {series} was made",
            ", ".join(f"{name} {str(job[name])[:16]}" for name in names if job.get(name) is not None) or "not known",
        )
        for series, job in _jobs_of(candidates).items()
    ]


def _jobs_of(candidates: Sequence[Candidate]) -> dict[str, dict[str, Any]]:
    """What `job.json` says, by series; of candidates that have one."""
    jobs: dict[str, dict[str, Any]] = {}
    for candidate in candidates:
        if candidate.alpha is not None and candidate.series not in jobs:
            job = next(filter(None, (read_job(root) for root, _ in roots_of(candidate.url))), None)
            if job:
                jobs[candidate.series] = job
    return jobs


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
                yield Candidate(_named(name, alpha, alphas), layout.folder(alpha), alpha, name)
            if not alphas:
                yield Candidate(name, url, None, name)
            return
    yield from _expand_without_job(name, url)


def _expand_without_job(name: str, url: str) -> Iterator[Candidate]:
    """The same of a folder that no job of ours has written."""
    try:
        found = images_without_job(url)
    except OSError as error:
        raise UserError(f"input {url}: can't be listed ({one_line(error)})") from None
    if not found:
        yield Candidate(name, url, None, name)
    for alpha in sorted(found, reverse=True):
        yield Candidate(_named(name, alpha, found), found[alpha], alpha, name)


def _named(series: str, alpha: float, alphas: Collection[float]) -> str:
    return f"{series} {alpha_name(alpha)}" if len(alphas) > 1 else series


def _exists(url: str) -> bool:
    try:
        return storage.exists(url)
    except OSError as error:
        raise UserError(f"input {url}: can't be listed ({one_line(error)})") from None
