"""Three parts of benchmarks.throughput, which are loops over images: ceiling, side_by_side and paper_loop.

Each takes the settings that the parent made, loads its model, warms up, and then measures; see the parent.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from fsspec.core import url_to_fs
from PIL import Image
from torch import Tensor

import benchmarks.slow_storage  # noqa: F401 - registers slow://
import ot_core
from benchmarks.measure import Figures, peak_rss_bytes, serve
from ot_core import Autoencoder, load_autoencoder, read_map
from ot_core.autoencoder import replicating

_BATCHES = {"cpu": (1, 2, 4), "cuda": (1, 2, 4, 8, 16)}
_DEFAULT_FOLDER = Path(ot_core.__file__).parent / "vae"


def ceiling(settings: Figures) -> Figures:
    """Encode and decode alone, of tensors that are there already, in the batch that is fastest."""
    torch.set_num_threads(settings["threads"])
    device = settings["device"]
    autoencoder = load_autoencoder(settings["vae"], device, settings["precision"])
    images = [padded(path, autoencoder) for path in settings["paths"]]
    batch, trial = _best_batch(autoencoder, images, device)
    batches = [torch.cat(equal).to(device) for equal in _equal_shapes(images, batch)]
    del images
    ready_at, start = time.time(), time.perf_counter()
    for pixels in batches:
        autoencoder.decode(autoencoder.encode(pixels))
    _synchronise(device)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "ready_at": ready_at,
        "peak_rss_bytes": peak_rss_bytes(),
        "precision": autoencoder.precision,
        "batch": batch,
        "mean_batch": len(settings["paths"]) / len(batches),
        "trial_images_per_second": trial,
    }


def side_by_side(settings: Figures) -> Figures:
    """The same image by image, a core of the CPU for each; the largest first, so that none is late."""
    torch.set_num_threads(settings["threads"])
    autoencoder = load_autoencoder(settings["vae"], settings["device"], settings["precision"])
    images = sorted((padded(path, autoencoder) for path in settings["paths"]), key=Tensor.numel, reverse=True)

    def work(pixels: Tensor) -> None:
        autoencoder.decode(autoencoder.encode(pixels))

    with ThreadPoolExecutor(settings["threads"], initializer=torch.set_num_threads, initargs=(1,)) as workers:
        list(workers.map(work, images[-4:]))
        ready_at, start = time.time(), time.perf_counter()
        list(workers.map(work, images))
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "ready_at": ready_at, "peak_rss_bytes": peak_rss_bytes()}


def padded(path: str, autoencoder: Autoencoder) -> Tensor:
    """A photograph as a tensor (1, 3, H, W), padded as the autoencoder needs it."""
    pixels = np.array(Image.open(path).convert("RGB"))
    return autoencoder.pad(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)


def _equal_shapes(images: list[Tensor], batch: int) -> Iterator[list[Tensor]]:
    for _, equal in itertools.groupby(sorted(images, key=lambda x: x.shape), key=lambda x: x.shape):
        tensors = list(equal)
        yield from (tensors[begin : begin + batch] for begin in range(0, len(tensors), batch))


def _best_batch(autoencoder: Autoencoder, images: list[Tensor], device: str) -> tuple[int, dict[str, float]]:
    """The batch with the most images a second on an image of middle size; the trial warms up, too."""
    image = sorted(images, key=lambda x: x.numel())[len(images) // 2].to(device)
    speeds = {}
    for batch in _BATCHES[device]:
        pixels = image.repeat(batch, 1, 1, 1)
        for repeat in range(4):
            if repeat == 1:  # the first was a warm-up
                start = time.perf_counter()
            autoencoder.decode(autoencoder.encode(pixels))
            _synchronise(device)
        speeds[batch] = 3 * batch / (time.perf_counter() - start)
    best = max(speeds, key=lambda batch: speeds[batch])
    return best, {str(batch): speed for batch, speed in speeds.items()}


@torch.no_grad()
def paper_loop(settings: Figures) -> Figures:
    """One image after the other in float32, patches in float64: how the method's own code goes about it."""
    torch.set_num_threads(settings["threads"])
    device = settings["device"]
    vae = diffusers.AutoModel.from_pretrained(settings["vae"] or str(_DEFAULT_FOLDER), torch_dtype=torch.float32)
    vae = vae.eval().to(device)
    fitted = read_map(settings["map"])
    margin = fitted.space.margin
    vae = replicating(vae) if margin else vae  # as edges are treated, whoever computes
    p, matrix = fitted.space.patch_size, torch.from_numpy(fitted.map.matrix).to(device)
    source_mean = torch.from_numpy(fitted.map.source_mean).to(device)[:, None]
    target_mean = torch.from_numpy(fitted.map.target_mean).to(device)[:, None]
    fs, _ = url_to_fs(settings["paths"][0])

    def encode(x: Tensor) -> Tensor:
        encoded = vae.encode(x)
        latent: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        return latent

    factor = 128 // encode(torch.zeros(1, 3, 128, 128, device=device)).shape[-1]

    def transport_one(path: str, result: str) -> None:
        image = np.array(Image.open(io.BytesIO(fs.cat_file(path))).convert("RGB"))
        height, width = image.shape[:2]
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float().to(device) / 255 * 2 - 1
        around = (margin, margin + -width % factor, margin, margin + -height % factor)
        x = F.pad(x, around, mode="replicate")
        z = F.pad(encode(x), (p // 2,) * 4, mode="replicate")
        patches = F.unfold(z, p)[0].double()
        patches = matrix @ (patches - source_mean) + target_mean
        size = z.shape[-2:]
        counts = F.fold(F.unfold(torch.ones_like(z), p), size, p)
        z = F.fold(patches.float()[None], size, p) / counts
        z = z[..., p // 2 : size[0] - p // 2, p // 2 : size[1] - p // 2]
        x = vae.decode(z.contiguous()).sample[0, :, margin : margin + height, margin : margin + width]
        pixels = ((x / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        fs.pipe_file(result, buffer.getvalue())

    results = _results(settings)
    for path in settings["warm_up_paths"]:
        transport_one(path, results[0])
    ready_at, start = time.time(), time.perf_counter()
    for path, result in zip(settings["paths"], results, strict=True):
        transport_one(path, result)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "ready_at": ready_at, "peak_rss_bytes": peak_rss_bytes()}


def _results(settings: Figures) -> Sequence[str]:
    folder = f"{settings['output']}/input/images"
    fs, path = url_to_fs(folder)
    fs.makedirs(path, exist_ok=True)
    return [f"{folder}/{Path(source).stem}.png" for source in settings["paths"]]


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    serve([ceiling, side_by_side, paper_loop])
