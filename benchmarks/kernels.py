"""What the mathematics costs: transport as a filter against patches, and statistics against the encoder.

    python -m benchmarks.kernels --output benchmarks/results/kernels.md

The patch form is the definition, written with torch's unfold and fold: every patch of the padded latent, one product
of matrices, and the mean of what covers each position. Each form is timed in a loop of its own, as torch's Timer does
it, and again with all forms taking turns: then each finds what it needs thrown out of the caches by the others, which
concerns the one most that would fit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer

from benchmarks.measure import describe, machine
from benchmarks.pages import write_page
from ot_core import GaussianStatistics, LatentTransport, TransportMap, latent_statistics, load_autoencoder
from ot_core.features import LatentFeatures

#: A worker's cores each have an image of their own.
THREADS = 1


def patch_form(transport_map: TransportMap, p: int, latent: Tensor, dtype: torch.dtype) -> Tensor:
    """The transported latent (1, C, H, W) by its definition, in one precision."""
    size = latent.shape[-2:]
    matrix = torch.from_numpy(transport_map.matrix).to(dtype)
    source, target = (
        torch.from_numpy(mean).to(dtype)[:, None] for mean in (transport_map.source_mean, transport_map.target_mean)
    )
    patches = F.unfold(F.pad(latent.to(dtype), (p // 2,) * 4, mode="replicate"), p)
    moved = matrix @ (patches - source) + target
    covered = F.fold(torch.ones_like(moved[:, : p * p]), size, p, padding=p // 2)
    return F.fold(moved, size, p, padding=p // 2) / covered


def in_loops(*functions: Callable[[], object], rounds: int = 5) -> list[float]:
    """Median of each function's milliseconds in loops of its own, one after the other, several rounds."""
    timers = [Timer("function()", globals={"function": function}, num_threads=THREADS) for function in functions]
    found = [[timer.blocked_autorange(min_run_time=0.2).median for timer in timers] for _ in range(rounds)]
    return [1000 * statistics.median(times) for times in zip(*found, strict=True)]


def in_turns(*functions: Callable[[], object], repeat: int = 25) -> list[float]:
    """Median of each function's time; they take turns, so that what else the machine does meets all alike."""
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(repeat + 2):
        for function, times in zip(functions, taken, strict=True):
            start = time.perf_counter()
            function()
            times.append(1000 * (time.perf_counter() - start))
    return [statistics.median(times[2:]) for times in taken]


def transport_rows(channels: int, patch_size: int, side: int) -> str:
    """A row of the first table."""
    rng, dimension = np.random.default_rng(0), channels * patch_size**2
    mixing = rng.standard_normal((dimension, dimension))
    source = GaussianStatistics.of(rng.standard_normal((4 * dimension, dimension)) @ mixing)
    transport_map = TransportMap.fit(source, GaussianStatistics.of(rng.standard_normal((4 * dimension, dimension))))
    latent = torch.from_numpy(rng.standard_normal((1, channels, side, side))).float()
    transport = LatentTransport(transport_map, patch_size)
    with torch.inference_mode():
        exact = patch_form(transport_map, patch_size, latent, torch.float64)
        difference = float((transport(latent) - exact).abs().max() / exact.abs().max())
        forms = (
            lambda: patch_form(transport_map, patch_size, latent, torch.float64),
            lambda: patch_form(transport_map, patch_size, latent, torch.float32),
            lambda: transport(latent),
        )
        double, single, filtered = in_loops(*forms)
        turns = in_turns(*forms)
    cells = [f"{side}x{side}x{channels}", patch_size, f"{double:.2f}", f"{single:.2f}", f"{filtered:.2f}"]
    cells += [f"**{double / filtered:.1f}**", f"{single / filtered:.1f}", f"{turns[0] / turns[2]:.1f}"]
    return f"| {' | '.join(map(str, [*cells, f'{difference:.1e}']))} |"


def statistics_row(patch_size: int, side: int) -> str:
    """A row of the second table: everything that fitting does on one image, against its encoder alone."""
    autoencoder, features = load_autoencoder(), LatentFeatures(patch_size=patch_size)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    unit = torch.rand(1, 3, side, side)
    latent = autoencoder.encode(unit)[0]
    encoder, whole, alone = in_turns(
        lambda: autoencoder.encode(unit),
        lambda: features.statistics([pixels], autoencoder),
        lambda: latent_statistics(latent, patch_size),
    )
    return f"| {side}x{side} | {patch_size} | {encoder:.1f} | {alone:.2f} | {alone / encoder:.1%} | {whole:.1f} |"


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    lines = ["# Kernels", "", f"Milliseconds on one core. {describe(machine())}", ""]
    lines += [
        "Transport of one latent: each form in a loop of its own, medians of 5 rounds; and by how much the filter is"
    ]
    lines += [
        "faster than the definition, in float64 and in float32, and where the forms take turns, which leaves none of"
    ]
    lines += ["them anything in the caches. The difference is the largest, relative to the largest value.", ""]
    lines += ["| latent | p | patches, float64 | patches, float32 | filter, float32 | times faster | than float32 "]
    lines[-1] += "| taking turns | difference |"
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    lines += [transport_rows(*case) for case in ((4, 3, 128), (4, 5, 128), (32, 3, 64))]
    lines += ["", "Statistics of one image's patches against the default autoencoder's encoder, float32; in turns.", ""]
    lines += [
        "| image | p | encoder | statistics | share | both, with the image's way to the encoder |",
        "|---|---|---|---|---|---|",
    ]
    lines += [statistics_row(p, side) for p in (1, 3) for side in (256, 512)]
    page = "\n".join(lines) + "\n"
    print(page)
    if args.output:
        write_page(args.output, page)


if __name__ == "__main__":
    main()
