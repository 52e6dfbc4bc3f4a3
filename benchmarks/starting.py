"""Seconds until a command has told its help, and a mistake, the best of some runs.

python -m benchmarks.starting
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path


def seconds(command: str, *argv: str, repeat: int) -> float:
    """Of the fastest run."""
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        subprocess.run([Path(sys.executable).parent / command, *argv], capture_output=True, check=False)
        taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> None:
    """Prints a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    for command in ("dot-fit", "dot-transport", "dot-evaluate", "dot-trial", "dot-map", "dot-demo"):
        told = [seconds(command, argv, repeat=repeat) for argv in ("--help", "--unknown_flag")]
        print(f"{command}: help {told[0]:.2f} s, an unknown flag {told[1]:.2f} s")


if __name__ == "__main__":
    main()
