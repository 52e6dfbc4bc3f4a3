"""What the benchmarks share: photographs, measured child processes, and tables.

The parent of measured processes stays small (no torch, no Beam). A child is `python -m MODULE WHAT SETTINGS RESULT`:
`serve` in the child's module calls the function that is asked for and leaves its figures in a file.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
_DEMO_PHOTOS = ROOT / "pipelines" / "demo_photos"
_FIT = 8
_PACKAGES = ("torch", "diffusers", "apache-beam", "ray", "numpy", "pillow", "fsspec")

Figures = dict[str, Any]


def photographs(
    folder: Path, count: int, low: int, high: int, seed: int, suffix: str = ".jpg", distinct: int | None = None
) -> list[str]:
    """Writes natural-looking photographs: jittered crops of the bundled ones, each side from low to high pixels.

    Args:
        folder: made if need be.
        count: how many.
        low: least pixels of a side.
        high: most pixels of a side.
        seed: the same images for the same seed.
        suffix: .jpg (quality 90) or .png.
        distinct: draw only so many, and let the others be further names (hard links) of these. Default all.

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    sources = [Image.open(path).convert("RGB") for path in sorted(_DEMO_PHOTOS.glob("*.jpg"))]
    paths: list[str] = []
    for index in range(count):
        path = folder / f"{index:06d}{suffix}"
        if distinct and index >= distinct:
            os.link(paths[index % distinct], path)
        else:
            width, height = rng.integers(low, high + 1, size=2)
            _jittered_crop(sources[rng.integers(len(sources))], width, height, rng).save(path, quality=90)
        paths.append(str(path))
    return paths


def _jittered_crop(source: Image.Image, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """The photograph at about its own scale, so that it stays sharp, mirrored at its edges to be large enough."""
    scale = rng.uniform(0.8, 1.25)
    size = round(source.width * scale), round(source.height * scale)
    pixels = np.asarray(source.resize(size, Image.Resampling.LANCZOS))[:, :: rng.choice([-1, 1])]
    pixels = np.pad(pixels, ((0, height), (0, width), (0, 0)), mode="symmetric")
    top, left = rng.integers(size[1] + 1), rng.integers(size[0] + 1)
    crop = pixels[top : top + height, left : left + width] * rng.uniform(0.9, 1.1, 3)
    return Image.fromarray(np.rint(crop).clip(0, 255).astype(np.uint8))


def fit_map(
    work: Path, flags: Sequence[str], low: int, high: int, name: str = "map", seconds: float | None = None
) -> None:
    """Fits `<name>.safetensors` on a few photographs; by which method makes no difference to speed.

    Raises:
        subprocess.SubprocessError: if that fails, or takes more seconds.
    """
    for seed, side in ((2, "source"), (3, "target")):
        if not (work / side).is_dir():
            photographs(work / side, _FIT, low, high, seed=seed)
    sides = ["--source", str(work / "source"), "--target", str(work / "target"), "--map", f"{work}/{name}.safetensors"]
    command = [sys.executable, "-m", "pipelines.fit", *sides, "--method", "paper", *flags]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=seconds)


def run_child(
    module: str, what: str, settings: Mapping[str, Any], environment: Mapping[str, str], seconds: float | None = None
) -> Figures:
    """Runs a part of a benchmark in a process of its own, for so many seconds at most.

    Returns:
        What the part returned; if it returned `ready_at` (seconds since 1970, when its timed part began), then also
        `startup_seconds`, counted from the start of the process.

    Raises:
        SystemExit: with the end of the child's stderr, if it failed.
        subprocess.TimeoutExpired: if it took longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "settings.json", Path(folder) / "result.json"
        given.write_text(json.dumps(settings))  # too long for a command line
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        started = time.time()
        done = subprocess.run(
            [sys.executable, "-m", module, what, str(given), str(result)],
            env={**os.environ, "PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1", **environment},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        if done.returncode or not result.exists():
            raise SystemExit(f"{module} {what} failed ({done.returncode}):\n{done.stdout[-1000:]}{done.stderr[-4000:]}")
        figures: Figures = json.loads(result.read_text())
    if "ready_at" in figures:
        figures["startup_seconds"] = figures.pop("ready_at") - started
    return figures


def serve(parts: Sequence[Callable[[Figures], Figures]]) -> None:
    """The main function of a child's module: runs the part that the command line names."""
    what, given, result = sys.argv[1:]
    figures = next(part for part in parts if part.__name__ == what)(json.loads(Path(given).read_text()))
    Path(result).write_text(json.dumps(figures))
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(0)  # everything is done; taking torch down in order would last seconds


def peak_rss_bytes() -> int:
    """The most memory that this process has held resident since it started."""
    # Linux's ru_maxrss begins with what the parent held when it started this process; VmHWM doesn't.
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def machine() -> Figures:
    """Processor, cores and versions, for the record."""
    versions, cpu = {"python": platform.python_version()}, platform.machine()
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as info:
        cpu = next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    return {"cpu": cpu, "cores": os.cpu_count(), "versions": versions}


def describe(found: Mapping[str, Any]) -> str:
    """What `machine` found, as a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['cpu']}, {found['cores']} cores; {versions}."


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines: list[Sequence[object]] = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
