"""Whose an output is: what its images are made with, and what becomes of the results that it holds already.

`job.json` at the output's root says what its images are made with and where they are. It is written before the job
starts, and nothing in an output belongs to a job that isn't in it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ot_core import ImageError, UserError, listing, storage
from ot_core.errors import one_line
from ot_core.layout import (
    FOLDERS,
    JOB,
    REPLACES,
    STARTED,
    OutputLayout,
    drift_url,
    groups_with_statistics,
    is_of_output,
    statistics_url,
)
from ot_core.overlap import prefetch
from ot_core.results import read_job, rows_of_manifest, started
from transforms.elements import ImageRecord
from transforms.records import schema_of

#: How an output that holds results is gone on with.
_ADD_A_FLAG = "add --resume to go on with it, or --overwrite to remove its results and do everything again"


class Start(NamedTuple):
    """How a job starts in an output.

    Attributes:
        layout: where its images are, of alphas that are there already and of those to be added.
        job: what `job.json` is to say.
        replaces: what is to be removed first, as `job.json` says it while that is going on; None where there is none.
        goes_on: whether results of the same job stay.
    """

    layout: OutputLayout
    job: dict[str, Any]
    replaces: dict[str, Any] | None
    goes_on: bool


def plan_start(
    wanted: OutputLayout, settings: Mapping[str, Any], resume: bool = False, overwrite: bool = False
) -> Start:
    """Decides what becomes of an output; changes nothing.

    Args:
        wanted: the output, as a new one would be.
        settings: what decides the bytes of its images, as JSON has it; without the alphas.
        resume: go on with what is there, which must have been made with the same settings; alphas may be added.
        overwrite: remove the results of the job that the output belongs to.

    Raises:
        UserError: if the output holds results and neither is given, or they were made with other settings, or what it
            holds isn't known to be of a job.
    """
    if resume and overwrite:
        raise UserError("--overwrite: removes what --resume goes on with; expected one of them")
    new = {**settings, **wanted.in_job()}
    try:
        there = set(storage.children(wanted.root))
    except OSError as error:
        raise UserError(f"--output {wanted.root}: can't be listed ({one_line(error)})") from None
    results = sorted(name for name in there if is_of_output(name) and not _is_empty(wanted, name))
    earlier = read_job(wanted.root) if JOB in there else None
    if earlier is None:
        if JOB in there or results:
            what = JOB if JOB in there else results[0]
            raise UserError(f"--output {wanted.root}: its {what} isn't of a job that we know; use another --output")
        return Start(wanted, new, None, False)
    replaces = earlier.get(REPLACES)
    if resume:
        grown = _same_job(wanted, settings, earlier)
        job = {**new, **grown.in_job()}
        if replaces is None:
            manifests = grown.find_manifests()
            for manifest in manifests:
                storage.check_columns(manifest.url, schema_of(ImageRecord))
            # A manifest is of the job, whose file is younger only in a copy that has lost its times.
            written = [manifest.details.modified or 0.0 for manifest in manifests if FOLDERS in earlier]
            job[STARTED] = min([started(wanted.root, earlier), *written])
        return Start(grown, job, replaces, replaces is None)
    if not overwrite and (results or replaces):
        raise UserError(f"--output {wanted.root}: holds the results of a job; {_ADD_A_FLAG}")
    if replaces is None and results:
        of_job = OutputLayout.of_job(wanted.root, earlier)
        manifests = of_job.find_manifests()
        names = (*of_job.in_job(), "format", "output_format")
        job = {name: earlier[name] for name in names if name in earlier}
        replaces = {"job": job, STARTED: started(wanted.root, earlier), "has_manifest": bool(manifests)}
    return Start(wanted, new, replaces, False)


def _is_empty(wanted: OutputLayout, name: str) -> bool:
    """Whether it is a folder with nothing in it, which stands in nobody's way."""
    url = wanted.url(name)
    return storage.is_folder(url) and not storage.children(url)


def _same_job(wanted: OutputLayout, settings: Mapping[str, Any], earlier: Mapping[str, Any]) -> OutputLayout:
    """The layout of an output that is gone on with."""
    there = OutputLayout.of_job(wanted.root, earlier)
    for name, value in settings.items():
        if earlier.get(name) != value:
            raise UserError(
                f"--resume: {wanted.root} was made with {name} {earlier.get(name)}, not {value}; "
                "use another --output, or --overwrite in place of --resume to do everything again"
            )
    if not set(there.alphas) <= set(wanted.alphas):
        together = " ".join(map(str, there.with_alphas(wanted.alphas).alphas))
        raise UserError(
            f"--resume: {wanted.root} was made with alpha {list(there.alphas)}, not {list(wanted.alphas)}; to add "
            f"some, name those that are there too: --alpha {together}"
        )
    return there.with_alphas(wanted.alphas)


def start_job(start: Start) -> int:
    """Does what was planned: call it on the launching machine, before the job.

    Wherever it is killed, `job.json` tells: it is about the new job from the first moment on, and what is left of the
    other one is removed by the next start.

    Returns:
        The number of files removed.
    """
    url = start.layout.url(JOB)
    removed = 0
    if start.goes_on:
        storage.remove_temporary(start.layout.root)
        if OutputLayout.of_job(start.layout.root, read_job(start.layout.root) or {}) == start.layout:
            return 0
    elif start.replaces is not None:
        _write_job(url, {**start.job, REPLACES: start.replaces})
        removed = _remove_results(start.layout.root, start.replaces)
    _write_job(url, start.job)
    return removed


def _write_job(url: str, job: Mapping[str, Any]) -> None:
    storage.write_bytes(url, json.dumps(job, indent=1).encode())


def _remove_results(root: str, replaced: Mapping[str, Any]) -> int:
    """Removes the files of a job and nothing else; the manifest, which names the others, at the end."""
    of_job = OutputLayout.of_job(root, replaced["job"])
    removed = 0
    if replaced["has_manifest"]:
        removed += _remove(_images_of_manifest(of_job))
    elif not of_job.packed:
        removed += _remove(_images_written_since(of_job, float(replaced[STARTED])))
    for alpha in of_job.alphas:
        removed += _remove(shard.url for shard in of_job.find_shards(alpha))
    storage.remove_folder(of_job.staging)
    storage.remove_temporary(root)
    removed += _remove(statistics_url(root, group) for group in _groups_of_drift(root))
    removed += _remove([drift_url(root), statistics_url(root)])
    removed += _remove(file.url for file in of_job.find_failures())
    return removed + _remove(file.url for file in of_job.find_manifests())


def images_left(start: Start) -> int:
    """How many images stay where those of a job were that `start_job` has removed.

    No manifest named them: somebody else put them there, or a run of `--resume` that was killed.
    """
    if start.replaces is None:
        return 0
    of_job = OutputLayout.of_job(start.layout.root, start.replaces["job"])
    found = (listed for alpha in of_job.alphas for listed in listing.list_folder(of_job.folder(alpha)))
    return sum(listed.uri.endswith(of_job.extension) for listed in found)


def _images_of_manifest(of_job: OutputLayout) -> Iterator[str]:
    """Where the images of the manifest's rows are by the layout, whatever the rows call it."""
    for manifest in of_job.find_manifests():
        for row in rows_of_manifest(manifest.url):
            try:
                storage.check_key(row.key)
            except ImageError:
                continue
            if row.alpha in of_job.folders and "#" not in row.output_uri.rpartition("/")[2]:
                yield of_job.image(row.alpha, row.key)


def _images_written_since(of_job: OutputLayout, since: float) -> Iterator[str]:
    """The images of a job that was killed before it wrote a manifest."""
    for alpha in of_job.alphas:
        folder = of_job.folder(alpha)
        for listed in listing.list_folder(folder):
            modified = listed.details.modified
            url = of_job.image(alpha, listed.key)
            if listed.uri.endswith(of_job.extension) and modified is not None and modified >= since:
                yield url


def _groups_of_drift(root: str) -> Sequence[str]:
    """The groups that have statistics of their own; of a killed job that told of none, all."""
    groups = groups_with_statistics(root)
    try:
        told = json.loads(storage.read_bytes(drift_url(root))).get("groups", {})
    except (OSError, ValueError, AttributeError):
        return groups
    return [group for group in groups if group in told]


def _remove(urls: Iterable[str]) -> int:
    return sum(1 for future in prefetch(storage.remove, urls) if future.result() is None)
