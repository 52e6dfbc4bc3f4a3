"""The part of benchmarks.scale that does the job's work without Beam."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Figures, serve
from ot_core import LatentTransport, decode_image, encode_image, load_autoencoder, read_map, storage

_THREADS = (1, 2, 4, 16)
#: Images of the trial that chooses the number of threads.
_TRIAL = 500


def plain_loop(settings: Figures) -> Figures:
    """What the job does to each image, without Beam: a loop in as many threads as are fastest."""
    torch.set_num_threads(settings["threads"])
    autoencoder = load_autoencoder(settings["vae"], "cpu", settings["precision"])
    fitted = read_map(settings["map"])
    transport = LatentTransport(fitted.map, fitted.space.patch_size, device="cpu")

    @torch.inference_mode()
    def one(path: str) -> str:
        image = decode_image(storage.read_bytes(path))
        height, width = image.pixels.shape[:2]
        x = torch.from_numpy(np.array(image.pixels)).permute(2, 0, 1)[None].float() / 255
        decoded = autoencoder.decode(transport(autoencoder.encode(autoencoder.pad(x))))
        pixels = (decoded[0, :, :height, :width] * 255).round().byte().permute(1, 2, 0).numpy()
        data = encode_image(np.ascontiguousarray(pixels), image, "png")
        storage.write_bytes(f"{settings['output']}/{Path(path).stem}.png", data)
        return hashlib.sha256(data).hexdigest()

    def all_of(paths: list[str], threads: int) -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(one, paths):
                pass
        return time.perf_counter() - start

    trial = settings["paths"][:_TRIAL]
    all_of(trial[:50], 1)
    threads = min(_THREADS, key=lambda n: all_of(trial, n))
    return {"threads": threads, "seconds": all_of(settings["paths"], threads)}


if __name__ == "__main__":
    serve([plain_loop])
