"""Does the job keep a device busy? A stand-in for one, which sleeps, on a machine that has none.

    python -m benchmarks.stand_in --output benchmarks/results/stand-in.md

The stand-in encodes and decodes an image of 512 x 512 pixels in 10 ms, as an H100 might Stable Diffusion's, one batch
of 16 after the other, and leaves the CPU alone meanwhile. Everything else is real: JPEG files behind storage that takes
50 ms a call, reading, decoding, batching, blending, PNG files, manifest. The map and the blending, which a GPU would
do, are done by the CPU beside it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import throughput_job
from benchmarks.measure import ROOT, Figures, describe, machine, photographs, run_child, serve, table
from benchmarks.pages import write_page
from benchmarks.slow_storage import LATENCY
from ot_core import engine

SIDE, BATCH = 512, 16
#: Seconds for an image of SIDE x SIDE pixels, encoding and decoding together.
SECONDS = 0.01


class Sleeper(nn.Module):
    """Averages squares of 8 x 8 pixels, and sleeps as long as a device would compute; one thread at a time."""

    downsampling_factor = 8

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.Lock()

    def encode(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3, H/8, W/8)."""
        latents = F.avg_pool2d(x, 8)
        self._sleep(x.shape[0] * x.shape[2] * x.shape[3])
        return latents

    def decode(self, z: Tensor) -> Tensor:
        """The other way."""
        pixels = F.interpolate(z, scale_factor=8.0)
        self._sleep(pixels.shape[0] * pixels.shape[2] * pixels.shape[3])
        return pixels

    def _sleep(self, pixels: int) -> None:
        with self._turn:
            time.sleep(SECONDS / 2 * pixels / SIDE**2)


def autoencoder() -> Sleeper:
    """What `--vae benchmarks.stand_in:autoencoder` loads."""
    return Sleeper()


def job(settings: Figures) -> Figures:
    """dot-transport, in whose process the stand-in counts as a device that takes batches."""
    torch.manual_seed(0)
    engine.workers_of = lambda device: None
    return throughput_job.job(settings)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8], help="harness threads")
    parser.add_argument("--latency_ms", type=float, default=50.0, help="of each call of storage")
    parser.add_argument("--formats", nargs="+", default=["png", "jpeg"], help="of the results")
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        text = _page(args, Path(folder))
    print(text)
    if args.output:
        write_page(args.output, text)


def _page(args: argparse.Namespace, work: Path) -> str:
    photographs(work / "input", args.images, SIDE, SIDE, seed=0, distinct=64)
    photographs(work / "warm_up", BATCH, SIDE, SIDE, seed=1)
    for seed, side in ((2, "source"), (3, "target")):
        photographs(work / side, 4, 96, 128, seed=seed)
    vae = ["--vae", "benchmarks.stand_in:autoencoder"]
    flags = ["--source", work / "source", "--target", work / "target", "--map", work / "map.safetensors"]
    command = [sys.executable, "-m", "pipelines.fit", *map(str, flags), *vae, "--method", "paper"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows, spent = [], ""
    for image_format in args.formats:
        for threads in args.threads:
            found = [_run(args, work, threads, image_format, repeat) for repeat in range(args.repeat)]
            middle = sorted(found, key=lambda figures: figures["seconds"])[len(found) // 2]
            speed = args.images / middle["seconds"]
            rows.append([image_format, threads, f"{speed:.1f}", f"{speed * SECONDS:.2f}"])
            stages = sorted(middle["stage_seconds"].items(), key=lambda item: -item[1])
            spent = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages)
    return "\n\n".join(
        [
            "# A stand-in for a device",
            f"{describe(machine())} `python -m benchmarks.stand_in` says what is measured: {args.images} images of "
            f"{SIDE} x {SIDE} pixels, batches of {BATCH}, storage that takes {args.latency_ms:g} ms a call; medians of "
            f"{args.repeat}. The device alone would do {1 / SECONDS:g} images/s.",
            table(["results", "harness threads", "images/s", "share of the device's"], rows),
            f"Seconds in the stages of the last, summed over threads that work at the same time: {spent}.",
        ]
    )


def _run(args: argparse.Namespace, work: Path, threads: int, image_format: str, repeat: int) -> Figures:
    parallel = ["--direct_running_mode", "multi_threading", "--direct_num_workers", str(threads)]
    settings = {
        "vae": "benchmarks.stand_in:autoencoder",
        "precision": "float32",
        "threads": 2,
        "map": str(work / "map.safetensors"),
        "input": f"slow://{work}/input",
        "warm_up": f"slow://{work}/warm_up",
        "output": f"slow://{work}/output-{image_format}-{threads}-{repeat}",
        "job_args": [*parallel, "--max_batch_pixels", str(BATCH * SIDE**2), "--format", image_format],
    }
    environment = {LATENCY: str(args.latency_ms), "CUDA_VISIBLE_DEVICES": ""}
    figures = run_child("benchmarks.stand_in", "job", settings, environment)
    print(f"{image_format}, {threads} threads: {args.images / figures['seconds']:.1f} images/s", flush=True)
    return figures


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "job":
        serve([job])
    main()
