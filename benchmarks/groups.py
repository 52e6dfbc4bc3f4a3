"""Transport with twenty maps against one: what groups cost.

    python -m benchmarks.groups --output benchmarks/results/groups.md

The same photographs, spread over twenty folders, are transported with one map, and each with that of its folder, in
turns within one process. Speed counts from the first image written to the last, as in `benchmarks.workers`: what a job
does once for each map, which is reading it and measuring its drift at the end, is in the seconds of the whole job.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import describe, machine, photographs, table
from benchmarks.pages import write_page
from benchmarks.workers import rate
from pipelines import fit, transport

#: What is promised: so much of the speed with one map.
TARGET = 0.95
#: Images of each side that a map is fitted on.
_FIT = 1


class Run(NamedTuple):
    """A job: its speed while it wrote, and how long all of it took."""

    images_per_second: float
    job_seconds: float


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--groups", type=int, default=20)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--size", type=int, nargs=2, default=[256, 512], help="least and most pixels of a side")
    parser.add_argument("--repeat", type=int, default=3, help="medians are reported")
    parser.add_argument("--work", type=Path, help="folder for images and results; default a temporary one")
    parser.add_argument("--output", type=Path, help="the Markdown page")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        runs = _runs(args, Path(folder))
    text = render(args, runs)
    print(text)
    if args.output:
        write_page(args.output, text)


def _runs(args: argparse.Namespace, work: Path) -> dict[str, list[Run]]:
    """Each repetition, with one map and with many."""
    low, high = args.size
    for group in range(args.groups):
        count = len(range(group, args.images, args.groups))
        for side, images, seed in (("input", count, 0), ("source", _FIT, 1), ("target", _FIT, 2)):
            photographs(work / side / f"group{group:02d}", images, low, high, seed=3 * group + seed)
    many = f"--map {work}/{{group}}/map.safetensors --group_by folder:1"
    flags = {"one map": f"--map {work}/one.safetensors", f"{args.groups} maps": many}
    for maps, common in zip(flags.values(), ("", "--common_target"), strict=True):
        _run(fit, f"--target {work}/target --source {work}/source {maps} {common}")
    _run(transport, f"--input {work}/input/group00 {flags['one map']} --output {work}/warm-up")
    runs: dict[str, list[Run]] = {name: [] for name in flags}
    for repeat in range(args.repeat):
        for name, maps in flags.items():
            output, started = work / f"output-{repeat}-{name.replace(' ', '-')}", time.perf_counter()
            _run(transport, f"--input {work}/input {maps} --output {output}")
            runs[name].append(Run(rate(output / "images"), time.perf_counter() - started))
    return runs


def _run(job: object, command: str) -> None:
    if code := job.main(command.split()):  # type: ignore[attr-defined]
        raise SystemExit(code)


def render(args: argparse.Namespace, runs: Mapping[str, Sequence[Run]]) -> str:
    """The Markdown page."""
    rates = {name: statistics.median(run.images_per_second for run in each) for name, each in runs.items()}
    one, many = rates.values()
    low, high = args.size
    rows = [
        [
            name,
            f"{rates[name]:.2f}",
            f"{rates[name] / one:.3f}",
            ", ".join(f"{run.images_per_second:.2f}" for run in runs[name]),
            f"{statistics.median(run.job_seconds for run in runs[name]):.1f}",
        ]
        for name in runs
    ]
    lines = [
        "# Groups",
        "",
        describe(machine()),
        "",
        "`python -m benchmarks.groups` says what is measured.",
        "",
        f"{args.images} photographs of {low} to {high} pixels a side in {args.groups} groups, JPEG to PNG; default "
        f"autoencoder; medians of {args.repeat}.",
        "",
        table(["transported with", "images/s", "of one map's", "each run", "seconds of the whole job"], rows),
        "",
        f"Target, {TARGET} of the speed of one map: {'kept' if many >= TARGET * one else 'MISSED'} ({many / one:.3f}).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
