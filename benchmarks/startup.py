"""How long a command takes to say how it is used, or what is wrong with it.

    python -m benchmarks.startup [--repetitions 5]

Prints, for each command line, the median of the seconds from the start of its process to its end, and all of them.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: What a command line is, its arguments, and the exit code it ends with.
_COMMAND_LINES = (
    ("help", ["--help"], 0),
    ("an unknown flag", ["--alhpa", "0", "--input", "in", "--map", "a.safetensors", "--output", "out"], 2),
    ("no such map", ["--input", "in", "--map", "no.safetensors", "--output", "out"], 2),
)


def seconds(arguments: list[str], expected_code: int, folder: Path) -> float:
    """How long one process of dot-transport takes, in seconds.

    Args:
        arguments: of its command line.
        expected_code: the exit code that it should end with.
        folder: where it runs.

    Raises:
        RuntimeError: if it ends with another exit code.
    """
    start = time.perf_counter()
    command = [str(Path(sys.executable).with_name("dot-transport")), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    if done.returncode != expected_code:
        raise RuntimeError(f"{arguments}: exit code {done.returncode} instead of {expected_code}: {done.stderr}")
    return took


def main() -> None:
    """Measures in turns, and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args().repetitions
    taken: dict[str, list[float]] = {name: [] for name, _, _ in _COMMAND_LINES}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").mkdir()
        (Path(folder) / "in" / "a.png").write_bytes(b"")
        for _ in range(repetitions):
            for name, arguments, code in _COMMAND_LINES:
                taken[name].append(seconds(arguments, code, Path(folder)))
    for name, each in taken.items():
        print(f"{name}: {statistics.median(each):.2f} s of {', '.join(f'{one:.2f}' for one in each)}")


if __name__ == "__main__":
    main()
