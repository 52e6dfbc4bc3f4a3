"""What a restorer costs within dot-transport: the job against the bare restorer, encoder and decoder on the same cores.

The bare loop takes images that are decoded already, a core for each image, through restorer, encoder and decoder, and
writes nothing. The job reads PNG files and writes PNG files, from its first to its last image.

    python -m benchmarks.restoring --output benchmarks/results/restoring.md
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.degrading import degraded
from benchmarks.judge import sample
from benchmarks.pages import write_page
from benchmarks.restorers import shared_data
from ot_core import load_autoencoder, load_restorer
from ot_core.autoencoder import to_tensor
from ot_core.engine import threads_of_one_core
from pipelines import fit, transport

RESTORER = str(shared_data() / "denoisers/dncnn-s-25.safetensors")


def bare(folder: Path) -> float:
    """Seconds of the bare loop."""
    restorer, autoencoder = load_restorer(RESTORER), load_autoencoder(precision=None)
    images = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]

    def one(pixels: np.ndarray) -> None:
        (restored,) = restorer([pixels])
        assert isinstance(restored, np.ndarray)
        autoencoder.decode(autoencoder.encode(to_tensor([restored], autoencoder)))

    with threads_of_one_core(torch.get_num_threads()) as threads:
        list(threads.map(one, images[:2]))  # warms up
        start = time.perf_counter()
        list(threads.map(one, images))
        return time.perf_counter() - start


def job(folder: Path, map_url: str, output: Path) -> float:
    """Seconds of dot-transport, from its pipeline's start to its end."""
    shutil.rmtree(output, ignore_errors=True)
    arguments = ["--input", str(folder), "--restorer", RESTORER, "--map", map_url, "--output", str(output)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert transport.main([*arguments, "--summary", str(output.parent / "summary.json")]) == 0
    return float(json.loads((output.parent / "summary.json").read_text())["seconds"])


def main() -> None:
    """Measures both in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/restoring"))
    parser.add_argument("--output", type=Path, help="Markdown file to write; default: print only")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    original = args.work / "original"
    original.mkdir(parents=True)
    for path in sample(shared_data() / "photos/val", args.images, seed=1):
        Image.open(path).convert("RGB").save(original / f"{path.stem}.png")
    given = degraded(original, "noise:25", args.work / "degraded")
    map_url = str(args.work / "map.safetensors")
    sides = ["--target", str(original), "--max_images", "8", "--degrade", "noise:25", "--restorer", RESTORER]
    assert fit.main([*sides, "--map", map_url]) == 0
    runs = [(bare(given), job(given, map_url, args.work / "out")) for _ in range(args.repeat)]
    ratios = sorted(of_job / of_loop for of_loop, of_job in runs)
    text = "\n".join(
        [
            "# A restorer within the job",
            "",
            f"{args.images} photographs of 481x321 pixels, DnCNN, the default autoencoder, {torch.get_num_threads()} "
            f"cores, {args.repeat} runs of each in turn.",
            "",
            f"- bare restorer, encoder and decoder: {statistics.median(run[0] for run in runs):.1f} s",
            f"- the job, reading and writing included: {statistics.median(run[1] for run in runs):.1f} s",
            f"- ratio: {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
            "",
        ]
    )
    print(text)
    if args.output:
        write_page(args.output, text)


if __name__ == "__main__":
    main()
