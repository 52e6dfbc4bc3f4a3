"""Transport with twenty maps against one: what groups cost.

    python -m benchmarks.groups --output benchmarks/results/groups.md

The same photographs, spread over twenty folders, are transported with one map, and each with that of its folder, in
turns within one process. Everything of the job counts but imports and compiling: listing, reading the maps, loading the
model, transport, writing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import describe, machine, photographs, table
from pipelines import fit, transport

#: What is promised: so much of the speed with one map.
TARGET = 0.95
#: Images of each side that a map is fitted on.
_FIT = 2


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--groups", type=int, default=20)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, nargs=2, default=[256, 512], help="least and most pixels of a side")
    parser.add_argument("--repeat", type=int, default=3, help="medians are reported")
    parser.add_argument("--work", type=Path, help="folder for images and results; default a temporary one")
    parser.add_argument("--output", type=Path, help="the Markdown page")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        seconds = _seconds(args, Path(folder))
    text = render(args, seconds)
    print(text)
    if args.output:
        args.output.write_text(text)


def _seconds(args: argparse.Namespace, work: Path) -> dict[str, list[float]]:
    """Of each repetition, with one map and with many."""
    low, high = args.size
    for group in range(args.groups):
        count = len(range(group, args.images, args.groups))
        for side, images, seed in (("input", count, 0), ("source", _FIT, 1), ("target", _FIT, 2)):
            photographs(work / side / f"group{group:02d}", images, low, high, seed=3 * group + seed)
    _run(fit, f"--target {work}/target --source {work}/source --map {work}/one.safetensors")
    many = f"--map {work}/{{group}}/map.safetensors --group_by folder:1"
    _run(fit, f"--target {work}/target --source {work}/source {many}")
    flags = {"one map": f"--map {work}/one.safetensors", f"{args.groups} maps": many}
    seconds: dict[str, list[float]] = {name: [] for name in flags}
    for repeat in range(args.repeat + 1):
        for name, maps in flags.items():
            started = time.perf_counter()
            _run(transport, f"--input {work}/input {maps} --output {work}/output-{name.replace(' ', '-')}-{repeat}")
            if repeat:  # the first one warms up
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _run(job: object, command: str) -> None:
    if code := job.main(command.split()):  # type: ignore[attr-defined]
        raise SystemExit(code)


def render(args: argparse.Namespace, seconds: Mapping[str, Sequence[float]]) -> str:
    """The Markdown page."""
    rates = {name: args.images / statistics.median(found) for name, found in seconds.items()}
    one, many = rates.values()
    low, high = args.size
    rows = [
        [name, f"{rates[name]:.2f}", f"{rates[name] / one:.3f}", ", ".join(f"{s:.1f}" for s in seconds[name])]
        for name in seconds
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
        table(["transported with", "images/s", "of one map's", "seconds of each run"], rows),
        "",
        f"Target, {TARGET} of the speed of one map: {'kept' if many >= TARGET * one else 'MISSED'} ({many / one:.3f}).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
