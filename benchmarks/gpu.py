"""All that a GPU can be asked in eight minutes: the model's ceiling, how near the job comes, and what is left.

    python -m benchmarks.gpu --json gpu.json --output gpu.md

For a bare machine with torch, apache-beam and diffusers, without a network: Stable Diffusion's autoencoder is built
with random weights, on which speed doesn't depend. Measured, each in a process of its own, the most telling first:

- ceiling: encode and decode of 512 x 512 tensors on the device, in the fastest batch, and of a mix of sizes, one by
  one; eager and compiled, in several precisions, channels last or not; images a second, and the share of the device's
  arithmetic peak;
- job: dot-transport, JPEG in, PNG out, with local files and with storage that takes 50 ms a call;
- profile: where the time of the fastest variant goes.

What fails, or doesn't fit into the time, is a row that says so.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Figures, describe, fit_map, machine, photographs, run_child, serve, table
from benchmarks.pages import write_page
from benchmarks.slow_storage import LATENCY

#: Precision, what torch.compile is told, and whether channels come last; the first is what the job does.
VARIANTS = (
    ("bfloat16", "none", True),
    ("float32", "none", True),
    ("bfloat16", "default", True),
    ("bfloat16", "none", False),
    ("float16", "none", True),
    ("bfloat16", "max-autotune", True),
)
_BATCHES = (1, 2, 4, 8, 16)
#: Heights and widths of the mix, as multiples of the size.
_MIX = ((1.0, 1.5), (0.75, 1.25), (1.25, 0.75), (1.5, 1.0))
#: Dense bfloat16 TFLOP/s of tensor cores, by what the device's name contains; NVIDIA's data sheets.
_PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L4": 121.0, "T4": 65.0}


def build(settings: Figures) -> Figures:
    """Writes the autoencoder of Stable Diffusion 1, of random weights, into a folder in diffusers' format."""
    import diffusers  # noqa: PLC0415 - takes seconds, which the parent needn't

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=settings.get("channels", (128, 256, 512, 512)),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    vae.save_pretrained(settings["folder"])
    return {}


@torch.inference_mode()
def ceiling(settings: Figures) -> Figures:
    """Images and TFLOP a second of one variant."""
    import diffusers  # noqa: PLC0415 - takes seconds, which the parent needn't
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    from ot_core.hardware import computing_on  # noqa: PLC0415

    device, size, dtype = settings["device"], settings["size"], getattr(torch, settings["precision"])
    order = torch.channels_last if settings["channels_last"] else torch.contiguous_format
    vae: Any = diffusers.AutoModel.from_pretrained(settings["vae"], torch_dtype=torch.float32).eval()
    vae = vae.to(device, dtype).to(memory_format=order)
    encode, decode = vae.encode, vae.decode
    if settings["compiled"] != "none":
        encode, decode = (torch.compile(one, mode=settings["compiled"]) for one in (encode, decode))

    def run(images: Sequence[torch.Tensor]) -> None:
        for x in images:
            decode(encode(x).latent_dist.mode())
        if device == "cuda":
            torch.cuda.synchronize()

    def placed(*shape: int) -> torch.Tensor:
        return torch.rand(shape).mul(2).sub(1).to(device, dtype).contiguous(memory_format=order)

    def speed(images: Sequence[torch.Tensor], least: int) -> float:
        for _ in range(2):  # compiles, and captures graphs
            run(images)
        count, start = 0, time.perf_counter()
        while count < least:
            run(images)
            count += sum(map(len, images))
        return count / (time.perf_counter() - start)

    with computing_on(device):
        with FlopCounterMode(display=False) as counter:
            vae.decode(vae.encode(placed(1, 3, size, size)).latent_dist.mode())
        flops, speeds = float(counter.get_total_flops()), dict[int, float]()
        for batch in _BATCHES if settings["compiled"] == "none" and device != "cpu" else (settings.get("batch", 1),):
            try:
                speeds[batch] = speed([placed(batch, 3, size, size)], max(batch * 4, settings["images"] // 8))
            except torch.OutOfMemoryError:
                break
        best = max(speeds, key=lambda batch: speeds[batch])
        mix = [placed(1, 3, *(max(32, round(size * side / 32) * 32) for side in sides)) for sides in _MIX]
        figures = {"batch": best, "images_per_second": speeds[best], "flops": flops, "mix": speed(mix, 8)}
        if settings["profiled"]:
            activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
            with profile(activities=activities) as profiler:
                run([placed(best, 3, size, size)])
            found = profiler.key_averages()
            figures["profile"] = found.table(f"self_{device}_time_total", row_limit=15, max_name_column_width=60)
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Measures until the time is up, and writes what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing more begins")
    parser.add_argument("--channels", type=int, nargs=4, default=[128, 256, 512, 512], help="of the autoencoder")
    parser.add_argument("--peak_tflops", type=float, help="of the device in bfloat16; known for some")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder), time.monotonic() + 60 * args.minutes)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    text = render(found)
    print(text)
    if args.output:
        write_page(args.output, text)


def measure(args: argparse.Namespace, work: Path, end: float) -> Figures:
    """Every figure that there was time for."""
    cuda = args.device == "cuda" and torch.cuda.is_available()
    name = torch.cuda.get_device_name() if cuda else args.device
    peak = args.peak_tflops or next((peak for part, peak in _PEAKS.items() if part in re.split(r"[\s-]", name)), None)
    found: Figures = {"machine": machine(), "device": name, "size": args.size, "peak_tflops": peak, "ceiling": []}

    def attempt(part: Callable[[float], Figures], **kind: Any) -> Figures:
        """What a part gives, in the time that is left, or why it gives nothing."""
        left, start = end - time.monotonic(), time.monotonic()
        try:
            figures = part(left) if left > 0 else {"error": "no time left"}
        except (SystemExit, subprocess.SubprocessError) as error:
            figures = {"error": " ".join(str(error).split())[-300:]}
        print(f"{kind}: {figures.get('error') or 'done'}, {time.monotonic() - start:.0f} s", flush=True)
        return kind | figures

    vae = str(work / "vae")
    run_child("benchmarks.gpu", "build", {"folder": vae, "channels": args.channels}, {})
    common = {"vae": vae, "device": args.device, "size": args.size, "images": args.images}

    def variant(index: int) -> None:
        precision, compiled, channels_last = VARIANTS[index]
        kind = {"precision": precision, "compiled": compiled, "channels_last": channels_last}
        best = found["ceiling"][0].get("batch", 1) if found["ceiling"] else 1
        settings = {**common, **kind, "profiled": index == 0, "batch": best}
        row = attempt(lambda left: run_child("benchmarks.gpu", "ceiling", settings, {}, left), **kind)
        found["ceiling"].append(row)

    variant(0)
    fitted = attempt(lambda left: _prepared(args, work, vae, left), what="fit")
    found["job"] = [
        fitted if "error" in fitted else attempt(functools.partial(_job, args, work, vae, ms), latency_ms=ms)
        for ms in (0.0, 50.0)
    ]
    for index in range(1, len(VARIANTS)):
        variant(index)
    return found


def _prepared(args: argparse.Namespace, work: Path, vae: str, seconds: float) -> Figures:
    photographs(work / "input", args.images, args.size, args.size, seed=0, distinct=64)
    photographs(work / "warm_up", 16, args.size, args.size, seed=1)
    fit_map(work, ["--vae", vae, "--device", args.device], args.size, args.size, seconds=seconds)
    return {}


def _job(args: argparse.Namespace, work: Path, vae: str, latency_ms: float, seconds: float) -> Figures:
    root = f"slow://{work}" if latency_ms else str(work)
    settings = {
        "vae": vae,
        "precision": None,
        "threads": len(os.sched_getaffinity(0)),
        "map": str(work / "map.safetensors"),
        "input": f"{root}/input",
        "warm_up": f"{root}/warm_up",
        "output": f"{root}/output-{latency_ms:g}",
        "job_args": ["--device", args.device],
    }
    figures = run_child("benchmarks.throughput_job", "job", settings, {LATENCY: str(latency_ms)}, seconds)
    return figures | {"images_per_second": args.images / figures["seconds"]}


def render(found: Mapping[str, Any]) -> str:
    """The Markdown page."""
    peak, rows = found["peak_tflops"], []
    for row in found["ceiling"]:
        start = [row["precision"], row["compiled"], "last" if row["channels_last"] else "first"]
        if "error" in row:
            rows.append([*start, f"failed: {row['error']}", "", "", ""])
            continue
        tflops = row["images_per_second"] * row["flops"] / 1e12
        share = f" ({tflops / peak:.0%} of the peak)" if peak else ""
        speed = f"{row['images_per_second']:.2f}"
        rows.append([*start, speed, row["batch"], f"{tflops:.3g}{share}", f"{row['mix']:.2f}"])
    first, jobs = found["ceiling"][0], []
    for row in found["job"]:
        if "error" in row:
            jobs.append([row.get("latency_ms", ""), f"failed: {row['error']}", "", ""])
            continue
        of_first = row["images_per_second"] / first.get("images_per_second", float("nan"))
        stages = sorted(row["stage_seconds"].items(), key=lambda item: -item[1])[:5]
        spent = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages)
        jobs.append([f"{row['latency_ms']:g}", f"{row['images_per_second']:.2f}", f"{of_first:.2f}", spent])
    header = ["precision", "compiled", "channels", "images/s", "batch", "TFLOP/s", "mix of sizes, images/s"]
    flops = f"{first['flops'] / 1e12:.3g}" if "flops" in first else "unknown"
    return "\n\n".join(
        [
            "# On a GPU",
            f"{found['device']}; {describe(found['machine'])} Stable Diffusion's autoencoder, {found['size']} x "
            f"{found['size']} pixels, {flops} TFLOP an image. `python -m benchmarks.gpu` says what is measured.",
            "## The model alone",
            table(header, rows),
            "## dot-transport",
            table(["ms a storage call", "images/s", "share of the first row above", "seconds in stages"], jobs),
            "## Where the time goes",
            f"```\n{first.get('profile', 'not profiled').rstrip()}\n```\n",
        ]
    )


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] in ("build", "ceiling"):
        serve([build, ceiling])
    main()
