"""Seconds until a command has told its help, and a mistake, the best of some runs.

python -m benchmarks.starting --output benchmarks/results/starting.md
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.pages import write_page


def seconds(command: str, *argv: str, repeat: int) -> str:
    """Of the fastest run, and how many of them one core has computed."""
    taken = []
    for _ in range(repeat):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([Path(sys.executable).parent / command, *argv], capture_output=True, check=False)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append((wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return f"{min(taken)[0]:.2f} ({min(taken)[1]:.2f})"


def main() -> None:
    """Prints, and writes, a row for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--output", type=Path, help="Markdown file to write; default: print only")
    args = parser.parse_args()
    rows = []
    for command in ("dot-fit", "dot-transport", "dot-evaluate", "dot-trial", "dot-map", "dot-demo"):
        told = [seconds(command, argv, repeat=args.repeat) for argv in ("--help", "--unknown_flag")]
        rows.append(f"| `{command}` | {told[0]} | {told[1]} |")
    text = "\n".join(
        [
            "# Starting a command",
            "",
            "Seconds until a command has told its help, or that it doesn't know a flag: the fastest of",
            f"{args.repeat} runs, on {os.cpu_count()} cores that other work shared; in brackets, how long it computed.",
            "`python -m benchmarks.starting`",
            "",
            "| command | help | unknown flag |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
    print(text)
    if args.output:
        write_page(args.output, text)


if __name__ == "__main__":
    main()
