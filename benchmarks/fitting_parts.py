"""The parts of benchmarks.fitting that are measured, each in a process of its own."""

from __future__ import annotations

import time

import torch

from benchmarks.measure import Figures, peak_rss_bytes, serve
from benchmarks.throughput_loops import padded
from ot_core import load_autoencoder
from pipelines import fit


def encoder(settings: Figures) -> Figures:
    """The encoder alone."""
    torch.set_num_threads(settings["threads"])
    autoencoder = load_autoencoder(None, "cpu", settings["precision"])
    images = [padded(path, autoencoder) for path in settings["paths"]]
    for pixels in images[:4]:
        autoencoder.encode(pixels)
    ready_at, start = time.time(), time.perf_counter()
    for pixels in images:
        autoencoder.encode(pixels)
    return {"seconds": time.perf_counter() - start, "ready_at": ready_at, "peak_rss_bytes": peak_rss_bytes()}


def job(settings: Figures) -> Figures:
    """dot-fit a second time in one process: the first has loaded the model."""
    torch.set_num_threads(settings["threads"])
    for name in ("warm_up", "images"):
        ready_at, start = time.time(), time.perf_counter()
        argv = ["--source", f"{settings[name]}/source", "--target", f"{settings[name]}/target"]
        argv += ["--map", f"{settings['work']}/{name}.safetensors", "--precision", settings["precision"]]
        if code := fit.main(argv):
            raise SystemExit(code)
    return {"seconds": time.perf_counter() - start, "ready_at": ready_at, "peak_rss_bytes": peak_rss_bytes()}


if __name__ == "__main__":
    serve([encoder, job])
