"""The part of benchmarks.throughput that does the same work with Ray Data.

Reading and writing are tasks, the model is an actor that loads it once; all stream. What only waits for storage asks
for a fraction of a core, so that several such tasks run beside the actor.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
import tempfile
import time
from itertools import groupby
from typing import Any

import numpy as np
import torch
from fsspec.core import url_to_fs
from PIL import Image

from benchmarks.measure import Figures, serve
from ot_core import LatentTransport, load_autoencoder, read_map
from ot_core.encoding import DEFAULT_COMPRESS_LEVEL

#: Images in a block, which is what a task works on.
_BLOCK = 8
_IO_CORES = 0.25

Row = dict[str, Any]


def _read(row: Row) -> Row:
    import benchmarks.slow_storage  # noqa: F401, PLC0415 - registers slow:// in this worker

    fs, path = url_to_fs(row["path"])
    return {"path": row["path"], "pixels": np.asarray(Image.open(io.BytesIO(fs.cat_file(path))).convert("RGB"))}


class _Transport:
    """The actor."""

    def __init__(self, settings: Figures) -> None:
        torch.set_num_threads(settings["threads"])
        self._autoencoder = load_autoencoder(settings["vae"], settings["device"], settings["precision"])
        fitted = read_map(settings["map"])
        self._transport = LatentTransport(fitted.map, fitted.space.patch_size, device=self._autoencoder.device)
        for path in settings["warm_up_paths"]:
            self._transported([_read({"path": path})["pixels"]])
        self._started = 0.0

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._started = self._started or time.time()
        order = sorted(range(len(batch["path"])), key=lambda i: batch["pixels"][i].shape)
        results: list[Any] = [None] * len(order)
        for _, indices in groupby(order, key=lambda i: batch["pixels"][i].shape):
            equal = list(indices)
            groups = [equal] if self._autoencoder.device.type == "cuda" else [[index] for index in equal]
            for group in groups:
                transported = self._transported([batch["pixels"][index] for index in group])
                for index, pixels in zip(group, transported, strict=True):
                    results[index] = pixels
        return {"path": batch["path"], "pixels": results, "started": [self._started] * len(results)}

    @torch.inference_mode()
    def _transported(self, images: list[Any]) -> Any:
        height, width = images[0].shape[:2]
        x = torch.from_numpy(np.stack(images)).to(self._autoencoder.device).permute(0, 3, 1, 2).float() / 255
        latents = self._transport(self._autoencoder.encode(self._autoencoder.pad(x)))
        decoded = self._autoencoder.decode(latents)[..., :height, :width]
        return (decoded * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _write(row: Row, folder: str) -> Row:
    import benchmarks.slow_storage  # noqa: F401, PLC0415 - registers slow:// in this worker

    buffer = io.BytesIO()
    Image.fromarray(row["pixels"]).save(buffer, "PNG", compress_level=DEFAULT_COMPRESS_LEVEL)
    name = os.path.splitext(os.path.basename(row["path"]))[0]
    fs, path = url_to_fs(f"{folder}/{name}.png")
    fs.makedirs(os.path.dirname(path), exist_ok=True)
    fs.pipe_file(path, buffer.getvalue())
    return {"started": row["started"]}


def ray_data(settings: Figures) -> Figures:
    """Timed from the first batch that reaches the loaded model to the end of the last write.

    What Ray read ahead while the actor was loading isn't counted against it.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray: Any = importlib.import_module("ray")  # an extra of the project
    data: Any = importlib.import_module("ray.data")
    temporary = tempfile.mkdtemp(prefix="ray-")  # a short path: sockets are in it
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    ray.init(
        num_cpus=max(2, settings["threads"]),
        num_gpus=1 if settings["device"] == "cuda" else 0,
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=2**30,
        _temp_dir=temporary,
    )
    try:
        data.DataContext.get_current().enable_progress_bars = False
        paths = [{"path": path} for path in settings["paths"]]
        done = (
            data.from_items(paths, override_num_blocks=-(-len(paths) // _BLOCK))
            .map(_read, num_cpus=_IO_CORES)
            .map_batches(
                _Transport,
                fn_constructor_args=(settings,),
                batch_size=_BLOCK,
                concurrency=1,
                num_cpus=1,
                num_gpus=1 if settings["device"] == "cuda" else 0,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(settings["threads"])}},
            )
            .map(_write, fn_args=(f"{settings['output']}/input/images",), num_cpus=_IO_CORES)
            .take_all()
        )
        end = time.time()
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)
    if len(done) != len(paths):
        raise SystemExit(f"Ray Data gave {len(done)} results of {len(paths)} images")
    started = min(row["started"] for row in done)
    return {"seconds": end - started, "ready_at": started}


if __name__ == "__main__":
    serve([ray_data])
