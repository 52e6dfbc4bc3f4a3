"""Any restoration model behind one interface: images of 8 bits in, restored images of 8 bits out.

What can be loaded (`load_restorer`):

- weights of a network that spandrel knows (SwinIR, HAT, Real-ESRGAN, SCUNet, NAFNet, FBCNN, DnCNN...), as
  `.safetensors`, or as `.pth`, `.pt` or `.ckpt`, of which nothing but tensors is unpickled;
- an ONNX model, `.onnx`;
- `bicubic:2` and so on: enlargement by cubic interpolation;
- the user's own, as `package.module:factory`: `factory()` returns a torch module, (B, 3, H, W) in [0, 1] to the same
  with sides times an integer `scale`, or a plain callable, (H, W, 3) uint8 to (scale H, scale W, 3) uint8.

Weights and ONNX models are files: a local path, any fsspec URL, or a file on the hub, `owner/name/path/to/file`.
"""

from __future__ import annotations

import functools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ot_core.device import is_out_of_memory, raise_if_lost
from ot_core.errors import Cause, ImageError, UserError, type_and_line
from ot_core.hardware import chosen_device, computing_on
from ot_core.images import DecodedImage, eight_bits
from ot_core.restorer_files import Network, load_network
from ot_core.tiles import blended_tiles
from ot_core.transfer import Pixels, fetched, unit_pixels

#: Pixels of an input beyond which it is restored in tiles: attention over more takes gigabytes.
TILE_PIXELS: Final = 2**18
#: Least overlap of neighbouring tiles, in pixels of the input.
OVERLAP: Final = 64
#: Side of the image that a restorer is tried on when it is loaded.
_PROBE_SIDE: Final = 64


class Restorer(ABC):
    """A loaded restoration model.

    Attributes:
        name: what it was loaded from.
        fingerprint: sha256 of its weights or code, hexadecimal.
        scale: sides of a result, as a multiple of the input's.
        alone: whether images must be restored one by one, whatever their sizes.
        device: where it computes, as far as we know; users' own functions decide for themselves.
    """

    device = torch.device("cpu")

    def __init__(self, name: str, fingerprint: str, alone: bool) -> None:
        self.name, self.fingerprint, self.alone, self.scale = name, fingerprint, alone, 0

    def try_out(self, height: int, width: int, declared: int | None) -> bool:
        """Measures the scale on a small image; gives whether a second try has the same result.

        Raises:
            UserError: if the result isn't an image of an integer scale, or of the declared one, or isn't finite.
        """
        ramp = np.add.outer(np.arange(height), np.arange(width)) * 255 // (height + width)
        image = np.repeat(ramp[:, :, None], 3, axis=2).astype(np.uint8)
        result = self._restored([image], TILE_PIXELS)[0]
        if not np.isfinite(result).all():
            raise UserError("gives NaN or infinity for a small image")
        scale, rest = divmod(result.shape[0], height)
        if result.shape != (scale * height, scale * width, 3) or rest or not scale:
            raise UserError(f"gives {_size(result)} pixels for {width}x{height}; expected an integer multiple")
        if declared not in (None, scale):
            raise UserError(f"says that its scale is {declared}, and enlarges by {scale}")
        self.scale = scale
        return np.array_equal(result, self._restored([image], TILE_PIXELS)[0])

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The size of the restored image before what was padded is cropped; images of one such size may be batched."""
        return self.scale * height, self.scale * width

    def __call__(
        self, images: Sequence[Pixels], tile_pixels: int = TILE_PIXELS
    ) -> list[NDArray[np.uint8] | ImageError]:
        """Restores images.

        Args:
            images: (H, W, 3), uint8 or float32 in [0, 1]; of one padded size.
            tile_pixels: a larger input is restored in overlapping tiles of so many pixels.

        Returns:
            For each (scale H, scale W, 3) uint8, or a NOT_FINITE or RESTORER_ERROR.

        Raises:
            ImageError: RESTORER_ERROR, if the restorer raises something for one of them.
            Exception: as it is, if memory runs out: less at once might work.
            DeviceLostError: if the device does nothing for any image any more.
        """
        results: list[NDArray[np.uint8] | ImageError] = []
        try:
            with computing_on(self.device):
                restored = self._restored(images, tile_pixels)
        except Exception as error:  # networks and users' code raise anything
            raise_if_lost(error)
            if isinstance(error, ImageError) or is_out_of_memory(error):
                raise
            raise ImageError(Cause.RESTORER_ERROR, type_and_line(error)) from error
        for pixels, result in zip(images, restored, strict=True):
            height, width = (self.scale * side for side in pixels.shape[:2])
            if result.shape != (height, width, 3):
                message = f"the restorer gave {_size(result)} pixels; expected {width}x{height}"
                results.append(ImageError(Cause.RESTORER_ERROR, message))
            elif not np.isfinite(result).all():
                results.append(ImageError(Cause.NOT_FINITE, "the restorer gave NaN or infinity"))
            else:
                results.append(eight_bits(result))
        return results

    @abstractmethod
    def _restored(self, images: Sequence[Pixels], tile_pixels: int) -> Sequence[NDArray[np.generic]]:
        """Arrays (H, W, 3), uint8 or float32 nominally in [0, 1]."""


class NetworkRestorer(Restorer):
    """A torch or ONNX network.

    Args:
        network: see `ot_core.restorer_files`.
        name: what it was loaded from.
        device: where torch computes.
    """

    def __init__(self, network: Network, name: str, device: str) -> None:
        super().__init__(name, network.fingerprint, alone=network.fixed_size is not None)
        self._network, self.device = network, torch.device(device)
        self._dice: threading.Lock | None = None
        smallest = _up(max(_PROBE_SIDE, network.minimum), network.multiple_of)
        size = network.fixed_size or (smallest, smallest)
        if not self.try_out(*size, network.scale):
            # It draws random numbers: from now on the same ones for each image, whatever was restored before.
            self._dice, self.alone = threading.Lock(), True

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """See `Restorer`."""
        padded_height, padded_width = self._padded(height, width)
        return self.scale * padded_height, self.scale * padded_width

    @property
    def _unit(self) -> int:
        """Where tiles may begin: windows of attention and steps of downsampling then lie as in the whole image."""
        aligned = math.lcm(self._network.multiple_of, OVERLAP)
        return aligned if aligned <= 2 * OVERLAP and not self._network.fixed_size else self._network.multiple_of

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        network = self._network
        height, width = (_up(max(side, network.minimum), network.multiple_of) for side in (height, width))
        return (max(height, width),) * 2 if network.square else (height, width)

    @torch.inference_mode()
    def _restored(self, images: Sequence[Pixels], tile_pixels: int) -> Sequence[NDArray[np.generic]]:
        network = self._network
        padded = self._padded(*images[0].shape[:2])
        whole = network.fixed_size or padded
        if len(images) > 1 or (math.prod(padded) <= tile_pixels and padded == whole) or not network.tiled:
            batch = torch.cat([_reflected(unit_pixels(pixels, self.device), padded) for pixels in images])
            restored = self._forward(batch)
            scale = restored.shape[-1] // batch.shape[-1]
            here = fetched(restored.permute(0, 2, 3, 1))()
            sizes = [[scale * side for side in pixels.shape[:2]] for pixels in images]
            return [one[:height, :width] for one, (height, width) in zip(here, sizes, strict=True)]
        return [self._in_tiles(images[0], tile_pixels)]

    def _forward(self, batch: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3, scale H, scale W), float32."""
        if self._dice is None:
            return self._call(batch)
        with self._dice, torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            return self._call(batch)

    def _call(self, batch: Tensor) -> Tensor:
        channels = self._network.channels
        if channels == 3:
            return self._network.call(batch)[:, :3]
        if channels == 4:  # the fourth is transparency
            return self._network.call(F.pad(batch, (0, 0, 0, 0, 0, 1), value=1.0))[:, :3]
        planes = batch.flatten(0, 1)[:, None]
        # A CPU gains nothing from several at once, and holds the layers of each.
        several = [planes] if self.device.type != "cpu" else torch.split(planes, 1)
        each = torch.cat([self._network.call(plane) for plane in several])
        return each.view(len(batch), 3, *each.shape[-2:])

    def _in_tiles(self, pixels: Pixels, tile_pixels: int) -> NDArray[np.uint8]:
        """Rounded strip by strip, since four bytes for each value of an enlarged image may be a gigabyte."""
        network, scale = self._network, self.scale
        fixed, unit = network.fixed_size, self._unit
        padded = (_up(pixels.shape[0], unit), _up(pixels.shape[1], unit))
        whole = _reflected(unit_pixels(pixels, torch.device("cpu")), padded)

        def restore(rows: slice, columns: slice) -> Tensor:
            tile = whole[:, :, rows.start // scale : rows.stop // scale, columns.start // scale : columns.stop // scale]
            height, width = tile.shape[-2:]
            restored = self._forward(_reflected(tile.to(self.device), fixed or self._padded(height, width)))
            return restored[:, :, : scale * height, : scale * width].cpu()

        longest = min(fixed) if fixed else max(math.isqrt(tile_pixels), 4 * OVERLAP)
        overlap = min(OVERLAP, longest // 4)
        height, width = (scale * side for side in pixels.shape[:2])
        result = np.empty((height, width, 3), np.uint8)
        size = (scale * padded[0], scale * padded[1])
        spans = scale * (longest // unit * unit), scale * _up(overlap, unit)
        for rows, strip in blended_tiles(*size, *spans, restore, unit=scale * unit):
            place = result[rows]
            found = strip[0, :, : len(place), :width].permute(1, 2, 0).numpy()
            if not np.isfinite(found).all():
                raise ImageError(Cause.NOT_FINITE, "the restorer gave NaN or infinity")
            place[:] = eight_bits(found)
        return result


class CallableRestorer(Restorer):
    """A plain function on arrays.

    It is called for one image at a time, unless its attribute `thread_safe` is true.

    Args:
        function: (H, W, 3) uint8 to (scale H, scale W, 3) uint8; may have the attributes `scale` and `thread_safe`.
        name: what it was loaded from.
        fingerprint: of its code.
    """

    def __init__(self, function: Callable[[NDArray[np.uint8]], Any], name: str, fingerprint: str) -> None:
        super().__init__(name, fingerprint, alone=True)
        self._function = function
        self._turn = None if getattr(function, "thread_safe", False) else threading.Lock()
        self.try_out(_PROBE_SIDE, _PROBE_SIDE, getattr(function, "scale", None))

    def _restored(self, images: Sequence[Pixels], tile_pixels: int) -> Sequence[NDArray[np.generic]]:
        return [self._one(eight_bits(pixels)) for pixels in images]

    def _one(self, pixels: NDArray[np.uint8]) -> NDArray[np.generic]:
        if self._turn is None:
            result = self._function(pixels.copy())
        else:
            with self._turn:
                result = self._function(pixels.copy())  # somebody's own code may write to what it is given
        if not isinstance(result, np.ndarray) or result.dtype != np.uint8:
            found = str(result.dtype) if isinstance(result, np.ndarray) else type(result).__name__
            raise ImageError(Cause.RESTORER_ERROR, f"the restorer gave {found}; expected an array of uint8")
        return result


def load_restorer(spec: str, device: str | None = None, precision: str | None = "float32") -> Restorer:
    """Loads a restorer once per process.

    Args:
        spec: see the module's docstring.
        device: torch device; default CUDA where there is one.
        precision: float32; or None for float16 on CUDA where the network says that it can, else float32.

    Raises:
        UserError: if there is none at that place, it isn't one, or it doesn't work on a small image.
    """
    return _load_once(spec, chosen_device(device), precision)


@functools.lru_cache(maxsize=2)
def _load_once(spec: str, device: str, precision: str | None) -> Restorer:
    try:
        loaded = load_network(spec, device, half=precision is None and device.startswith("cuda"))
        if isinstance(loaded, Network):
            return NetworkRestorer(loaded, spec, device)
        return CallableRestorer(loaded.function, spec, loaded.fingerprint)
    except UserError as error:
        raise UserError(f"restorer {spec}: {error}") from None
    except ImageError as error:
        raise UserError(f"restorer {spec}: fails on a small image: {error.message}") from None
    except Exception as error:  # spandrel, ONNX, the hub, stores and user code each raise their own
        raise UserError(f"restorer {spec}: can't be loaded ({type_and_line(error)})") from None


def restore_image(image: DecodedImage, restorer: Restorer) -> DecodedImage:
    """Restores one image.

    Raises:
        ImageError: if it can't be.
    """
    (result,) = restorer([image.pixels])
    if isinstance(result, ImageError):
        raise result
    return restored_image(image, result)


def restored_image(image: DecodedImage, pixels: NDArray[np.uint8]) -> DecodedImage:
    """The restored image as it would be read back from a PNG file: grey stays grey, transparency is enlarged along.

    Args:
        image: what was restored.
        pixels: (scale H, scale W, 3) uint8.
    """
    height, width = pixels.shape[:2]
    transparency = None if image.transparency is None else _enlarged(eight_bits(image.transparency), height, width)
    return image.with_pixels(pixels, transparency)


def _enlarged(transparency: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if transparency.shape == (height, width):
        return transparency
    whole = torch.from_numpy(transparency.copy())[None, None].float()
    larger = F.interpolate(whole, (height, width), mode="bilinear")
    enlarged: NDArray[np.uint8] = larger[0, 0].round().to(torch.uint8).numpy()
    return enlarged


def _reflected(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pads (B, C, H, W) on the right and bottom: by reflection, and beyond one reflection by replication."""
    for by_reflection in (True, False):
        missing = [max(goal - side, 0) for goal, side in zip(size, x.shape[-2:], strict=True)]
        if by_reflection:
            missing = [min(more, side - 1) for more, side in zip(missing, x.shape[-2:], strict=True)]
        if any(missing):
            x = F.pad(x, (0, missing[1], 0, missing[0]), mode="reflect" if by_reflection else "replicate")
    return x


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _size(result: NDArray[np.generic]) -> str:
    return "x".join(map(str, (*result.shape[1::-1], *result.shape[2:])))
