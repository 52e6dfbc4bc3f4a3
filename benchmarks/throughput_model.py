"""The part of benchmarks.throughput that looks at the model alone: Stable Diffusion's VAE, and what compiling gains.

`build` writes the VAE of Stable Diffusion 1 with random weights (speed doesn't depend on them, so no download is
needed). `model` measures encode and decode of preloaded tensors, channels last, in float32 and bfloat16, eager and
compiled, for one size in the best batch and for a mix of sizes one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Figures, serve

_BATCHES = {"cpu": (1,), "cuda": (1, 2, 4, 8, 16)}
_MIX = (1.0, 0.75, 1.25, 1.5)
#: Sides are multiples of this, which also the attention's kernels like.
_GRID = 32
Codec = Callable[[Tensor], Tensor]


def build(settings: Figures) -> Figures:
    """Writes the autoencoder into a folder in diffusers' format."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    vae.save_pretrained(settings["folder"])
    return {"parameters": sum(parameter.numel() for parameter in vae.parameters())}


@torch.inference_mode()
def model(settings: Figures) -> Figures:
    """Every variant's images and TFLOP a second, how far bfloat16 is from float32, and a profile of the fastest."""
    torch.set_num_threads(settings["threads"])
    device, size = settings["device"], settings["size"]
    torch.manual_seed(0)
    square = torch.rand(1, 3, size, size)
    mix = [torch.rand(1, 3, _side(size, a), _side(size, b)) for a, b in zip(_MIX, reversed(_MIX), strict=True)]
    rows: list[Figures] = []
    reference: Tensor | None = None
    fastest: tuple[float, Any] = (0.0, None)
    flops: dict[str, float] = {}
    for precision in ("float32", "bfloat16"):
        vae = diffusers.AutoModel.from_pretrained(settings["vae"], torch_dtype=torch.float32).eval()
        vae = vae.to(device, getattr(torch, precision)).to(memory_format=torch.channels_last)
        eager = _codec(vae.encode, vae.decode)
        inputs = {"one size": [square], "mixed sizes": mix}
        inputs = {name: [_placed(x, device, vae.dtype) for x in images] for name, images in inputs.items()}
        if not flops:
            flops = {name: sum(map(_counted(eager), images)) / len(images) for name, images in inputs.items()}
        decoded = (eager(inputs["one size"][0]).float().cpu() / 2 + 0.5).clamp(0, 1)
        reference = decoded if reference is None else reference
        psnr = None if precision == "float32" else float(-10 * torch.log10((decoded - reference).square().mean()))
        batch = _best_batch(eager, inputs["one size"][0], device)
        inputs["one size"] = [inputs["one size"][0].repeat(batch, 1, 1, 1)]
        for mode in settings["compile"]:
            torch._dynamo.reset()
            for name, images in inputs.items():
                row: Figures = {"precision": precision, "compile": mode, "sizes": name, "batch": len(images[0])}
                try:
                    codec = eager if mode == "none" else _codec(*_compiled(vae, mode))
                    row |= _speed(codec, images, settings["images"], device)
                except Exception as error:  # no compiler, no memory: a row of the table, not the end of it
                    row["error"] = " ".join(str(error).split())[:200]
                else:
                    row["tflops"] = row["images_per_second"] * flops[name] / 1e12
                    row["psnr_to_float32"] = psnr if mode == "none" else None
                    if name == "one size" and row["images_per_second"] > fastest[0]:
                        fastest = (row["images_per_second"], (codec, images[0], f"{precision}, compile {mode}"))
                rows.append(row)
    codec, images, label = fastest[1]
    return {
        "rows": rows,
        "tflop_per_image": {name: value / 1e12 for name, value in flops.items()},
        "profile_of": label,
        "profile": _profile(codec, images, device),
        "device_name": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def _side(size: int, factor: float) -> int:
    return max(_GRID, round(size * factor / _GRID) * _GRID)


def _placed(x: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    return (x * 2 - 1).to(device, dtype).contiguous(memory_format=torch.channels_last)


def _codec(encode: Callable[..., Any], decode: Callable[..., Any]) -> Codec:
    def run(x: Tensor) -> Tensor:
        decoded: Tensor = decode(encode(x).latent_dist.mode()).sample
        return decoded

    return run


def _compiled(vae: Any, mode: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    return torch.compile(vae.encode, mode=mode), torch.compile(vae.decode, mode=mode)


def _counted(codec: Codec) -> Callable[[Tensor], float]:
    def flops(x: Tensor) -> float:
        with FlopCounterMode(display=False) as counter:
            codec(x)
        return float(counter.get_total_flops())

    return flops


def _speed(codec: Codec, images: Sequence[Tensor], count: int, device: str) -> Figures:
    """After a first round over every shape, which compiles, the time of at least `count` images."""
    start = time.perf_counter()
    for _ in range(2):  # graphs are captured in the second call
        for x in images:
            codec(x)
    _synchronise(device)
    warm_up = time.perf_counter() - start
    each = sum(len(x) for x in images)
    rounds = -(-count // each)
    start = time.perf_counter()
    for _ in range(rounds):
        for x in images:
            codec(x)
    _synchronise(device)
    seconds = time.perf_counter() - start
    return {"images_per_second": rounds * each / seconds, "warm_up_seconds": warm_up}


def _best_batch(codec: Codec, image: Tensor, device: str) -> int:
    speeds = {}
    for batch in _BATCHES[device]:
        try:
            speeds[batch] = _speed(codec, [image.repeat(batch, 1, 1, 1)], batch, device)["images_per_second"]
        except torch.OutOfMemoryError:
            break
    return max(speeds, key=lambda batch: speeds[batch])


def _profile(codec: Codec, images: Tensor, device: str) -> str:
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        codec(images)
        _synchronise(device)
    return profiler.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=15, max_name_column_width=60)


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    serve([build, model])
