"""The parts of benchmarks.fitting that are measured, each in a process of its own."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from benchmarks.measure import Figures, peak_rss_bytes, serve
from benchmarks.throughput_loops import padded
from ot_core import load_autoencoder
from ot_core.engine import threads_of_one_core
from pipelines import fit


def encoder(settings: Figures) -> Figures:
    """The encoder alone, image by image, each with all threads."""
    return _encode(settings, map)


def side_by_side(settings: Figures) -> Figures:
    """The encoder alone, a core for each image, as dot-fit does it."""
    with threads_of_one_core(settings["threads"]) as threads:
        return _encode(settings, threads.map)


def _encode(settings: Figures, apply: Callable[..., Iterable[Tensor]]) -> Figures:
    torch.set_num_threads(settings["threads"])
    autoencoder = load_autoencoder(settings["vae"], "cpu", settings["precision"])
    images = sorted((padded(path, autoencoder) for path in settings["paths"]), key=Tensor.numel, reverse=True)
    collections.deque(apply(autoencoder.encode, images[-8:]), maxlen=0)
    ready_at, start = time.time(), time.perf_counter()
    collections.deque(apply(autoencoder.encode, images), maxlen=0)
    return {"seconds": time.perf_counter() - start, "ready_at": ready_at, "peak_rss_bytes": peak_rss_bytes()}


def job(settings: Figures) -> Figures:
    """dot-fit a second time in one process: the first has loaded the model."""
    torch.set_num_threads(settings["threads"])
    for name in ("warm_up", "images"):
        ready_at, start = time.time(), time.perf_counter()
        argv = ["--source", f"{settings[name]}/source", "--target", f"{settings[name]}/target"]
        argv += ["--map", f"{settings['work']}/{name}.safetensors", "--precision", settings["precision"]]
        argv += ["--vae", settings["vae"]] if settings["vae"] else []
        if code := fit.main(argv):
            raise SystemExit(code)
    return {"seconds": time.perf_counter() - start, "ready_at": ready_at, "peak_rss_bytes": peak_rss_bytes()}


if __name__ == "__main__":
    serve([encoder, side_by_side, job])
