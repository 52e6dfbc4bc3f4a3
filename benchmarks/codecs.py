"""What encoding an image costs a core, how large it becomes, and whether other threads run meanwhile.

    python -m benchmarks.codecs --output benchmarks/results/codecs.md

Of 12 photographs of BSDS500's validation set. Core-seconds are the least of five runs, an image at a time. Another
thread asks to wake every millisecond; told is how often it did, in a hundred milliseconds of encoding.
"""

from __future__ import annotations

import argparse
import io
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.judge import load, sample
from benchmarks.pages import write_page
from benchmarks.restorers import shared_data
from ot_core.encoding import DEFAULT_COMPRESS_LEVEL, encode_image
from ot_core.images import DecodedImage

Pixels = NDArray[np.uint8]
Encode = Callable[[Pixels], bytes]


def ours(image_format: str) -> Encode:
    """As the jobs encode."""
    return lambda pixels: encode_image(pixels, DecodedImage(pixels), image_format)


def pillow(image_format: str, **options: int | str) -> Encode:
    """As Pillow encodes to memory."""

    def encode(pixels: Pixels) -> bytes:
        Image.fromarray(pixels).save(buffer := io.BytesIO(), image_format, **options)
        return buffer.getvalue()

    return encode


WAYS = {
    "PNG, ours": ours("png"),
    f"PNG, Pillow, level {DEFAULT_COMPRESS_LEVEL}": pillow("PNG", compress_level=DEFAULT_COMPRESS_LEVEL),
    "PNG, Pillow, level 1, runs alone": pillow("PNG", compress_level=1, compress_type=3),
    "JPEG, ours": ours("jpeg"),
    "JPEG, Pillow to memory": pillow("JPEG", quality=95, subsampling="4:4:4"),
    "WebP, ours": ours("webp"),
    "WebP, Pillow to memory": pillow("WEBP", quality=95, method=4),
    "TIFF, ours": ours("tiff"),
    "AVIF, ours": ours("avif"),
    "JPEG XL without loss, ours": ours("jxl"),
}


def core_seconds(encode: Encode, images: Sequence[Pixels]) -> float:
    """Of encoding all images once; some encoders have a thread of their own."""
    seconds = []
    for _ in range(5):
        start = time.process_time()
        for image in images:
            encode(image)
        seconds.append(time.process_time() - start)
    return min(seconds)


def wakings(encode: Encode, images: Sequence[Pixels]) -> float:
    """How often another thread wakes in 100 ms of encoding."""
    woken, done = 0, threading.Event()

    def wake() -> None:
        nonlocal woken
        while not done.wait(0.001):
            woken += 1

    thread = threading.Thread(target=wake)
    thread.start()
    start = time.perf_counter()
    large = np.tile(images[0], (6, 6, 1))
    encode(np.ascontiguousarray(large))
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    return 0.1 * woken / seconds


def main() -> None:
    """Measures all ways and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="Markdown file to write; default: print only")
    args = parser.parse_args()
    images = [load(path) for path in sample(shared_data() / "photos" / "val", 12, seed=1)]
    megapixels = sum(image.shape[0] * image.shape[1] for image in images) / 1e6
    lines = [
        "# Codecs",
        "",
        *(__doc__ or "").split("\n\n")[-1].strip().splitlines(),
        "",
        "| way | ms of a core, a megapixel | MB a megapixel | another thread wakes, times in 100 ms |",
        "|---|---|---|---|",
    ]
    for name, encode in WAYS.items():
        cost = 1000 * core_seconds(encode, images) / megapixels
        size = sum(len(encode(image)) for image in images) / megapixels / 1e6
        lines.append(f"| {name} | {cost:.1f} | {size:.3f} | {wakings(encode, images):.0f} |")
        print(lines[-1], flush=True)
    if args.output:
        write_page(args.output, "\n".join(lines))


if __name__ == "__main__":
    main()
