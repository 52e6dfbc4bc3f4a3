"""Train the default image autoencoder from a folder of photographs, on a CPU, in about an hour.

The photographs of the shipped weights are openly licensed wallpapers of three Debian packages:

    mkdir photographs && cd photographs
    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds
    for package in *.deb; do dpkg-deb -x "$package" .; done

Names in ``NOT_PHOTOGRAPHS`` (drawings, renderings, flat patterns) are skipped, and of those in
``HELD_OUT`` only the left 60% is used: the demo shows crops of the rest.

    @COMMAND@

How it works. The network starts as a linear code, the block PCA of the photographs, written into
the ordinary parameters of diffusers' ``AutoencoderDC``. Stage 1 trains encoder and decoder to
reconstruct, with noise on unit-variance latents. Stage 2 freezes the encoder, restores degraded
photographs by classical means (so that they are over-smooth), fits the optimal transport of their
latent patches to those of other photographs, and trains the decoder on transported latents: its
images must look natural to a patch discriminator and have natural statistics.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, median_filter
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
from torch import Tensor, nn

FACTOR = 8
PATCH = 3
NOT_PHOTOGRAPHS = ("analogpattern", "umang", "Fossa", "Infinite-Sea", "Painting-Colors")
NOT_PHOTOGRAPHS += ("Elephants", "GreenTraditional")
HELD_OUT = ("aitzgorri", "friends", "life", "picosdeeuropa", "sunset")
HELD_OUT += ("Picture_0B", "Picture_1A", "Wine", "seeding")
SIDES = (360, 480, 640, 850, 1130)

Pixels = NDArray[np.uint8]
Matrix = NDArray[np.float64]


# --- Photographs ---------------------------------------------------------------------------------


def load_pyramids(folder: Path) -> list[list[Pixels]]:
    """Each photograph below ``folder`` at several sizes: (H, W, 3) arrays, small ones first.

    Shrunk photographs are as sharp, pixel by pixel, as the images that users will bring.
    """
    pyramids = []
    for path in sorted(folder.rglob("*.jpg")):
        if path.name.startswith(NOT_PHOTOGRAPHS):
            continue
        image = Image.open(path).convert("RGB")
        if path.name.startswith(HELD_OUT):
            image = image.crop((0, 0, int(image.width * 0.6), image.height))
        levels = []
        for side in SIDES:
            scale = side / max(image.size)
            if scale <= 0.9:
                size = round(image.width * scale), round(image.height * scale)
                level = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
                levels.append(level[: size[1] // FACTOR * FACTOR, : size[0] // FACTOR * FACTOR])
        pyramids.append(levels)
    if not pyramids:
        raise SystemExit(f"no photograph (*.jpg) below {folder}")
    return pyramids


def to_tensor(pixels: Pixels) -> Tensor:
    """(H, W, 3) or (B, H, W, 3) bytes to (B, 3, H, W) in [-1, 1], channels last in memory."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).float().div_(127.5).sub_(1)
    return images.reshape(-1, *images.shape[-3:]).permute(0, 3, 1, 2)


def random_corner(image: Pixels, size: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top-left corner, on the latent's grid, of the busier of two random crops.

    Wallpapers have much blurred background; choosing by gradient keeps texture frequent.
    """
    best, best_energy = (0, 0), -1.0
    for _ in range(2):
        top = int(rng.integers((image.shape[0] - size) // FACTOR + 1)) * FACTOR
        left = int(rng.integers((image.shape[1] - size) // FACTOR + 1)) * FACTOR
        crop = image[top : top + size : 2, left : left + size : 2, 1].astype(np.float32)
        energy = float(np.abs(np.diff(crop, axis=1)).mean())
        if energy > best_energy:
            best, best_energy = (top, left), energy
    return best


def augment(images: Tensor) -> Tensor:
    """Random flips, channel swaps, fading of colour and contrast; (B, 3, H, W) to the same.

    The photographs are few and gaudy: without this the code would waste itself on their colours.
    """
    if torch.rand(()) < 0.5:
        images = images.flip(-1)
    if torch.rand(()) < 0.3:
        images = images[:, torch.randperm(3)]
    grey = images.mean(1, keepdim=True)
    fade = 1 - 0.8 * torch.rand(len(images), 1, 1, 1) * (torch.rand(len(images), 1, 1, 1) < 0.7)
    contrast = 0.7 + 0.5 * torch.rand(len(images), 1, 1, 1)
    return ((grey + fade * (images - grey)) * contrast).clamp(-1, 1)


def crop_batches(images: list[Pixels], size: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches (B, 3, size, size) of augmented crops."""
    rng = np.random.default_rng(seed)
    while True:
        crops = []
        for index in rng.integers(len(images), size=batch):
            # Any phase of the 8 x 8 grid, by a random shift of the image.
            top, left = rng.integers(0, FACTOR, size=2)
            image = images[index][top:, left:]
            top, left = random_corner(image, size, rng)
            crops.append(image[top : top + size, left : left + size])
        yield augment(to_tensor(np.stack(crops)))


# --- The network, starting as a linear code ------------------------------------------------------


def build(channels: int) -> AutoencoderDC:
    """Residual blocks only: no attention and no norm across pixels, so tiles are exact."""
    return AutoencoderDC(
        latent_channels=channels,
        encoder_block_out_channels=(32, 32, 64, 128),
        decoder_block_out_channels=(32, 32, 64, 128),
        encoder_layers_per_block=(0, 1, 2, 2),
        decoder_layers_per_block=(0, 2, 2, 3),
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    )


def block_pca(images: list[Pixels]) -> tuple[Matrix, Matrix, Matrix]:
    """Mean (192,), falling eigenvalues (192,) and eigenvectors (192, 192) of 8 x 8 RGB blocks."""
    count, total, square = 0, torch.zeros(192).double(), torch.zeros(192, 192).double()
    for image in images:
        blocks = F.pixel_unshuffle(to_tensor(image), FACTOR)[0].flatten(1).double()
        count, total = count + blocks.shape[1], total + blocks.sum(1)
        square += blocks @ blocks.T
    mean = total / count
    values, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))
    return mean.numpy(), values.flip(0).numpy(), vectors.flip(1).numpy()


@torch.no_grad()
def start_as_pca(model: AutoencoderDC, images: list[Pixels], crops: Tensor) -> None:
    """Write the whitened block PCA of ``images`` into the parameters.

    Residual blocks end in a norm whose weight is set to 0: they add nothing until trained. What is
    left is linear but for the ReLU at the decoder's end, which pairs of channels (+s, -s) undo,
    and the norm before it, which one large constant channel makes nearly constant.
    """
    channels = model.config.latent_channels
    mean, values, vectors = block_pca(images)
    scale = np.sqrt(values[:channels])
    analysis = torch.from_numpy((vectors[:, :channels] / scale).T.copy()).float()
    synthesis = torch.from_numpy(vectors[:, :channels] * scale).float()
    for name, parameter in model.named_parameters():
        if ".norm." in name:
            parameter.zero_()

    # Encoder: carry the pixels of 4 x 4 blocks unchanged, then 32 projections of them, and let
    # least squares over 3 x 3 neighbours find the principal components in that.
    encoder = model.encoder
    first, (down1, down2) = encoder.conv_in.conv, (encoder.down_blocks[i][-1].conv for i in (1, 2))
    for conv, carried in ((first, 3), (down1, 12)):
        conv.weight[:carried], conv.bias[:carried] = 0, 0
        conv.weight[range(carried), range(carried), 1, 1] = 1
    features = crops
    for layer in (encoder.conv_in, encoder.down_blocks[1], encoder.down_blocks[2][:-1]):
        features = layer(features)
    sample = features[:, :48].transpose(0, 1).flatten(1)
    spread, axes = torch.linalg.eigh(torch.cov(sample))
    down2.weight.zero_()
    weights = axes[:, -32:] / spread[-32:].clamp_min(1e-6) ** 0.25
    down2.weight[:, :48, 1, 1] = weights.T
    down2.bias.copy_(-weights.T @ sample.mean(1))
    hidden = encoder.down_blocks[3](encoder.down_blocks[2][-1](features))
    inputs = F.unfold(hidden, 3).transpose(1, 2).flatten(0, 1).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    blocks = F.pixel_unshuffle(crops, FACTOR) - torch.from_numpy(mean).float()[:, None, None]
    targets = torch.einsum("kc,bchw->bhwk", analysis, blocks)[:, 1:-1, 1:-1].flatten(0, 2).double()
    gram = inputs.T @ inputs
    gram += 1e-7 * gram.diagonal().mean() * torch.eye(len(gram))
    solution = torch.linalg.solve(gram, inputs.T @ targets).float()
    encoder.conv_out.weight.copy_(solution[:-1].T.reshape(encoder.conv_out.weight.shape))
    encoder.conv_out.bias.copy_(solution[-1])

    # Decoder: blocks of 8 x 8 pixels are split into 4 x 4, then 2 x 2, then pixels.
    decoder = model.decoder
    decoder.conv_in.weight[:channels], decoder.conv_in.bias[:channels] = 0, 0
    decoder.conv_in.weight[range(channels), range(channels), 1, 1] = 1
    up1, up2 = decoder.up_blocks[2][0], decoder.up_blocks[1][0]
    for up in (up1, up2):
        up.conv.weight.mul_(0.1)
        # Take the block's own shortcut away: channel r // repeats goes to output r.
        outputs = torch.arange(up.conv.out_channels)
        up.conv.weight[outputs, outputs // up.repeats, 1, 1] -= 1

    def split(size: int) -> Tensor:
        """Indices (3 * size**2, 4): which entry of a 2*size block goes to which corner block."""
        block = torch.arange(12 * size * size).reshape(3, 2, size, 2, size)
        return block.permute(0, 2, 4, 1, 3).reshape(3 * size * size, 4)

    shortcut1, shortcut2 = (torch.arange(up.conv.out_channels) // up.repeats for up in (up1, up2))
    rows = split(4).flatten()
    up1.conv.weight[: len(rows)] = 0
    up1.conv.weight[: len(rows), :channels, 1, 1] = synthesis[rows]
    up1.conv.weight[torch.arange(len(rows)), shortcut1[: len(rows)], 1, 1] -= 1
    up1.conv.bias[: len(rows)] = torch.from_numpy(mean).float()[rows]
    rows = split(2).flatten()
    up2.conv.weight[: 2 * len(rows) + 4] = 0
    up2.conv.bias[: 2 * len(rows) + 4] = 0
    for sign, offset in ((1.0, 0), (-1.0, len(rows))):
        up2.conv.weight[offset + torch.arange(len(rows)), rows, 1, 1] = sign
    cancelled = torch.arange(2 * len(rows) + 4)
    up2.conv.weight[cancelled, shortcut2[cancelled], 1, 1] -= 1
    constant = 16.0
    up2.conv.bias[2 * len(rows) : 2 * len(rows) + 4] = constant
    width = len(decoder.norm_out.weight)
    decoder.norm_out.weight.fill_(((constant**2 + 4) / width) ** 0.5)
    decoder.norm_out.bias.zero_()
    out = decoder.conv_out.conv
    out.weight.zero_(), out.bias.zero_()
    out.weight[range(12), range(12), 1, 1] = 1
    out.weight[range(12), range(12, 24), 1, 1] = -1


# --- Training ------------------------------------------------------------------------------------


def average_into(average: nn.Module, model: nn.Module, step: int) -> None:
    """Exponential moving average of the weights, which is what gets saved."""
    decay = min(0.999, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, current in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(current, 1 - decay)


def set_rate(optimiser: torch.optim.Optimizer, peak: float, step: int, progress: float) -> None:
    """Linear warm-up over 200 steps, then half a cosine by wall-clock progress in [0, 1]."""
    rate = peak * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * progress)))
    for group in optimiser.param_groups:
        group["lr"] = rate


def reconstruction_loss(images: Tensor, originals: Tensor) -> Tensor:
    """Mixture of absolute and squared error; both (B, 3, H, W)."""
    difference = images.float() - originals
    return difference.abs().mean() + 4 * difference.square().mean()


def train_reconstruction(
    model: AutoencoderDC,
    average: AutoencoderDC,
    batches: Iterator[Tensor],
    minutes: float,
    checkpoint: Callable[[float], None],
    done: float = 0.0,
) -> None:
    """Stage 1: encode, add noise, decode. ``done`` of the ``minutes`` have passed already."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=1e-4)
    start, step, shown, saved = time.monotonic(), 0, 0.0, 0.0
    while (elapsed := done + (time.monotonic() - start) / 60) < minutes:
        set_rate(optimiser, 3e-4, step, elapsed / minutes)
        originals = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(originals).latent.float()
            images = model.decode(latents + 0.07 * torch.randn_like(latents)).sample
        error = reconstruction_loss(images, originals)
        # Noise means something only if the latents' scale is held: unit variance per channel.
        loss = error + 0.02 * latents.var((0, 2, 3)).log().square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average_into(average, model, step)
        shown, step = 0.98 * shown + 0.02 * error.item(), step + 1
        if step % 200 == 0:
            print(f"stage 1: {elapsed:5.1f} min, step {step}, error {shown:.4f}", flush=True)
        if elapsed > saved + 2:
            checkpoint(elapsed)
            saved = elapsed
    checkpoint(minutes)


# --- Stage 2: decode what transport makes --------------------------------------------------------


def restorations() -> dict[str, Callable[[Pixels, np.random.Generator], Pixels]]:
    """Ways to degrade and restore a photograph, each leaving another kind of unnatural image."""

    def jpeg(quality: int) -> Callable[[Pixels, np.random.Generator], Pixels]:
        def apply(image: Pixels, rng: np.random.Generator) -> Pixels:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=quality)
            return np.asarray(Image.open(buffer).convert("RGB"))

        return apply

    def denoised(sigma: float, method: str) -> Callable[[Pixels, np.random.Generator], Pixels]:
        def apply(image: Pixels, rng: np.random.Generator) -> Pixels:
            noisy = (image / 255 + rng.normal(0, sigma, image.shape)).astype(np.float32)
            if method == "nlm":
                strength = {"h": 0.8 * sigma, "sigma": sigma, "patch_distance": 5}
                clean = denoise_nl_means(noisy, patch_size=5, channel_axis=-1, **strength)
            elif method == "tv":
                clean = denoise_tv_chambolle(noisy, 1.2 * sigma, channel_axis=-1, max_num_iter=40)
            else:
                clean = gaussian_filter(median_filter(noisy, (3, 3, 1)), (0.7, 0.7, 0))
            return (np.clip(clean, 0, 1) * 255 + 0.5).astype(np.uint8)

        return apply

    def enlarged(factor: int) -> Callable[[Pixels, np.random.Generator], Pixels]:
        def apply(image: Pixels, rng: np.random.Generator) -> Pixels:
            height, width = image.shape[:2]
            small = Image.fromarray(image).resize((width // factor, height // factor), 3)
            return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))

        return apply

    return {
        "jpeg 7": jpeg(7),
        "jpeg 12": jpeg(12),
        "jpeg 20": jpeg(20),
        "nlm 30": denoised(30 / 255, "nlm"),
        "nlm 50": denoised(50 / 255, "nlm"),
        "tv 25": denoised(25 / 255, "tv"),
        "tv 50": denoised(50 / 255, "tv"),
        "median 15": denoised(15 / 255, "median"),
        "bicubic 2": enlarged(2),
        "bicubic 3": enlarged(3),
    }


def covariance_root(matrix: Matrix, power: float) -> Matrix:
    """``matrix ** power`` of a symmetric positive matrix, tiny eigenvalues lifted; (D, D)."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 1e-6 * values[-1]) ** power) @ vectors.T


@dataclass(frozen=True)
class LatentMap:
    """x -> matrix @ x + shift on channel-major 3 x 3 latent patches; (D, D) and (D, 1)."""

    matrix: Tensor
    shift: Tensor

    @classmethod
    def fit(cls, source: Tensor, target: Tensor) -> LatentMap:
        """Closed-form optimal transport between the Gaussians of patches (N, D) and (M, D)."""
        first, second = source.double().numpy(), target.double().numpy()
        root = covariance_root(np.cov(first.T), 0.5)
        inverse = covariance_root(np.cov(first.T), -0.5)
        matrix = inverse @ covariance_root(root @ np.cov(second.T) @ root, 0.5) @ inverse
        shift = second.mean(0) - matrix @ first.mean(0)
        return cls(torch.from_numpy(matrix).float(), torch.from_numpy(shift).float()[:, None])

    def __call__(self, latents: Tensor) -> Tensor:
        """(C, h, w) to (C, h - 4, w - 4): positions that lie in nine whole patches."""
        moved = self.matrix @ F.unfold(latents[None], PATCH)[0] + self.shift
        folded = F.fold(moved, latents.shape[-2:], PATCH)[:, 2:-2, 2:-2]
        return folded / PATCH**2


@dataclass
class Pool:
    """Photographs, their latents, and the latents of their restorations, all frozen."""

    images: list[Pixels] = field(default_factory=list)
    photograph: list[int] = field(default_factory=list)
    latents: dict[str, list[Tensor]] = field(default_factory=dict)
    maps: dict[str, list[LatentMap]] = field(default_factory=dict)

    @torch.no_grad()
    def fill(self, model: AutoencoderDC, pyramids: list[list[Pixels]], seed: int) -> None:
        """Restore and encode; then fit maps between random overlapping halves of the set.

        Halves differ in content, as a user's few natural and few restored images do.
        """
        rng = np.random.default_rng(seed)
        kinds = {"natural": lambda image, rng: image, **restorations()}
        for number, levels in enumerate(pyramids):
            for level in levels[:3]:
                image = to_bytes(augment(to_tensor(level)))[0]
                self.images.append(image)
                self.photograph.append(number)
                for kind, restore in kinds.items():
                    encoded = model.encode(to_tensor(restore(image, rng))).latent[0]
                    self.latents.setdefault(kind, []).append(encoded)
        for kind in restorations():
            for _ in range(3):
                source, target = (
                    self._patches(name, rng.permutation(len(pyramids))[: len(pyramids) * 2 // 3], rng)
                    for name in (kind, "natural")
                )
                self.maps.setdefault(kind, []).append(LatentMap.fit(source, target))

    def _patches(self, kind: str, chosen: Matrix, rng: np.random.Generator) -> Tensor:
        """(N, D) patches of busy 96-pixel crops of the chosen photographs."""
        patches = []
        for index, image in enumerate(self.images):
            if self.photograph[index] in chosen:
                for _ in range(8):
                    top, left = (v // FACTOR for v in random_corner(image, 96, rng))
                    crop = self.latents[kind][index][:, top : top + 12, left : left + 12]
                    patches.append(F.unfold(crop[None], PATCH)[0].T)
        return torch.cat(patches)

    def batches(self, size: int, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless (latents (B, C, size/8, size/8), originals (B, 3, size, size)).

        The first third of a batch are natural latents, the rest transported ones.
        """
        rng, kinds, cells = np.random.default_rng(seed), list(self.maps), size // FACTOR
        while True:
            latents, originals = [], []
            for item in range(batch):
                index = int(rng.integers(len(self.images)))
                image = self.images[index]
                # Two more latent cells on every side, for the patches that overlap the crop.
                top, left = random_corner(image, size + 4 * FACTOR, rng)
                row, column = top // FACTOR, left // FACTOR
                window = (slice(None), slice(row, row + cells + 4), slice(column, column + cells + 4))
                if item < batch // 3:
                    latents.append(self.latents["natural"][index][window][:, 2:-2, 2:-2])
                else:
                    kind = kinds[rng.integers(len(kinds))]
                    transport = self.maps[kind][rng.integers(len(self.maps[kind]))]
                    latents.append(transport(self.latents[kind][index][window]))
                top, left = top + 2 * FACTOR, left + 2 * FACTOR
                originals.append(image[top : top + size, left : left + size])
            yield torch.stack(latents), to_tensor(np.stack(originals))


def to_bytes(images: Tensor) -> Pixels:
    """(B, 3, H, W) in [-1, 1] to (B, H, W, 3) bytes."""
    return images.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


class Discriminator(nn.Module):
    """Scores of overlapping patches; sees the image and its fine detail, magnified."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        layers: list[nn.Module] = []
        for inputs, outputs in ((6, 48), (48, 96), (96, 128)):
            layers += [norm(nn.Conv2d(inputs, outputs, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, norm(nn.Conv2d(128, 1, 3, padding=1)))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 1, H/8, W/8)."""
        detail = images - F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return self.layers(torch.cat([images, 4 * detail], 1))


def encoder_features(model: AutoencoderDC, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The encoder's features at a quarter and an eighth of the resolution, and the latents."""
    encoder = model.encoder
    quarter = encoder.down_blocks[2][:-1](encoder.down_blocks[1](encoder.conv_in(images)))
    eighth = encoder.down_blocks[3](encoder.down_blocks[2][-1](quarter))
    return quarter, eighth, encoder.conv_out(eighth)


def statistics_gap(features: Tensor, targets: Tensor) -> Tensor:
    """Difference of channel means and covariances over a batch, relative to the targets'."""
    first, second = (f.float().transpose(0, 1).flatten(1) for f in (features, targets))
    spread = second.std(1, keepdim=True) + 1e-3
    first, second = first / spread, second / spread
    gap = (torch.cov(first) - torch.cov(second)).square().mean()
    return gap * len(first) ** 0.5 + (first.mean(1) - second.mean(1)).square().mean()


@dataclass(frozen=True)
class Shares:
    """How hard each criterion pulls at a pixel of a transported image, the absolute error being 1."""

    adversarial: float = 0.6
    statistics: float = 0.6
    cycle: float = 0.4
    lowpass: float = 0.5


def train_transport(
    model: AutoencoderDC,
    average: AutoencoderDC,
    discriminator: Discriminator,
    batches: Iterator[tuple[Tensor, Tensor]],
    minutes: float,
    checkpoint: Callable[[float], None],
    done: float = 0.0,
    shares: Shares = Shares(),
) -> None:
    """Stage 2: the decoder learns; the encoder, and with it the latent space, stays."""
    model.encoder.requires_grad_(False)
    decoder = torch.optim.AdamW(model.decoder.parameters(), lr=0.0, betas=(0.5, 0.99))
    critic = torch.optim.AdamW(discriminator.parameters(), lr=0.0, betas=(0.5, 0.99))
    start, step, saved = time.monotonic(), 0, done
    shown = np.zeros(6)
    while (elapsed := done + (time.monotonic() - start) / 60) < minutes:
        set_rate(decoder, 2e-4, step, elapsed / minutes)
        set_rate(critic, 4e-4, step, elapsed / minutes)
        latents, originals = next(batches)
        natural = len(latents) // 3
        noise = 0.05 * torch.randn_like(latents)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = model.decode(latents + noise).sample.float()
        images = decoded.detach().requires_grad_()

        with torch.autocast("cpu", torch.bfloat16):
            real, fake = (discriminator(x[natural:]).float() for x in (originals, images.detach()))
        critic.zero_grad()
        (F.relu(1 - real).mean() + F.relu(1 + fake).mean()).backward()
        critic.step()

        moved, truth = images[natural:], originals[natural:]
        with torch.autocast("cpu", torch.bfloat16):
            adversarial = -discriminator(moved).float().mean()
            *features, again = encoder_features(model, moved)
            with torch.no_grad():
                *wanted, _ = encoder_features(model, truth)
        gap = sum(statistics_gap(f, w) for f, w in zip(features, wanted, strict=True))
        cycle = (again.float() - latents[natural:]).abs().mean()
        lowpass = (F.avg_pool2d(moved, 8) - F.avg_pool2d(truth, 8)).abs().mean()
        faithful = reconstruction_loss(images[:natural], originals[:natural])
        # Gradients meet at the pixels, each scaled to its share of what the absolute error's would
        # be: no weights to tune, and no criterion fades or explodes as training goes on.
        total = torch.zeros_like(images)
        total[:natural] = 3 * torch.autograd.grad(faithful, images)[0][:natural] * natural / len(images)
        for loss, share in (
            (adversarial, shares.adversarial),
            (gap, shares.statistics),
            (cycle, shares.cycle),
            (lowpass, shares.lowpass),
        ):
            gradient = torch.autograd.grad(loss, images, retain_graph=True)[0]
            size = gradient[natural:].square().mean().sqrt() * images.numel() + 1e-12
            total += gradient * (share / size)
        decoder.zero_grad()
        decoded.backward(total)
        nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        decoder.step()
        average_into(average, model, step)

        values = (faithful, adversarial, gap, cycle, lowpass, (real > fake).float().mean())
        shown = 0.98 * shown + 0.02 * np.array([value.item() for value in values])
        step += 1
        if step % 200 == 0:
            names = ("faithful", "adversarial", "statistics", "cycle", "lowpass", "critic right")
            report = ", ".join(f"{n} {v:.4f}" for n, v in zip(names, shown, strict=True))
            print(f"stage 2: {elapsed:5.1f} min, step {step}, {report}", flush=True)
        if elapsed > saved + 2:
            checkpoint(elapsed)
            saved = elapsed
    checkpoint(minutes)


# --- The whole run -------------------------------------------------------------------------------


def save(average: AutoencoderDC, folder: Path) -> None:
    """Half-precision weights and config, as ``AutoencoderDC.from_pretrained`` reads them."""
    half = build(average.config.latent_channels)
    half.load_state_dict(average.state_dict())
    half.half().save_pretrained(folder)


def main() -> None:
    """Both stages, with a checkpoint every two minutes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder searched for *.jpg")
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, checkpoint")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training, both stages")
    parser.add_argument("--first_stage", type=float, default=0.4, help="share of the minutes")
    parser.add_argument("--channels", type=int, default=32, help="latent channels")
    parser.add_argument("--resume", type=Path, help="checkpoint.pt of an earlier run")
    options = parser.parse_args()
    torch.manual_seed(0)

    pyramids = load_pyramids(options.photos)
    images = [level for levels in pyramids for level in levels]
    model = build(options.channels).to(memory_format=torch.channels_last)
    discriminator = Discriminator().to(memory_format=torch.channels_last)
    stage, done = 1, 0.0
    if options.resume:
        saved = torch.load(options.resume, weights_only=True)
        model.load_state_dict(saved["model"])
        discriminator.load_state_dict(saved["discriminator"])
        stage, done = saved["stage"], saved["elapsed"]
    else:
        crops = next(crop_batches(images, 128, 64, seed=0))
        start_as_pca(model, [level for levels in pyramids for level in levels[1:4]], crops)
    average = build(options.channels).to(memory_format=torch.channels_last)
    average.load_state_dict(saved["average"] if options.resume else model.state_dict())
    options.output.mkdir(parents=True, exist_ok=True)

    def checkpoint(elapsed: float) -> None:
        state = {"stage": stage, "elapsed": elapsed, "model": model.state_dict()}
        state |= {"average": average.state_dict(), "discriminator": discriminator.state_dict()}
        torch.save(state, options.output / "checkpoint.pt")
        save(average, options.output)

    if stage == 1:
        batches = crop_batches(images, 64, 16, seed=1)
        first = options.minutes * options.first_stage
        train_reconstruction(model, average, batches, first, checkpoint, done)
        torch.save(model.state_dict(), options.output / "reconstruction.pt")
        model.load_state_dict(average.state_dict())
        stage, done = 2, 0.0
    pool = Pool()
    pool.fill(average, pyramids, seed=2)
    second = options.minutes * (1 - options.first_stage)
    train_transport(model, average, discriminator, pool.batches(64, 20, 3), second, checkpoint, done)


if __name__ == "__main__":
    main()
