"""What the distance between two sets of images is measured on: vectors drawn from images, as Gaussian statistics.

| features | vectors of an image | dimension |
|---|---|---|
| `LatentFeatures` | all patches of its latent, at stride 1 | C p^2 |
| `PixelFeatures` | its 8x8 squares of RGB pixels in [0, 1], side by side from the upper left corner | 192 |
| `InceptionFeatures` | one, after the last pooling of the Inception network; their distance is the FID | 2048 |
"""

from __future__ import annotations

import functools
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ot_core import storage
from ot_core.autoencoder import Autoencoder, load_autoencoder, to_tensor
from ot_core.errors import Cause, ImageError, UserError, one_line
from ot_core.hardware import chosen_device, computing_on, default_tile_pixels
from ot_core.margin import with_margin
from ot_core.patches import check_finite, latent_statistics
from ot_core.statistics import GaussianStatistics
from ot_core.tiles import encode_in_tiles
from ot_core.transfer import Pixels
from ot_core.transport_map import gelbrich_distance_squared

#: How many values of pixel patches are held at a time: 32 MiB of float64.
_BAND_VALUES = 2**22
#: Side of a pixel patch. Patches don't overlap: that weighs every pixel once, at a 64th of the cost of stride 1.
PIXEL_PATCH = 8


class FeatureExtractor(ABC):
    """Statistics of the features of images. Small and picklable; what is heavy is loaded by `load`.

    Attributes:
        in_parts: whether statistics are small enough to be kept for each random part of the images.
        distance: between the statistics of two sets of images.
    """

    in_parts = True
    distance: Callable[[GaussianStatistics, GaussianStatistics], float] = staticmethod(gelbrich_distance_squared)

    @abstractmethod
    def load(self) -> Any:
        """The model that `statistics` takes; called once per process.

        Raises:
            UserError: if it can't be loaded.
        """

    def padded_size(self, model: Any, height: int, width: int) -> tuple[int, int]:
        """Images for which this is the same can be given together."""
        return height, width

    @abstractmethod
    def statistics(
        self, images: Sequence[Pixels], model: Any, most_pixels: int | None = None
    ) -> list[GaussianStatistics | ImageError]:
        """For each image its statistics, or why it has none.

        Args:
            images: (H, W, 3), uint8 or float32 in [0, 1], of one padded size.
            model: what `load` gave.
            most_pixels: that it may work on at once; default `default_tile_pixels` of the device.
        """


class LatentFeatures(FeatureExtractor):
    """Patches of latents.

    Args:
        vae: what `ot_core.load_autoencoder` takes; default the one that ships with the package.
        patch_size: p, odd.
        device: torch device; default CUDA where there is one.
        precision: one of `ot_core.choices.PRECISIONS`. Small eigenvalues of the covariance suffer from less than
            float32; None means the device's fastest.
        margin: see `ot_core.margin`; default measured.
    """

    def __init__(
        self,
        vae: str | None = None,
        patch_size: int = 3,
        device: str | None = None,
        precision: str | None = "float32",
        margin: int | None = None,
    ) -> None:
        self._vae, self._patch_size, self._device, self._precision = vae, patch_size, device, precision
        self._margin = margin

    def load(self) -> Autoencoder:
        """The autoencoder."""
        return with_margin(load_autoencoder(self._vae, self._device, self._precision), self._margin)

    def padded_size(self, model: Autoencoder, height: int, width: int) -> tuple[int, int]:
        """As the autoencoder pads."""
        return model.padded_size(height, width)

    def statistics(
        self, images: Sequence[Pixels], model: Autoencoder, most_pixels: int | None = None
    ) -> list[GaussianStatistics | ImageError]:
        """See the base class; images smaller than a patch have none."""
        height, width = model.padded_size(*images[0].shape[:2])
        most = most_pixels or default_tile_pixels(model.device.type)
        if len(images) == 1 and height * width > most:
            latents = encode_in_tiles(model, images[0], most)
        else:
            latents = model.encode(to_tensor(images, model))
        return [self._of_one(latent) for latent in model.inner(latents)]

    def _of_one(self, latent: Tensor) -> GaussianStatistics | ImageError:
        try:
            check_finite(latent)
        except ImageError as error:
            return error
        statistics = latent_statistics(latent, self._patch_size)
        if statistics is None:
            height, width = latent.shape[-2:]
            return ImageError(
                Cause.TOO_SMALL,
                f"its latent is {height}x{width}; expected at least one patch of {self._patch_size}x{self._patch_size}",
            )
        return statistics


class PixelFeatures(FeatureExtractor):
    """Squares of 8x8 pixels, side by side; what is left over at the right and the bottom is not looked at."""

    def load(self) -> None:
        """Nothing is needed."""

    def statistics(
        self, images: Sequence[Pixels], model: None, most_pixels: int | None = None
    ) -> list[GaussianStatistics | ImageError]:
        """See the base class; images smaller than a square have none."""
        return [_pixel_statistics(pixels) for pixels in images]


class InceptionFeatures(FeatureExtractor):
    """Features of torch-fidelity's Inception network, on which the Gelbrich distance is the Frechet Inception Distance.

    Args:
        weights: path or fsspec URL of the network's state dict, torch-fidelity's
            `weights-inception-2015-12-05-6726825d.pth`.
        device: torch device; default CUDA where there is one.
    """

    in_parts = False

    def __init__(self, weights: str, device: str | None = None) -> None:
        self._weights, self._device = weights, device

    def load(self) -> Any:
        """The network."""
        return _load_inception(self._weights, chosen_device(self._device))

    def statistics(
        self, images: Sequence[Pixels], model: Any, most_pixels: int | None = None
    ) -> list[GaussianStatistics | ImageError]:
        """See the base class; one vector for each image, of its pixels rounded to 8 bits."""
        batch = np.stack([np.rint(x * 255).astype(np.uint8) if x.dtype != np.uint8 else x for x in images])
        tensor = torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
        device = next(model.parameters()).device
        with torch.inference_mode(), computing_on(device):
            (features,) = model(tensor.to(device))
        return [GaussianStatistics.single(vector) for vector in features.cpu().numpy()]


@functools.lru_cache(maxsize=1)
def _load_inception(weights: str, device: str) -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # noqa: PLC0415 - an extra
            FeatureExtractorInceptionV3,
        )
    except ImportError:
        raise UserError("inception features need torch-fidelity: pip install 'dot-beam[evaluate]'") from None
    buffer = io.BytesIO()
    # torch-fidelity unpickles what it is given: give it a file of our own, made of tensors alone.
    torch.save(read_weights(weights, "inception_weights"), buffer)
    buffer.seek(0)
    try:
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=buffer)
    except RuntimeError as error:
        said = one_line(error, most=200)
        raise UserError(f"inception_weights {weights}: not torch-fidelity's network ({said})") from None
    return network.to(device)


def read_weights(url: str, flag: str) -> dict[str, Tensor]:
    """A state dict from a `.pth` file of tensors; nothing else in it is ever unpickled.

    Args:
        url: path or fsspec URL.
        flag: what an error calls it.

    Raises:
        UserError: if it can't be read or is something else.
    """
    try:
        weights = torch.load(io.BytesIO(storage.read_bytes(url)), map_location="cpu", weights_only=True)
    except Exception as error:  # stores, zip and pickle each raise their own
        raise UserError(f"{flag} {url}: can't be read ({one_line(error, most=200)})") from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{flag} {url}: expected a state dict, tensors by name")
    return weights


def _pixel_statistics(pixels: Pixels) -> GaussianStatistics | ImageError:
    side, (height, width) = PIXEL_PATCH, pixels.shape[:2]
    if height < side or width < side:
        return ImageError(Cause.TOO_SMALL, f"{width}x{height} pixels; expected at least one patch of {side}x{side}")
    columns = width // side
    rows_per_band = max(1, _BAND_VALUES // (columns * side * side * 3))
    parts = []
    for row in range(0, height // side, rows_per_band):
        rows = min(rows_per_band, height // side - row)
        band = pixels[row * side : (row + rows) * side, : columns * side]
        patches = band.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(rows * columns, -1)
        unit = patches.astype(np.float64) / (255 if pixels.dtype == np.uint8 else 1)
        parts.append(GaussianStatistics.of(unit))
    return GaussianStatistics.total(parts)
