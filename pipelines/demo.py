"""A trial on bundled photographs: noise, taken away by non-local means, and what transport makes of that."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ot_core import UserError
from pipelines import parsers, trial
from pipelines.command import command

parser = parsers.demo
PHOTOS = Path(__file__).parent / "demo_photos"
#: Standard deviation of the noise, in grey levels.
SIGMA = 50
Pixels = NDArray[np.uint8]


def non_local_means() -> Callable[[Pixels], Pixels]:
    """The restorer: a classical denoiser (Buades et al., 2005), (H, W, 3) uint8 to the same.

    Raises:
        UserError: if scikit-image isn't installed.
    """
    try:
        from skimage.restoration import denoise_nl_means  # noqa: PLC0415 - only the demo needs it
    except ImportError:
        raise UserError("needs scikit-image: pip install 'dot-beam[demo]'") from None
    sigma = SIGMA / 255

    def restore(noisy: Pixels) -> Pixels:
        restored = denoise_nl_means(
            noisy / 255, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
        )
        return np.clip(np.rint(restored * 255), 0, 255).astype(np.uint8)

    return restore


def arguments(args: argparse.Namespace) -> list[str]:
    """The trial's command line, without the program's name; all of the photographs take part."""
    photos = ["--natural", str(PHOTOS), "--max_images", str(len(list(PHOTOS.glob("*.jpg"))))]
    model = ["--degrade", f"noise:{SIGMA}", "--restorer", "pipelines.demo:non_local_means"]
    tells = [f"--progress={args.progress}", *(f"--{flag}" for flag in ("quiet", "verbose") if getattr(args, flag))]
    return [*photos, *model, "--report", args.output, "--overwrite", *tells]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns its exit code."""
    flags = parser()
    return command(flags.prog, argv, lambda: trial.main(arguments(flags.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
