"""Does the job keep a device busy? A stand-in for one, which sleeps, on a machine that has none.

    python -m benchmarks.stand_in --output benchmarks/results/stand-in.md

The stand-in takes 10 ms for an image of 512 x 512 pixels, as an H100 might with Stable Diffusion's autoencoder: a batch
of 16 is encoded, mapped, decoded and blended while the thread sleeps, one batch after the other, and the CPU is left
alone. Everything else is real: JPEG files behind storage that takes 50 ms a call, reading, decoding, batching, stacking
what goes to the device, copying what comes back, statistics of latents, PNG files, manifest.
"""

from __future__ import annotations

import argparse
import functools
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Figures, describe, fit_map, machine, photographs, run_child, serve, table
from benchmarks.pages import publish
from benchmarks.slow_storage import LATENCY
from ot_core import engine
from ot_core.pixel_transport import Transported
from ot_core.transfer import Pixels, stacked, unit

SIDE, BATCH = 512, 16
#: Seconds for an image of SIDE x SIDE pixels, encoding and decoding together.
SECONDS = 0.01


class Latents(nn.Module):
    """Averages squares of 8 x 8 pixels: something to fit a map to."""

    downsampling_factor = 8

    def encode(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3, H/8, W/8)."""
        return F.avg_pool2d(x, 8)

    def decode(self, z: Tensor) -> Tensor:
        """The other way."""
        return F.interpolate(z, scale_factor=8.0)


def autoencoder() -> Latents:
    """What `--vae benchmarks.stand_in:autoencoder` loads."""
    return Latents()


class Device:
    """Takes the place of `ot_core.pixel_transport.transport_pixels`."""

    def __init__(self) -> None:
        self._turn = threading.Lock()

    def __call__(
        self, pixels: Sequence[Pixels], autoencoder: Any, transport: Any, alphas: Sequence[float], *_: Any
    ) -> Transported:
        """Gives each image back for each alpha, when the device would have done with the batch."""
        batch = stacked(pixels, *pixels[0].shape[:2])
        with self._turn:
            time.sleep(SECONDS * batch.shape[0] * batch.shape[1] * batch.shape[2] / SIDE**2)
        results: list[Any] = [tuple(image.copy() for _ in alphas) for image in batch.numpy()]
        latents = unit(batch[:, ::8, ::8])
        return Transported(results, latents, latents)


def job(settings: Figures) -> Figures:
    """dot-transport, in whose process the stand-in is a device that takes batches."""
    from benchmarks import throughput_job  # noqa: PLC0415 - not where only the autoencoder is loaded
    from transforms import transport_handler  # noqa: PLC0415

    engine.workers_of = lambda device: None
    transport_handler.transport_pixels = Device()  # type: ignore[attr-defined, assignment]
    return throughput_job.job(settings)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=int, nargs=2, default=[400, 1600], help="few and many")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8], help="harness threads")
    parser.add_argument("--latency_ms", type=float, default=50.0, help="of each call of storage")
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    args = parser.parse_args(argv)
    publish(functools.partial(_page, args), args.output)


def _page(args: argparse.Namespace, work: Path) -> str:
    for count in args.images:
        photographs(work / f"input-{count}", count, SIDE, SIDE, seed=0, distinct=64)
    photographs(work / "warm_up", BATCH, SIDE, SIDE, seed=1)
    fit_map(work, ["--vae", "benchmarks.stand_in:autoencoder"], 96, 128)
    rows, spent = [], ""
    for threads in args.threads:
        middles = []
        for count in args.images:
            found = [_run(args, work, threads, count, repeat) for repeat in range(args.repeat)]
            middles.append(sorted(found, key=lambda figures: figures["seconds"])[len(found) // 2])
        few, many = (middle["seconds"] for middle in middles)
        speeds = [args.images[1] / many, (args.images[1] - args.images[0]) / (many - few)]
        rows.append([threads, *(f"{speed:.1f}, {speed * SECONDS:.2f}" for speed in speeds)])
        stages = sorted(middles[1]["stage_seconds"].items(), key=lambda item: -item[1])
        spent = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages)
    return "\n\n".join(
        [
            "# A stand-in for a device",
            f"{describe(machine())} `python -m benchmarks.stand_in` says what is measured: {args.images[1]} images of "
            f"{SIDE} x {SIDE} pixels, batches of {BATCH}, storage that takes {args.latency_ms:g} ms a call; medians of "
            f"{args.repeat}. The device alone would do {1 / SECONDS:g} images/s.",
            "Images a second, and their share of the device's: of the whole command, with its checks, listing and "
            f"manifest, and of those beyond {args.images[0]}, which is the speed of a long job.",
            table(["harness threads", "the whole command", "each further image"], rows),
            f"Seconds in the stages of the last, summed over threads that work at the same time: {spent}.",
        ]
    )


def _run(args: argparse.Namespace, work: Path, threads: int, count: int, repeat: int) -> Figures:
    parallel = ["--direct_running_mode", "multi_threading", "--direct_num_workers", str(threads)]
    settings = {
        "vae": "benchmarks.stand_in:autoencoder",
        "precision": "float32",
        "threads": 2,
        "map": str(work / "map.safetensors"),
        "input": f"slow://{work}/input-{count}",
        "warm_up": f"slow://{work}/warm_up",
        "output": f"slow://{work}/output-{threads}-{count}-{repeat}",
        "job_args": [*parallel, "--max_batch_pixels", str(BATCH * SIDE**2)],
    }
    environment = {LATENCY: str(args.latency_ms), "CUDA_VISIBLE_DEVICES": ""}
    figures = run_child("benchmarks.stand_in", "job", settings, environment)
    print(f"{threads} threads: {count / figures['seconds']:.1f} images/s", flush=True)
    return figures


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "job":
        serve([job])
    main()
