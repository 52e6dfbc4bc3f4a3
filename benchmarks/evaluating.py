"""What comparing a pair of images costs dot-evaluate: SSIM and PSNR of 481 x 321 pixels, seconds a pair.

As Beam's threads do it, two at a time; with torchmetrics' SSIM, and with ours.

    python -m benchmarks.evaluating --output benchmarks/results/evaluating.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from benchmarks.judge import Pixels, load, sample
from benchmarks.pages import write_page
from benchmarks.restorers import jpeg, shared_data
from ot_core.quality import mean_squared_error, ssim


def with_torchmetrics(a: Pixels, b: Pixels) -> tuple[float, float]:
    """Error and similarity of a pair."""
    x, y = (torch.from_numpy(one.transpose(2, 0, 1) / np.float32(255))[None] for one in (a, b))
    similarity = structural_similarity_index_measure(x, y, data_range=1.0)
    assert isinstance(similarity, torch.Tensor)
    return mean_squared_error(a, b), float(similarity)


def with_ours(a: Pixels, b: Pixels) -> tuple[float, float]:
    """The same."""
    similarity = ssim(a, b)
    assert similarity is not None
    return mean_squared_error(a, b), similarity


def seconds(compare: Callable[[Pixels, Pixels], tuple[float, float]], pairs: list[tuple[Pixels, Pixels]]) -> float:
    """Of a pair, with two threads at work."""
    with ThreadPoolExecutor(2) as threads:
        start = time.perf_counter()
        list(threads.map(lambda pair: compare(*pair), pairs))
        return (time.perf_counter() - start) / len(pairs)


def main() -> None:
    """Measures both in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--output", type=Path, help="Markdown file to write; default: print only")
    args = parser.parse_args()
    originals = [load(path) for path in sample(shared_data() / "photos/val", args.images, seed=1)]
    pairs = [(original, jpeg(original, 0, 20)) for original in originals]
    differences = [abs(with_torchmetrics(*pair)[1] - with_ours(*pair)[1]) for pair in pairs]
    runs = [(seconds(with_torchmetrics, pairs), seconds(with_ours, pairs)) for _ in range(args.repeat)]
    before, after = (statistics.median(run[side] for run in runs) for side in (0, 1))
    text = "\n".join(
        [
            "# Comparing pairs",
            "",
            f"SSIM and mean squared error, seconds a pair: the median of {args.repeat} runs of each in turn, on",
            f"{args.images} pairs of 481x321 pixels, by two threads, on {torch.get_num_threads()} cores that other",
            "work shared. `python -m benchmarks.evaluating`",
            "",
            "| SSIM by | seconds a pair |",
            "|---|---|",
            f"| torchmetrics | {before:.3f} |",
            f"| ours | {after:.3f}, {after / before:.2f} times as long |",
            "",
            f"The largest difference between the two is {max(differences):.1e}.",
            "",
        ]
    )
    print(text)
    if args.output:
        write_page(args.output, text)


if __name__ == "__main__":
    main()
