"""Any autoencoder behind one deterministic interface: pixels in [0, 1] to latents and back.

What can be loaded (`load_autoencoder`):

- nothing: the small one that ships in `ot_core/vae`;
- `pixels`: none at all, so that the method works on patches of pixels;
- a folder in diffusers' format, local or at any fsspec URL, with safetensors weights;
- a hub id, `owner/name` or `owner/name/subfolder`;
- the user's own, as `package.module:factory`: `factory()` returns a torch module with `encode(x)`, (B, 3, H, W) in
  [-1, 1] to (B, C, h, w), `decode(z)` back to [-1, 1], and the integer attribute `downsampling_factor`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib
import itertools
import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from ot_core import storage
from ot_core.errors import UserError, type_and_line
from ot_core.hardware import chosen_device, computing_on, default_precision
from ot_core.transfer import Pixels, sent, stacked, unit

#: Name of the autoencoder that ships with the package.
DEFAULT_VAE: Final = "default"
#: Name of the identity: latents are the pixels themselves.
PIXELS: Final = "pixels"
_DEFAULT_FOLDER: Final = Path(__file__).parent / "vae"
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?P<subfolder>(/[\w.-]+)*)")
_HUB_FILES: Final = (
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model-0*.safetensors",
)
_logging = threading.Lock()
#: What torch says of a module, somebody's own, that takes views of tensors or holds other than images' convolutions.
_WANTS_COMMON_ORDER: Final = ("view size is not compatible", "required rank 4 tensor to use channels_last")
_CONFIG_KEYS_WITHOUT_EFFECT = ("_name_or_path", "_diffusers_version")
#: Smallest image every known autoencoder accepts; used to measure channels and downsampling.
_PROBE_SIZE: Final = 128


class Autoencoder:
    """A loaded autoencoder; encoding is deterministic (the posterior's mode, without scaling factor).

    Attributes:
        name: what it was loaded from.
        downsampling_factor: pixels per latent position along each axis.
        latent_channels: C.
        fingerprint: sha256 of its weights and config, hexadecimal.
        device: where it computes.
        precision: in which it computes; float32 where it has no weights.
        margin: pixels that an image is continued by on each side before it is encoded (`ot_core.margin`), and that are
            cut off again when it is decoded. With a margin, convolutions continue what they see by replication too,
            where they would take zeros.

    Args:
        module: encodes and decodes; it becomes ours, on the device and in the precision.
        name: see above.
        device: see above.
        precision: float32, bfloat16 or float16. What goes in and comes out is float32 all the same.
    """

    def __init__(self, module: Any, name: str, device: torch.device | str = "cpu", precision: str = "float32") -> None:
        self.fingerprint = fingerprint_of(module)
        self.precision = precision if any(True for _ in module.parameters()) else "float32"
        self.name, self.device, self._dtype = name, torch.device(device), getattr(torch, self.precision)
        self.margin, self._compiled = 0, False
        declared = getattr(module, "downsampling_factor", None)
        self._module: Any = module.to(self.device, self._dtype).eval().requires_grad_(False)
        self._encode, self._decode = self._module.encode, self._module.decode
        self._variants = {(False, False): (self._module, self._encode, self._decode)}  # shared by copies; see `_like`
        try:
            latent = self._probe(torch.channels_last)
        except RuntimeError as error:
            if not any(said in str(error) for said in _WANTS_COMMON_ORDER):
                raise
            latent = self._probe(torch.contiguous_format)
        self.latent_channels = int(latent.shape[1])
        self.downsampling_factor = int(declared or _PROBE_SIZE // latent.shape[-1])

    def _probe(self, memory_format: torch.memory_format) -> Tensor:
        """The latent of a black square, after a round trip in this order of channels."""
        self._memory_format = memory_format
        self._module.to(memory_format=memory_format)
        latent = self.encode(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE))
        self.decode(latent)
        return latent

    def with_margin(self, margin: int) -> Autoencoder:
        """The same autoencoder with another margin, a multiple of the downsampling factor; both share the weights."""
        return self if margin == self.margin else self._like(margin, self._compiled)

    def compiled(self) -> Autoencoder:
        """The same autoencoder, compiled by torch; both share the weights.

        This takes half a minute and on a CPU a C++ compiler: first for one size of images, then for any. It pays for
        very many images.

        Raises:
            Exception: whatever torch raises where it can't compile.
        """
        other = self._like(self.margin, compiled=True)
        if not self._compiled:
            other.decode(other.encode(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE)))  # what is missing shows here
        return other

    def _like(self, margin: int, compiled: bool) -> Autoencoder:
        other = self.bare()
        other.margin, other._compiled = margin, compiled
        replicates = margin > 0
        if (replicates, compiled) not in self._variants:
            if compiled:
                eager = self._like(margin, compiled=False)
                variant = eager._module, torch.compile(eager._encode), torch.compile(eager._decode)
            else:
                module = replicating(self._module)
                variant = module, module.encode, module.decode
            self._variants[replicates, compiled] = variant
        other._module, other._encode, other._decode = self._variants[replicates, compiled]
        return other

    def bare(self) -> Autoencoder:
        """The same autoencoder, for images that are continued by the margin already and latents that keep it."""
        other = copy.copy(self)
        other.margin = 0
        return other

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image is padded to: the next multiples of the downsampling factor."""
        factor = self.downsampling_factor
        return -(-height // factor) * factor, -(-width // factor) * factor

    def pad(self, pixels: Tensor) -> Tensor:
        """Replicates the right and bottom edges of (B, 3, H, W) up to the padded size."""
        height, width = pixels.shape[-2:]
        padded_height, padded_width = self.padded_size(height, width)
        return F.pad(pixels, (0, padded_width - width, 0, padded_height - height), mode="replicate")

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents (B, C, H/f + 2 m/f, W/f + 2 m/f) float32 of padded pixels (B, 3, H, W) in [0, 1].

        f is the downsampling factor and m the margin, which `inner` takes off.
        """
        inputs = pixels.to(self.device, torch.float32) * 2 - 1
        if self.margin:
            inputs = F.pad(inputs, (self.margin,) * 4, mode="replicate")
        with computing_on(self.device):
            encoded = self._encode(self._input(inputs))
        if hasattr(encoded, "latent_dist"):
            encoded = encoded.latent_dist.mode()
        for attribute in ("latent", "latents"):
            encoded = getattr(encoded, attribute, encoded)
        return encoded.float().contiguous()

    def inner(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H/f, W/f) without their margin: those of the image itself."""
        cut = self.margin // self.downsampling_factor
        return latents[..., cut : latents.shape[-2] - cut, cut : latents.shape[-1] - cut]

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) float32 in [0, 1], clamped, of latents that `encode` gave; their margin is cut off.

        An image of which anything came out infinite or NaN, as it does beyond float16's range, is NaN throughout.
        """
        with computing_on(self.device):
            decoded = self._decode(self._input(latents.to(self.device)))
        decoded = getattr(decoded, "sample", decoded).float()
        poison = decoded.sum((1, 2, 3), keepdim=True) * 0  # clamping alone would make white of infinity
        cut = self.margin
        decoded = decoded[..., cut : decoded.shape[-2] - cut, cut : decoded.shape[-1] - cut]
        return (decoded / 2 + (0.5 + poison)).clamp_(0, 1)

    def _input(self, x: Tensor) -> Tensor:
        return x.to(self._dtype).contiguous(memory_format=self._memory_format)


def replicating(module: Any) -> Any:
    """The same module with the same weights, whose convolutions pad by replication.

    Zeros, which most are built with, are an edge to what follows. A margin alone keeps them only as far away as it
    reaches, and a transport map may amplify what is left of them a hundredfold. Somebody's own module that has no such
    convolutions, or can't be copied, stays what it is.
    """
    if not any(map(_pads_with_zeros, module.modules())):
        return module
    shared = {id(tensor): tensor for tensor in itertools.chain(module.parameters(), module.buffers())}
    try:
        found = copy.deepcopy(module, shared)
    except Exception:  # it holds a lock, a session, or what else there is
        return module
    for one in filter(_pads_with_zeros, found.modules()):
        one.padding_mode = "replicate"
    return found


def _pads_with_zeros(module: Any) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and any(module.padding)
    )


def fingerprint_of(module: Any) -> str:
    """sha256 of the config and of every weight in name order, hexadecimal."""
    digest = hashlib.sha256()
    config = dict(getattr(module, "config", {"class": type(module).__qualname__}))
    config = {key: value for key, value in config.items() if key not in _CONFIG_KEYS_WITHOUT_EFFECT}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for key, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def to_tensor(images: Sequence[Pixels], autoencoder: Autoencoder) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1] on the autoencoder's device, padded as it pads.

    Args:
        images: (H, W, 3), uint8 or float32 in [0, 1], of one padded size.
        autoencoder: tells where and how large.
    """
    return unit(sent(stacked(images, *autoencoder.padded_size(*images[0].shape[:2])), autoencoder.device))


class _PixelSpace(nn.Module):
    """The identity."""

    downsampling_factor = 1

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


def vae_name(spec: str | None) -> str:
    """The name under which a map remembers the autoencoder that `--vae` asked for."""
    return spec or DEFAULT_VAE


def is_factory(spec: str) -> bool:
    """Whether a spec names code to import, which is only ever done for a user's own flag, never for a map."""
    return _FACTORY.fullmatch(spec) is not None and not os.path.exists(spec)


def load_autoencoder(
    spec: str | None = None, device: str | None = None, precision: str | None = "float32", compiled: bool = False
) -> Autoencoder:
    """Loads an autoencoder once per process.

    Args:
        spec: see the module's docstring.
        device: see `chosen_device`.
        precision: one of `ot_core.choices.PRECISIONS`; None for `default_precision`.
        compiled: see `Autoencoder.compiled`.

    Raises:
        UserError: if there is none at that place, it isn't one, or there is no such device.
    """
    device, name = chosen_device(device), vae_name(spec)
    precision = precision or default_precision(device)
    loaded = _load_once(name, device, precision)
    if not compiled:
        return loaded
    try:
        return loaded.compiled()
    except Exception as error:  # torch's compilers each raise their own
        raise UserError(f"vae {name}: can't be compiled in {precision} ({type_and_line(error)})") from None


@contextlib.contextmanager
def _errors_only(library: str) -> Iterator[None]:
    """Keeps a library that is imported already from logging warnings in this block.

    Its logger belongs to the whole process, and it sets the level when it is imported.
    """
    logger = logging.getLogger(library)
    with _logging:  # else two threads would restore each other's level
        before = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)


@functools.lru_cache(maxsize=2)
def _load_once(name: str, device: str, precision: str) -> Autoencoder:
    try:
        module = _load_module(name)
        with _errors_only("diffusers"):  # it warns of what changes nothing
            return Autoencoder(module, name, device, precision)
    except UserError:
        raise
    except Exception as error:  # diffusers, the hub, fsspec and user code each raise their own
        raise UserError(f"vae {name}: can't be loaded in {precision} ({type_and_line(error)})") from None


def _load_module(name: str) -> nn.Module:
    if name == DEFAULT_VAE:
        return _from_diffusers(_DEFAULT_FOLDER, name)
    if name == PIXELS:
        return _PixelSpace()
    if is_factory(name):
        return _from_factory(name)
    if os.path.isdir(name):
        return _from_diffusers(Path(name), name)
    if "://" in name:
        with tempfile.TemporaryDirectory() as folder:
            for file in storage.children(name):
                if file.endswith((".json", ".safetensors")):
                    storage.download(storage.join(name, file), os.path.join(folder, file))
            return _from_diffusers(Path(folder), name)
    match = _HUB_ID.fullmatch(name)
    if match is None or name.startswith("."):
        raise UserError(
            f"vae {name}: expected a folder, a URL, a hub id (owner/name), package.module:factory or {PIXELS}"
        )
    return _from_diffusers(_from_hub(match["repository"], match["subfolder"].lstrip("/")), name)


def _from_hub(repository: str, subfolder: str) -> Path:
    """Folder of a model on the hub, downloaded unless it is in the hub's cache."""
    patterns = [os.path.join(subfolder, pattern) for pattern in _HUB_FILES]
    with _errors_only("huggingface_hub"):  # the error says it all
        return Path(snapshot_download(repository, allow_patterns=patterns)) / subfolder


def _from_diffusers(folder: Path, name: str) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise UserError(f"vae {name}: expected a folder in diffusers' format, found no config.json in it")
    import diffusers  # noqa: PLC0415 - takes seconds, which a user's own autoencoder needn't wait for

    with _errors_only("diffusers"):  # it warns of config keys it has no use for; they change nothing
        module = diffusers.AutoModel.from_pretrained(
            str(folder), torch_dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    if not (hasattr(module, "encode") and hasattr(module, "decode")):
        raise UserError(
            f"vae {name}: a {type(module).__name__}, which can't encode and decode; expected an autoencoder"
        )
    assert isinstance(module, nn.Module)
    return module


def _from_factory(spec: str) -> nn.Module:
    module_name, _, function = spec.partition(":")
    factory: Any = getattr(importlib.import_module(module_name), function, None)
    if not callable(factory):
        raise UserError(f"vae {spec}: {module_name} has no function {function}")
    module = factory()
    missing = [name for name in ("encode", "decode", "downsampling_factor") if not hasattr(module, name)]
    if not isinstance(module, nn.Module) or missing:
        raise UserError(
            f"vae {spec}: expected a torch module with encode, decode and downsampling_factor; lacks {missing}"
        )
    return module
