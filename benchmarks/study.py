"""What the method gains, and what its settings are worth: restorers x fits x alphas, judged independently.

    python -m benchmarks.study --work study-work --output benchmarks/results/study-default.md
    python -m benchmarks.study --vae benchmarks.flux2_tiny:autoencoder --work study-work \
        --output benchmarks/results/study-flux2-tiny.md --brief

One setting is changed at a time from the base (unpaired, N = 16 + 16, p = 3, the default method). Photographs are
those of BSDS500: a hundred of the training set give the restored images of all fits, another hundred the natural
ones of the unpaired, and each draw takes N of each; a paired fit takes the originals of its restored images
instead. Results are measured on the central 256 x 256 pixels of validation images, against their originals: PSNR
(mean over images), two squared Gelbrich distances, of single latent pixels of FLUX.2's tiny autoencoder (the judge)
and of 8 x 8 squares of pixels, and the measures of ot_core/naturalness.py. Nothing is added back of what the
autoencoder loses; benchmarks/judge.py, which runs the jobs, does that.
"""

from __future__ import annotations

import argparse
import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.judge import JUDGE, load, mean_niqe, psnr, sample
from benchmarks.measure import table
from benchmarks.pages import write_page
from benchmarks.restorers import RESTORERS, restored_folder, shared_data
from ot_core import (
    Autoencoder,
    DecoderGeometry,
    GaussianStatistics,
    LatentTransport,
    TransportMap,
    blend,
    decoder_geometry,
    gelbrich_distance_squared,
    latent_statistics,
    load_autoencoder,
)
from ot_core.margin import with_margin
from ot_core.naturalness import edge_energy, grid_power, log_spectral_distance
from ot_core.rounding import rounding_covariance

ALPHAS = (-0.25, 0.0, 0.25, 0.5, 0.75, 1.25)
POOL = 100
CROP = 256
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Setting:
    """How a map is fitted."""

    n: int = 16
    patch_size: int = 3
    method: str = "matched"
    paired: bool = False
    draw: int = 0

    @property
    def name(self) -> str:
        """All of it but the draw."""
        return f"{'paired' if self.paired else 'unpaired'}, N = {self.n}, p = {self.patch_size}, {self.method}"


def settings(brief: bool) -> Iterator[Setting]:
    """The base, and one thing changed at a time; three draws of what depends most on the draw."""
    for draw in range(3):
        yield Setting(draw=draw)
        yield Setting(draw=draw, method="paper")
        yield Setting(draw=draw, method="pixels", paired=True)
        yield Setting(draw=draw, n=4)
        yield Setting(draw=draw, n=4, method="pixels", paired=True)
    yield Setting(n=POOL)
    if not brief:
        yield Setting(n=POOL, method="paper")
        yield Setting(method="pixels")
        yield Setting(patch_size=1)
        yield Setting(patch_size=5)


class Study:
    """Everything that is read or encoded once."""

    def __init__(self, vae: str | None, work: Path, test_images: int, first_test: int = 0) -> None:
        self.autoencoder, self.judge = with_margin(load_autoencoder(vae)), load_autoencoder(JUDGE)
        self.restorations = work / "restored"
        train = sample(shared_data() / "photos" / "train", 2 * POOL, seed=0)
        self.degraded, self.natural = train[:POOL], train[POOL:]
        self.tests = sample(shared_data() / "photos" / "val", first_test + test_images, seed=1)[first_test:]
        self.originals = [_crop(load(path)) for path in self.tests]
        self._latents: dict[Path, torch.Tensor] = {}

    def restored(self, restorer: str, photos: Sequence[Path]) -> list[Path]:
        """Files of the restorations of photographs."""
        folder = restored_folder(list(photos), restorer, self.restorations / restorer)
        return [folder / f"{photo.stem}.png" for photo in photos]

    def fit(self, restorer: str, setting: Setting) -> TransportMap:
        """The map of a setting."""
        order = np.random.default_rng([setting.draw, 7]).permutation(POOL)[: setting.n]
        degraded = [self.degraded[i] for i in order]
        natural = degraded if setting.paired else [self.natural[i] for i in order]
        p = setting.patch_size
        target = self._statistics(tuple(natural), p)
        source = self._statistics(tuple(self.restored(restorer, degraded)), p)
        if setting.method == "paper":
            return TransportMap.fit(source, target)
        geometry = self._geometry(p)
        invariant = geometry.colour if setting.method == "matched" else None
        rounding = rounding_covariance(self.autoencoder, source, p)
        return TransportMap.fit(source, target, metric=geometry.metric, invariant=invariant, rounding=rounding)

    @functools.cache  # noqa: B019 - one study a process
    def _geometry(self, patch_size: int) -> DecoderGeometry:
        statistics = self._statistics(tuple(self.natural[:16]), patch_size)
        return decoder_geometry(self.autoencoder, statistics, patch_size)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - one study a process
    def _statistics(self, paths: tuple[Path, ...], patch_size: int) -> GaussianStatistics:
        inner = (self.autoencoder.inner(self._latent(path)) for path in paths)
        parts = (latent_statistics(latent, patch_size) for latent in inner)
        return functools.reduce(operator.add, (part for part in parts if part is not None))

    def _latent(self, path: Path) -> torch.Tensor:
        if path not in self._latents:
            self._latents[path] = encoded(self.autoencoder, [load(path)])[0]
        return self._latents[path]

    def results(self, restorer: str, setting: Setting | None) -> Iterator[tuple[float, list[Pixels]]]:
        """Alpha and the test images; without a setting, the restorations (alpha 1) and their round trip (alpha 0)."""
        restored = [_crop(load(path)) for path in self.restored(restorer, self.tests)]
        latents = self._test_latents(restorer)
        if setting is not None:
            with torch.inference_mode():
                latents = LatentTransport(self.fit(restorer, setting), setting.patch_size)(latents)
        decoded = decode(self.autoencoder, latents)
        for alpha in ALPHAS if setting else (1.0, 0.0):
            yield alpha, [_blended(x, y, alpha) for x, y in zip(restored, decoded, strict=True)]

    @functools.cache  # noqa: B019 - one study a process
    def _test_latents(self, restorer: str) -> torch.Tensor:
        return encoded(self.autoencoder, [_crop(load(path)) for path in self.restored(restorer, self.tests)])

    def measure(self, images: Sequence[Pixels]) -> dict[str, float]:
        """PSNR, distances from the originals, and measures of what autoencoders add and lose."""
        judged, squares = self._original_statistics
        worst = max(edge_energy(images, self.originals), key=lambda ratio: abs(np.log(ratio)))
        return {
            "psnr": float(np.mean([psnr(x, y) for x, y in zip(images, self.originals, strict=True)])),
            "judge": gelbrich_distance_squared(_judged(self.judge, images), judged),
            "pixel": gelbrich_distance_squared(_squares(images), squares),
            "spectrum": log_spectral_distance(images, self.originals),
            "niqe": mean_niqe(images),
            "grid": grid_power(images),
            "edge": float(worst),
        }

    @functools.cached_property
    def _original_statistics(self) -> tuple[GaussianStatistics, GaussianStatistics]:
        return _judged(self.judge, self.originals), _squares(self.originals)


def encoded(autoencoder: Autoencoder, images: Sequence[Pixels]) -> torch.Tensor:
    """Latents (B, C, h, w) of images of one size; in bfloat16, several times as fast."""
    pixels = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2) / np.float32(255))
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([autoencoder.encode(autoencoder.pad(part)) for part in torch.split(pixels, 4)])


def decode(autoencoder: Autoencoder, latents: torch.Tensor) -> list[NDArray[np.float32]]:
    """Images (H, W, 3) in [0, 1]."""
    with torch.autocast("cpu", torch.bfloat16):
        decoded = torch.cat([autoencoder.decode(part) for part in torch.split(latents, 4)])
    return list(decoded.permute(0, 2, 3, 1).numpy())


def _judged(judge: Autoencoder, images: Sequence[Pixels]) -> GaussianStatistics:
    latents = encoded(judge, images)
    return GaussianStatistics.of(latents.transpose(0, 1).flatten(1).T.numpy())


def _squares(images: Sequence[Pixels]) -> GaussianStatistics:
    stack = np.stack(images) / 255
    count, height, width, _ = stack.shape
    squares = stack.reshape(count, height // 8, 8, width // 8, 8, 3).swapaxes(2, 3)
    return GaussianStatistics.of(squares.reshape(-1, 192))


def _blended(restored: Pixels, decoded: NDArray[np.float32], alpha: float) -> Pixels:
    unit = torch.from_numpy(restored / np.float32(255))
    return blend(unit, torch.from_numpy(decoded), alpha).numpy()


def _crop(pixels: Pixels) -> Pixels:
    top, left = (pixels.shape[0] - CROP) // 2, (pixels.shape[1] - CROP) // 2
    return pixels[top : top + CROP, left : left + CROP]


def rows(study: Study, restorer: str, brief: bool) -> Iterator[list[str]]:
    """A row for each setting, and for each alpha a cell with the mean over draws."""
    plain = {alpha: study.measure(images) for alpha, images in study.results(restorer, None)}
    whole = plain[1.0]
    yield [restorer, "restored", _cell([whole], whole)]
    yield [restorer, "round trip", _cell([plain[0.0]], whole)]
    drawn: dict[str, dict[float, list[dict[str, float]]]] = {}
    for setting in settings(brief):
        found = drawn.setdefault(setting.name, {})
        for alpha, images in study.results(restorer, setting):
            found.setdefault(alpha, []).append(study.measure(images))
    for name, by_alpha in drawn.items():
        yield [restorer, name, *(_cell(by_alpha[alpha], whole) for alpha in ALPHAS)]


def _cell(draws: Sequence[dict[str, float]], restored: dict[str, float]) -> str:
    def mean(measure: str, scale: float = 1.0, digits: int = 1) -> str:
        values = [scale * draw[measure] for draw in draws]
        spread = f" ± {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
        return f"{np.mean(values):.{digits}f}{spread}"

    shares = [f"{mean(measure, 100 / restored[measure], 0)}%" for measure in ("judge", "pixel")]
    looks = [mean("spectrum"), mean("niqe"), mean("grid", digits=2), mean("edge", digits=2)]
    return " / ".join([mean("psnr", digits=2), *shares, *looks])


def main() -> None:
    """Runs the study and writes its table after every restorer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vae", help="autoencoder that transports; default the one that ships with the package")
    parser.add_argument("--work", type=Path, default=Path("study-work"), help="folder for restorations")
    parser.add_argument("--output", type=Path, required=True, help="the Markdown file to write")
    parser.add_argument("--restorers", nargs="+", choices=RESTORERS, default=list(RESTORERS))
    parser.add_argument("--test_images", type=int, default=10)
    parser.add_argument("--first_test", type=int, default=0, help="leave out so many of the validation images")
    parser.add_argument("--brief", action="store_true", help="leave out patch sizes and most of N = 100")
    args = parser.parse_args()
    study = Study(args.vae, args.work, args.test_images, args.first_test)
    about = (
        f"Transported in the latent space of: {args.vae or 'the default autoencoder'}; {args.test_images} test images "
        f"from the {args.first_test + 1}th on; `python -m benchmarks.study` says how. In each cell: PSNR in dB / the "
        "judge's distance to the originals and that of 8 x 8 squares of pixels, as shares of the restorations' own / "
        "error of the radial log power spectrum in dB / NIQE / power at a period of four pixels against its neighbours "
        "/ detail at the edge that differs most from the inside's, relative to the originals'. Means over draws, ± "
        "half the range."
    )
    header = ["restorer", "fitted", *(f"alpha {alpha:g}" for alpha in ALPHAS)]
    found: list[list[str]] = []
    for restorer in args.restorers:
        found += [row + [""] * (len(header) - len(row)) for row in rows(study, restorer, args.brief)]
        write_page(args.output, f"# Study\n\n{about}\n\n{table(header, found)}\n")
        print(found[-1], flush=True)


if __name__ == "__main__":
    main()
