"""Block PCA of photographs: the yardstick of an autoencoder, and the code its training starts from.

As a script it prints the round trip of the linear code, the mark that a learned one should pass:

    python -m training.pca_baseline --photos photographs --test photos/val --channels 32
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

FACTOR = 8
NOT_PHOTOGRAPHS: tuple[str, ...] = ("analogpattern", "umang", "Fossa", "Infinite-Sea")
NOT_PHOTOGRAPHS += ("Painting-Colors", "Elephants", "GreenTraditional")
#: Folders of plasma-workspace-wallpapers that hold photographs; the rest are drawings.
PLASMA: tuple[str, ...] = ("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow")
PLASMA += ("FallenLeaf", "Grey", "Kite", "OneStandsOut", "Path", "summer_1am")
HELD_OUT: tuple[str, ...] = ("aitzgorri", "friends", "life", "picosdeeuropa", "sunset")
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
        photograph = not path.name.startswith(NOT_PHOTOGRAPHS)
        if "wallpapers" in path.parts:  # Plasma's: the largest of several sizes of each
            photograph = path.name == "2560x1600.jpg" and not set(PLASMA).isdisjoint(path.parts)
        if not photograph:
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
    images = torch.from_numpy(np.array(pixels)).float().div_(127.5).sub_(1)
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


def main() -> None:
    """Print the mean PSNR of the linear code on a folder of test images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="photographs to fit on")
    parser.add_argument("--test", type=Path, required=True, help="images (*.jpg) to code")
    parser.add_argument("--channels", type=int, default=32)
    options = parser.parse_args()
    mean, _, vectors = block_pca([level for p in load_pyramids(options.photos) for level in p[1:4]])
    basis, centre = vectors[:, : options.channels], mean[:, None]
    scores = []
    for path in sorted(options.test.glob("*.jpg")):
        image = to_tensor(np.asarray(Image.open(path).convert("RGB")))
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % FACTOR, 0, -height % FACTOR), mode="replicate")
        blocks = F.pixel_unshuffle(padded, FACTOR)
        flat = blocks[0].flatten(1).double().numpy()
        coded = torch.from_numpy(basis @ (basis.T @ (flat - centre)) + centre)
        decoded = F.pixel_shuffle(coded.reshape(blocks.shape), FACTOR)[..., :height, :width]
        error = (decoded.clamp(-1, 1) - image).square().mean().item() / 4
        scores.append(-10 * np.log10(error))
    print(f"{np.mean(scores):.2f} dB, {options.channels} of {len(mean)} coefficients")


if __name__ == "__main__":
    main()
