"""Train the default image autoencoder from a folder of photographs, on two CPU cores.

The photographs of the shipped weights are openly licensed wallpapers of three Debian packages:

    mkdir photographs && cd photographs
    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds
    for package in *.deb; do dpkg-deb -x "$package" .; done

Drawings, renderings and flat patterns among them are skipped, and of the photographs that the demo
shows crops of, only the left 60% is used (``NOT_PHOTOGRAPHS``, ``HELD_OUT`` in pca_baseline.py).
To train:

    python -m training.train_autoencoder --photos photographs --output trained --minutes 60

The network starts as a linear code, the block PCA of the photographs (pca_baseline.py). Stage 1
trains encoder and decoder to reconstruct through unit-variance latents with noise added. Stage 2
goes on with that and adds what the latents are for: photographs restored by classical means are
encoded, their latent patches transported to those of natural photographs by the closed-form map,
decoded, and compared with the originals: at low resolution by absolute error, in texture by the
statistics of random convolutional features. The map is fitted anew every few hundred steps, and the
gradient passes through it into the encoder: latents become such that transport does well in them.
How it was run for the shipped weights: ot_core/vae/README.md.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
from torch import Tensor, nn

from benchmarks.restorers import bicubic, jpeg
from ot_core.autoencoder import replicating
from training.losses import (
    RandomFeatures,
    content_loss,
    grid_share,
    reconstruction_loss,
    spectrum_gap,
    texture_gap,
)
from training.pca_baseline import (
    FACTOR,
    Matrix,
    Pixels,
    augment,
    build,
    crop_batches,
    load_pyramids,
    random_corner,
    start_as_pca,
    to_tensor,
)

PATCH = 3
REFIT_STEPS = 150
# How hard each loss pulls on an image, relative to content's pull.
TEXTURE_SHARE, SPECTRUM_SHARE, GRID_SHARE = 1.5, 1.0, 1.0
RIDGE = 0.01  # added to covariances when fitting a map here: bounds its gains by about 10

Restorer = Callable[[Pixels, np.random.Generator], Pixels]


# --- Restored photographs ------------------------------------------------------------------------


def denoised(level: float, method: str) -> Restorer:
    """White noise of a standard deviation of ``level`` / 255, removed by a classical method."""
    sigma = level / 255

    def apply(image: Pixels, rng: np.random.Generator) -> Pixels:
        noisy = (image / 255 + rng.normal(0, sigma, image.shape)).astype(np.float32)
        if method == "nlm":
            strength = {"h": 0.8 * sigma, "sigma": sigma, "patch_distance": 5}
            clean = denoise_nl_means(noisy, patch_size=5, channel_axis=-1, **strength)
        else:
            tv: Callable[..., Pixels] = denoise_tv_chambolle
            clean = tv(noisy, 1.2 * sigma, channel_axis=-1, max_num_iter=40)
        return (np.clip(clean, 0, 1) * 255 + 0.5).astype(np.uint8)

    return apply


RESTORERS: dict[str, Restorer] = {
    "jpeg 8": functools.partial(jpeg, quality=8),
    "jpeg 14": functools.partial(jpeg, quality=14),
    "nlm 35": denoised(35, "nlm"),
    "nlm 50": denoised(50, "nlm"),
    "tv 40": denoised(40, "tv"),
    "bicubic 2": functools.partial(bicubic, factor=2),
    "bicubic 4": functools.partial(bicubic, factor=4),
}


@dataclass
class Pool:
    """Photographs and, under the same index, what each restorer makes of them."""

    images: dict[str, list[Pixels]] = field(default_factory=dict)

    @classmethod
    def fill(cls, pyramids: list[list[Pixels]], seed: int) -> Pool:
        """The two smallest levels of every pyramid, with colours varied once and for all."""
        pool, rng = cls(), np.random.default_rng(seed)
        for level in (level for levels in pyramids for level in levels[:2]):
            varied = augment(to_tensor(level)).add(1).mul(127.5).round().byte()
            image = np.ascontiguousarray(varied[0].permute(1, 2, 0).numpy())
            pool.images.setdefault("natural", []).append(image)
            for kind, restore in RESTORERS.items():
                pool.images.setdefault(kind, []).append(restore(image, rng))
        return pool

    def crops(self, kinds: list[str], size: int, count: int, rng: np.random.Generator) -> list[Tensor]:
        """(count, 3, size, size) for each kind, of the same places."""
        chosen: list[list[Pixels]] = [[] for _ in kinds]
        for index in rng.integers(len(self.images["natural"]), size=count):
            top, left = random_corner(self.images["natural"][index], size, rng)
            for crops, kind in zip(chosen, kinds, strict=True):
                crops.append(self.images[kind][index][top : top + size, left : left + size])
        return [to_tensor(np.stack(crops)) for crops in chosen]


# --- Transport -----------------------------------------------------------------------------------


def covariance_power(matrix: Matrix, power: float) -> Matrix:
    """Power of a symmetric positive matrix (D, D)."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 1e-9) ** power) @ vectors.T


@dataclass(frozen=True)
class LatentMap:
    """x -> matrix @ x + shift on channel-major 3 x 3 latent patches; (D, D) and (D, 1)."""

    matrix: Tensor
    shift: Tensor

    @classmethod
    def fit(cls, source: Tensor, target: Tensor) -> LatentMap:
        """Closed-form optimal transport between the Gaussians of patches (N, D) and (M, D)."""
        ridge = RIDGE * np.eye(source.shape[1])
        before, after = (torch.cov(x.T.double()).numpy() + ridge for x in (source, target))
        root, inverse = covariance_power(before, 0.5), covariance_power(before, -0.5)
        moved = inverse @ covariance_power(root @ after @ root, 0.5) @ inverse
        matrix = torch.from_numpy(moved).float()
        return cls(matrix, (target.mean(0) - matrix @ source.mean(0))[:, None])

    def __call__(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h - 4, w - 4): positions that lie in nine whole patches."""
        moved = self.matrix @ F.unfold(latents, PATCH) + self.shift
        return F.fold(moved, latents.shape[-2:], PATCH)[..., 2:-2, 2:-2] / PATCH**2


@torch.no_grad()
def fit_maps(model: AutoencoderDC, pool: Pool, count: int, rng: np.random.Generator) -> dict[str, LatentMap]:
    """One map per restorer, from ``count`` crops of it to as many natural crops.

    Of the very same places every second time, else of others: users fit paired and unpaired images.
    """

    def patches(crops: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            latents = torch.cat([model.encode(x).latent.float() for x in torch.split(crops, 16)])
        # Without the outermost latents, which see the edge of a crop.
        return F.unfold(latents[..., 1:-1, 1:-1], PATCH).transpose(1, 2).flatten(0, 1)

    paired = rng.random() < 0.5
    kinds = ["natural", *RESTORERS]
    if paired:
        target, *sources = (patches(crops) for crops in pool.crops(kinds, 96, count, rng))
    else:
        target, *sources = (patches(pool.crops([kind], 96, count, rng)[0]) for kind in kinds)
    return {kind: LatentMap.fit(source, target) for kind, source in zip(RESTORERS, sources, strict=True)}


# --- Training ------------------------------------------------------------------------------------


class Balance:
    """Weights of losses such that each pulls on an image as hard as it should, relative to the first.

    ``shown`` are the losses' running means.
    """

    def __init__(self, **shares: float) -> None:
        self.shares, self.factors, self.shown = shares, dict[str, float](), dict[str, float]()

    def __call__(self, image: Tensor, losses: dict[str, Tensor], *, measure: bool) -> Tensor:
        """Sum of the losses; ``measure`` looks again at how hard each pulls."""
        if measure or not self.factors:
            pulls = {name: _pull(loss, image) for name, loss in losses.items()}
            first = pulls[next(iter(losses))]
            for name, pull in pulls.items():
                factor = self.shares[name] * first / max(pull, 1e-12)
                self.factors[name] = factor + 0.9 * (self.factors.get(name, factor) - factor)
        for name, loss in losses.items():
            self.shown[name] = self.shown.get(name, loss.item()) * 0.98 + loss.item() * 0.02
        return sum((self.factors[name] * loss for name, loss in losses.items()), torch.zeros(()))


def _pull(loss: Tensor, image: Tensor) -> float:
    return float(torch.autograd.grad(loss, image, retain_graph=True)[0].norm())


def with_gradient_of_statistics(moved: Tensor, wanted: Tensor) -> Tensor:
    """``moved`` unchanged, but with the gradient of moving it to the mean and scale of ``wanted``.

    Both are latents (B, C, h, w). A map is a constant within a step; this tells the encoder that the map
    follows its statistics.
    """
    mean, scale = moved.mean((0, 2, 3), keepdim=True), moved.std((0, 2, 3), keepdim=True)
    target_mean, target_scale = wanted.mean((0, 2, 3), keepdim=True), wanted.std((0, 2, 3), keepdim=True)
    shifted = (moved - mean) / scale * target_scale + target_mean
    return shifted + (moved - shifted).detach()


def average_into(average: nn.Module, model: nn.Module, step: int) -> None:
    """Exponential moving average of the weights, which is what gets saved."""
    decay = min(0.998, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, current in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(current, 1 - decay)


def learning_rate(step: int, progress: float) -> float:
    """Linear warm-up, then half a cosine by wall-clock progress in [0, 1]."""
    return 3e-4 * min(1.0, (step + 1) / 200) * (0.02 + 0.49 * (1 + np.cos(np.pi * progress)))


@dataclass
class Trainer:
    """Both stages; ``average`` holds the weights to be used."""

    model: AutoencoderDC
    average: AutoencoderDC
    pyramids: list[list[Pixels]]
    checkpoint: Callable[[int, float], None]

    def run(self, stage: int, minutes: float, done: float = 0.0) -> None:
        """One stage of so many minutes, ``done`` of which an earlier run has spent."""
        rng = np.random.default_rng(stage)
        images = [level for levels in self.pyramids for level in levels]
        batches: Iterator[Tensor] = crop_batches(images, 64, 16 if stage == 1 else 10, seed=stage)
        transported = TransportLoss(self.model, self.average, Pool.fill(self.pyramids, seed=2)) if stage == 2 else None
        adam = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
        balance = Balance(content=1, spectrum=SPECTRUM_SHARE, grid=GRID_SHARE)
        start, step, saved = time.monotonic(), 0, done
        while (elapsed := done + (time.monotonic() - start) / 60) < minutes:
            for group in adam.param_groups:
                group["lr"] = learning_rate(step, elapsed / minutes)
            originals = next(batches)
            with torch.autocast("cpu", torch.bfloat16):
                latents = self.model.encode(originals).latent.float()
                decoded = self.model.decode(latents + 0.07 * torch.randn_like(latents)).sample
            decoded = decoded.float()
            error = reconstruction_loss(decoded, originals)
            losses = {
                "content": error,
                "spectrum": spectrum_gap(decoded, originals),
                "grid": grid_share(decoded - originals),
            }
            loss = balance(decoded, losses, measure=step % 10 == 0)
            # Noise means something only if the latents' scale is held: unit variance per channel.
            loss = loss + 0.02 * latents.var((0, 2, 3)).log().square().mean()
            moved = transported(step, rng) if transported else torch.zeros(())
            loss = loss + moved
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            adam.step()
            average_into(self.average, self.model, step)
            step += 1
            if step % 100 == 0:
                parts = {
                    "reconstructed": balance.shown,
                    "transported": transported.balance.shown if transported else {},
                }
                report = "; ".join(
                    f"{part}: " + ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
                    for part, shown in parts.items()
                )
                print(f"stage {stage}: {elapsed:.1f} min, step {step}, {report}", flush=True)
            if elapsed > saved + 1:
                self.checkpoint(stage, elapsed)
                saved = elapsed
        self.checkpoint(stage, minutes)


class TransportLoss:
    """How far restored photographs are from their originals once transported in the latent space in training."""

    def __init__(self, model: AutoencoderDC, average: AutoencoderDC, pool: Pool) -> None:
        self.model, self.average, self.pool = model, average, pool
        self.features, self.maps = RandomFeatures(), dict[str, LatentMap]()
        self.balance = Balance(content=1, texture=TEXTURE_SHARE, spectrum=SPECTRUM_SHARE, grid=GRID_SHARE)

    def __call__(self, step: int, rng: np.random.Generator) -> Tensor:
        """Loss of eight crops by one restorer; maps are fitted anew every so many steps."""
        if step % REFIT_STEPS == 0:
            self.maps = fit_maps(self.average, self.pool, 160, rng)
        kind = list(RESTORERS)[rng.integers(len(RESTORERS))]
        truth, restored = self.pool.crops(["natural", kind], 96, 6, rng)
        inner = truth[..., 16:-16, 16:-16]  # the map needs two latent cells around those it moves
        self.features.draw()
        with torch.autocast("cpu", torch.bfloat16):
            latents, wanted = self.model.encode(torch.cat([restored, truth])).latent.float().chunk(2)
            moved = with_gradient_of_statistics(self.maps[kind](latents), wanted[..., 2:-2, 2:-2])
            decoded = self.model.decode(moved).sample.float()
            # Features are strided. Seen at one phase only, they would ask for detail at every eighth pixel: a weave.
            top, left = rng.integers(FACTOR, size=2)
            shift = (..., slice(top, top - FACTOR or None), slice(left, left - FACTOR or None))
            with torch.no_grad():
                targets = self.features(inner[shift])
            pairs = zip(self.features(decoded[shift]), targets, strict=True)
            texture = sum((texture_gap(a, b) for a, b in pairs), torch.zeros(())) / len(targets)
        losses = {
            "content": content_loss(decoded, inner),
            "texture": texture,
            "spectrum": spectrum_gap(decoded, inner),
            "grid": grid_share(decoded - inner),
        }
        return 0.5 * self.balance(decoded, losses, measure=step % 10 == 0)


def save(average: AutoencoderDC, folder: Path) -> None:
    """Half-precision weights and config, as ``AutoencoderDC.from_pretrained`` reads them."""
    half = build(average.config.latent_channels)
    half.load_state_dict(average.state_dict())
    half.half().save_pretrained(folder)


def main() -> None:
    """Both stages, with weights and a checkpoint written every minute."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder searched for *.jpg")
    parser.add_argument("--output", type=Path, required=True, help="for weights and checkpoint.pt")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training, both stages")
    parser.add_argument("--channels", type=int, default=32, help="latent channels")
    parser.add_argument("--start", type=Path, help="folder of weights to go on from, with stage 2 alone")
    parser.add_argument("--resume", type=Path, help="checkpoint.pt of an earlier run")
    options = parser.parse_args()
    torch.manual_seed(0)

    pyramids = load_pyramids(options.photos)
    # As the jobs run it. With zeros, what a crop's edge does to an eighth of its pixels would be learnt as well.
    model, average = (replicating(build(options.channels)).to(memory_format=torch.channels_last) for _ in range(2))
    stage, done = 1, 0.0
    if options.resume:
        saved = torch.load(options.resume, weights_only=True)
        stage, done = saved["stage"], saved["elapsed"]
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
    elif options.start:
        weights = AutoencoderDC.from_pretrained(options.start).float().state_dict()
        stage = 2
        model.load_state_dict(weights)
        average.load_state_dict(weights)
    else:
        images = [level for levels in pyramids for level in levels]
        crops = next(crop_batches(images, 128, 64, seed=0))
        start_as_pca(model, [level for levels in pyramids for level in levels[1:4]], crops)
        average.load_state_dict(model.state_dict())
    options.output.mkdir(parents=True, exist_ok=True)

    def checkpoint(stage: int, elapsed: float) -> None:
        state = {"stage": stage, "elapsed": elapsed, "model": model.state_dict()}
        torch.save(state | {"average": average.state_dict()}, options.output / "checkpoint.pt")
        save(average, options.output)

    trainer = Trainer(model, average, pyramids, checkpoint)
    shares = (0.0, 1.0) if options.start else (0.25, 0.75)
    for number in range(stage, 3):
        trainer.run(number, options.minutes * shares[number - 1], done)
        model.load_state_dict(average.state_dict())
        done = 0.0


if __name__ == "__main__":
    main()
