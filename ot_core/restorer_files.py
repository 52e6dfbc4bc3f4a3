"""Networks that restore images, from files and from user code; see `ot_core.restorer` for what there may be."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import posixpath
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ot_core import storage
from ot_core.autoencoder import fingerprint_of, is_factory
from ot_core.device import raise_if_lost
from ot_core.errors import UserError

_WEIGHTS: Final = (".safetensors", ".pth", ".pt", ".ckpt")
_HUB_FILE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)/(?P<path>[\w./-]+)")
_BICUBIC = re.compile(r"bicubic:(?P<scale>[1-9]\d?)")
_MAX_BYTES: Final = 2**33
#: Side of the images that a network is tried on, unless it needs larger ones; much larger ones take too long.
_TRIED_SIDE: Final = 16
_LARGEST_TRIED: Final = 128
_INSTALL: Final = "pip install 'dot-beam[restorers]'"
#: What batch normalisation adds to a variance: in DnCNN-PyTorch, and in spandrel's DnCNN.
_EPSILON, _SPANDRELS_EPSILON = 1e-5, 1e-4


@dataclass(frozen=True)
class Network:
    """A network, and what it says of itself.

    Attributes:
        call: (B, channels, H, W) float32 in [0, 1] on its device to (B, channels, scale H, scale W) float32.
        fingerprint: sha256 of its weights, hexadecimal.
        channels: 1, 3, or 4 with transparency.
        scale: as declared, or None.
        multiple_of, minimum, square: what the sides of its input must be.
        fixed_size: the only (H, W) that it takes, or None.
        tiled: whether a large image may be done in tiles.
    """

    call: Callable[[Tensor], Tensor]
    fingerprint: str
    channels: int = 3
    scale: int | None = None
    multiple_of: int = 1
    minimum: int = 0
    square: bool = False
    fixed_size: tuple[int, int] | None = None
    tiled: bool = True


@dataclass(frozen=True)
class PlainFunction:
    """A function on (H, W, 3) uint8 arrays, and the sha256 of its code."""

    function: Callable[[NDArray[np.uint8]], Any]
    fingerprint: str


class _Bicubic:
    """Enlarges by cubic interpolation."""

    thread_safe = True

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        image = Image.fromarray(pixels, "RGB")
        larger = image.resize((self.scale * image.width, self.scale * image.height), Image.Resampling.BICUBIC)
        return np.asarray(larger)


def load_network(spec: str, device: str, half: bool) -> Network | PlainFunction:
    """Loads what a spec names.

    Args:
        spec: see `ot_core.restorer`.
        device: where a torch network computes.
        half: compute in float16 where the network says that it can.

    Raises:
        UserError: without the spec's name; also whatever the libraries raise.
    """
    if match := _BICUBIC.fullmatch(spec):
        return PlainFunction(_Bicubic(int(match["scale"])), hashlib.sha256(spec.encode()).hexdigest())
    if is_factory(spec):
        return _from_factory(spec, device)
    extension = posixpath.splitext(spec.partition("?")[0])[1].lower()
    if extension not in (*_WEIGHTS, ".onnx"):
        expected = f"a file ending in {', '.join(_WEIGHTS)} or .onnx, package.module:factory, or bicubic:SCALE"
        raise UserError(f"expected {expected}")
    if not os.path.exists(spec) and "://" not in spec and (match := _HUB_FILE.fullmatch(spec)) and spec[0] not in "./":
        spec = hf_hub_download(match["repository"], match["path"])
    try:
        data = storage.read_bytes(spec, _MAX_BYTES)
    except FileNotFoundError:
        raise UserError("no such file") from None
    fingerprint = hashlib.sha256(data).hexdigest()
    if extension == ".onnx":
        return _from_onnx(data, fingerprint, device)
    return _from_weights(data, extension, fingerprint, device, half)


def _from_weights(data: bytes, extension: str, fingerprint: str, device: str, half: bool) -> Network:
    try:
        import spandrel  # noqa: PLC0415 - an extra, and seconds to import
    except ImportError:
        raise UserError(f"needs spandrel: {_INSTALL}") from None
    loader = spandrel.ModelLoader(device)
    with tempfile.TemporaryDirectory() as folder:
        # Of a .pt file spandrel would run the code of a TorchScript archive; as .pth it is read for its tensors.
        path = Path(folder, "weights" + (extension if extension == ".safetensors" else ".pth"))
        path.write_bytes(data)
        try:
            weights = loader.load_state_dict_from_file(path)
        except Exception as error:  # pickle's, torch's and safetensors' own
            raise UserError(f"weights can't be read: {' '.join(str(error).split())[:200]}") from None
    try:
        model = loader.load_from_state_dict(_renamed(weights))
    except spandrel.UnsupportedModelError:
        raise UserError("not the weights of an architecture that spandrel knows") from None
    if not isinstance(model, spandrel.ImageModelDescriptor):
        raise UserError(f"{model.architecture.name} needs a mask beside the image; expected a restorer of whole images")
    if model.input_channels not in (1, 3, 4) or model.output_channels not in (model.input_channels, 3):
        channels = f"{model.input_channels} to {model.output_channels}"
        raise UserError(f"{model.architecture.name} of {channels} channels; expected 1, 3 or 4 each")
    dtype = torch.float16 if half and model.supports_half else torch.float32
    model.to(torch.device(device), dtype).eval()
    model.model.requires_grad_(False)
    needs = model.size_requirements

    def call(batch: Tensor) -> Tensor:
        return model(batch.to(dtype)).float()

    def one_by_one(batch: Tensor) -> Tensor:
        return torch.cat([call(image[None]) for image in batch])

    side = -(-max(_TRIED_SIDE, needs.minimum) // needs.multiple_of) * needs.multiple_of
    return Network(
        call=call if _takes_batches(call, model.input_channels, side, device) else one_by_one,
        fingerprint=fingerprint,
        channels=model.input_channels,
        multiple_of=needs.multiple_of,
        minimum=needs.minimum,
        square=needs.square,
        tiled=model.tiling is not spandrel.ModelTiling.INTERNAL,
    )


def _takes_batches(call: Callable[[Tensor], Tensor], channels: int, side: int, device: str) -> bool:
    """Whether a network takes several images at once: spandrel promises one, and some of its networks take no more."""
    if side > _LARGEST_TRIED:
        return False
    try:
        return len(call(torch.full((2, channels, side, side), 0.5, device=device))) == 2
    except RuntimeError:
        return False


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of DnCNN-PyTorch under the names of KAIR's DnCNN, which spandrel knows; others as they are."""
    if "dncnn.0.weight" not in weights:
        return weights
    renamed = {"model." + key.removeprefix("dncnn."): tensor for key, tensor in weights.items()}
    for key, tensor in list(renamed.items()):
        if key.endswith(".weight") and tensor.ndim == 4:
            renamed.setdefault(key.replace("weight", "bias"), tensor.new_zeros(len(tensor)))
        elif key.endswith(".running_var"):
            renamed[key] = tensor + (_EPSILON - _SPANDRELS_EPSILON)
    return renamed


def _from_onnx(data: bytes, fingerprint: str, device: str) -> Network:
    try:
        import onnxruntime  # noqa: PLC0415 - an extra
    except ImportError:
        raise UserError(f"needs onnxruntime: {_INSTALL}") from None
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"] if device.startswith("cuda") else []
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=providers or ["CPUExecutionProvider"])
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    dtype = types.get(inputs[0].type)
    if len(shape) != 4 or shape[1] not in (1, 3) or dtype is None:
        found = ", ".join(f"{given.name} {given.type} {given.shape}" for given in inputs)
        raise UserError(f"takes {found}; expected one input of (batch, 1 or 3 channels, height, width) of floats")
    alone = isinstance(shape[0], int)
    fixed = (shape[2], shape[3]) if all(isinstance(side, int) for side in shape[2:]) else None
    name = inputs[0].name

    def call(batch: Tensor) -> Tensor:
        array = batch.cpu().numpy().astype(dtype)
        parts = [array[i : i + 1] for i in range(len(array))] if alone else [array]
        found = np.concatenate([np.asarray(session.run(None, {name: part})[0], np.float32) for part in parts])
        return torch.from_numpy(found)

    return Network(call, fingerprint, channels=shape[1], fixed_size=fixed, multiple_of=_multiple_of(call, shape, fixed))


def _multiple_of(call: Callable[[Tensor], Tensor], shape: list[Any], fixed: tuple[int, int] | None) -> int:
    """What sides must be a multiple of, which an ONNX model doesn't say: the first power of two that it works with."""
    if fixed:
        return 1
    for multiple in (1, 2, 4, 8, 16, 32, 64):
        try:
            side = 128 + multiple  # an odd multiple of it
            found = call(torch.zeros(1, shape[1], side, side))
            if found.shape[-1] % side == 0:
                return multiple
        except Exception as error:  # onnxruntime raises its own for sizes that a model can't take
            raise_if_lost(error)
    raise UserError("works with no size of image from 129 to 192 pixels a side")


def _from_factory(spec: str, device: str) -> Network | PlainFunction:
    module_name, _, function = spec.partition(":")
    module = importlib.import_module(module_name)
    factory: Any = getattr(module, function, None)
    if not callable(factory):
        raise UserError(f"{module_name} has no function {function}")
    made = factory()
    if isinstance(made, nn.Module):
        made = made.to(device).eval().requires_grad_(False)
        network: Callable[[Tensor], Tensor] = made
        return Network(
            call=lambda batch: network(batch).float(),
            fingerprint=fingerprint_of(made),
            scale=getattr(made, "scale", None),
            multiple_of=getattr(made, "multiple_of", 1),
        )
    if not callable(made):
        raise UserError(f"gives a {type(made).__name__}; expected a torch module or a callable on arrays")
    try:
        code = inspect.getsource(module).encode()
    except (OSError, TypeError):  # code without a source file
        code = b""
    return PlainFunction(made, hashlib.sha256(spec.encode() + b"\n" + code).hexdigest())
