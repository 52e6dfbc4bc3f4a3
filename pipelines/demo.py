"""Shows the two jobs on bundled photographs: degrades and restores them, fits a map, transports, draws a sheet.

photographs -> noise -> non-local means -> dot-fit -> dot-transport -> before-after.png
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ot_core import GaussianStatistics, UserError, gelbrich_distance_squared, latent_statistics, load_autoencoder
from ot_core.quality import mean_squared_error, psnr_of
from pipelines import fit, options, transport
from pipelines.command import command, say

PHOTOS = Path(__file__).parent / "demo_photos"
ALPHAS = (0.0, 0.5)
#: Standard deviation of the noise, in grey levels.
SIGMA = 50
Pixels = NDArray[np.uint8]


def parser() -> options.ArgumentParser:
    """The demo's flags."""
    flags = options.ArgumentParser("dot-demo", "Runs both jobs on bundled photographs and draws a before/after sheet.")
    flags.add_argument("--output", type=_folder, default=Path("demo-output"), help="folder (default %(default)s)")
    return flags


def _folder(text: str) -> Path:
    return Path(options.filled(text))


def prepare(output: Path) -> None:
    """Splits the photographs: a dozen and their restorations to fit with, the restorations of the others to transport.

    As in real use: take a dozen good photographs, degrade and restore them like the archive, and fit on the pairs.
    """
    photos = sorted(PHOTOS.glob("*.jpg"))
    say(f"degrade and restore {len(photos)} photographs")  # a bar would fail where stderr is closed
    for index, path in enumerate(photos):
        original = np.asarray(Image.open(path).convert("RGB"))
        noise = np.random.default_rng(index).normal(0, SIGMA, original.shape)
        noisy = np.clip(original + noise, 0, 255).round().astype(np.uint8)
        if index % 3 == 0:
            _save(original, output / "natural" / path.stem)
            _save(restore(noisy), output / "natural-restored" / path.stem)
        else:
            _save(noisy, output / "noisy" / path.stem)
            _save(restore(noisy), output / "restored" / path.stem)
            _save(original, output / "original" / path.stem)


def restore(noisy: Pixels) -> Pixels:
    """Non-local means, a classical denoiser (Buades et al., 2005)."""
    try:
        from skimage.restoration import denoise_nl_means  # noqa: PLC0415 - only the demo needs it
    except ImportError:
        raise UserError("the demo needs scikit-image: pip install 'dot-beam[demo]'") from None
    sigma = SIGMA / 255
    restored = denoise_nl_means(
        noisy / 255, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
    )
    return np.clip(np.rint(restored * 255), 0, 255).astype(np.uint8)


class Quality(NamedTuple):
    """How near a folder's images are to their originals.

    Attributes:
        psnr: mean over images, in dB.
        distance: squared Gelbrich distance between the distributions of single latent pixels, in the default
            autoencoder, which also transported; benchmarks/ has an independent judge.
    """

    psnr: float
    distance: float


def measure(folder: Path, original: Path) -> Quality:
    """Compares images with the originals of the same name."""
    paths = sorted(folder.glob("*.png"))
    originals = [original / path.name for path in paths]
    mean = np.mean([psnr(load(path), load(other)) for path, other in zip(paths, originals, strict=True)])
    return Quality(float(mean), gelbrich_distance_squared(latents_of(paths), latents_of(originals)))


def latents_of(paths: Iterable[Path], vae: str | None = None) -> GaussianStatistics:
    """Statistics of single latent pixels of images, in the default autoencoder or another."""
    autoencoder = load_autoencoder(vae)
    total: GaussianStatistics | None = None
    for path in paths:
        pixels = torch.from_numpy(load(path).transpose(2, 0, 1) / np.float32(255))[None]
        statistics = latent_statistics(autoencoder.encode(autoencoder.pad(pixels))[0], patch_size=1)
        assert statistics is not None
        total = statistics if total is None else total + statistics
    assert total is not None
    return total


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB."""
    return psnr_of(mean_squared_error(a, b))


def load(path: Path) -> Pixels:
    """An image as (H, W, 3) uint8."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def draw_sheet(columns: dict[str, Path], rows: Sequence[str], path: Path) -> None:
    """One row for each image, one titled column for each folder."""
    font, margin, title = ImageFont.load_default(size=18), 6, 30
    first = load(next(iter(columns.values())) / rows[0])
    height, width = first.shape[0] + margin, first.shape[1] + margin
    sheet = Image.new("RGB", (len(columns) * width + margin, len(rows) * height + title + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for x, (name, folder) in enumerate(columns.items()):
        draw.text((margin + x * width, margin), name, fill="black", font=font)
        for y, row in enumerate(rows):
            sheet.paste(Image.fromarray(load(folder / row)), (margin + x * width, title + y * height))
    sheet.save(path)


def _most_detailed(folder: Path, n: int) -> list[str]:
    def detail(path: Path) -> float:
        return float(np.abs(np.diff(load(path).mean(axis=2), axis=1)).mean())

    return [path.name for path in sorted(folder.glob("*.png"), key=detail, reverse=True)[:n]]


def _save(pixels: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path.with_suffix(".png"))


def run(args: argparse.Namespace) -> int:
    """The demo from end to end."""
    output: Path = args.output
    prepare(output)
    map_url = str(output / "map.safetensors")
    sides = ["--target", str(output / "natural"), "--source", str(output / "natural-restored")]
    code = fit.main([*sides, "--paired", "--map", map_url]) or transport.main(
        [
            "--input",
            str(output / "restored"),
            "--map",
            map_url,
            "--output",
            str(output / "enhanced"),
            "--overwrite",
            "--alpha",
        ]
        + [str(alpha) for alpha in ALPHAS]
    )
    if code:
        return code
    enhanced = {f"transported, alpha {a}": output / f"enhanced/images/alpha={a:.2f}" for a in reversed(ALPHAS)}
    folders: dict[str, Path] = {"restored": output / "restored", **enhanced}
    say(f"{'':28}{'PSNR, dB':>10}{'distance to originals':>24}")
    for name, folder in folders.items():
        quality = measure(folder, output / "original")
        say(f"{name:28}{quality.psnr:10.2f}{quality.distance:24.3f}")
    sheet = output / "before-after.png"
    columns: dict[str, Any] = {"noisy": output / "noisy", **folders, "original": output / "original"}
    draw_sheet(columns, _most_detailed(output / "original", 4), sheet)
    say(f"look at {sheet}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns its exit code."""
    flags = parser()
    return command(flags.prog, argv, lambda: run(flags.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
