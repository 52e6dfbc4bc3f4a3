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

import functools
import hashlib
import importlib
import json
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from fsspec.core import url_to_fs
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from ot_core.errors import UserError

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
    """

    def __init__(self, module: Any, name: str, device: torch.device | str = "cpu") -> None:
        self._module: Any = module.to(device).eval().requires_grad_(False)
        self.name, self.device = name, torch.device(device)
        declared = getattr(module, "downsampling_factor", None)
        latent = self._encode(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE, device=self.device))
        self.latent_channels = int(latent.shape[1])
        self.downsampling_factor = int(declared or _PROBE_SIZE // latent.shape[-1])

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the config and of every weight in name order, hexadecimal."""
        digest = hashlib.sha256()
        config = dict(getattr(self._module, "config", {"class": type(self._module).__qualname__}))
        config = {key: value for key, value in config.items() if key not in _CONFIG_KEYS_WITHOUT_EFFECT}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for key, tensor in sorted(self._module.state_dict().items()):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

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
        """Latents (B, C, H/f, W/f) float32 of padded pixels (B, 3, H, W) in [0, 1]."""
        return self._encode(pixels.to(self.device, torch.float32) * 2 - 1)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) float32 in [0, 1], clamped, of latents (B, C, H/f, W/f)."""
        decoded = self._module.decode(latents.to(self.device, torch.float32))
        decoded = getattr(decoded, "sample", decoded)
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    @torch.inference_mode()
    def _encode(self, x: Tensor) -> Tensor:
        encoded = self._module.encode(x)
        if hasattr(encoded, "latent_dist"):
            encoded = encoded.latent_dist.mode()
        for attribute in ("latent", "latents"):
            encoded = getattr(encoded, attribute, encoded)
        return encoded.float()


class _PixelSpace(nn.Module):
    """The identity."""

    downsampling_factor = 1

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


def default_device() -> str:
    """The first CUDA device where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_batch_pixels() -> int:
    """Pixels in a batch: single images on a CPU, where batching gains nothing and could change the last bit."""
    return 2**22 if torch.cuda.is_available() else 0


def vae_name(spec: str | None) -> str:
    """The name under which a map remembers the autoencoder that `--vae` asked for."""
    return spec or DEFAULT_VAE


def is_factory(spec: str) -> bool:
    """Whether a spec names code to import, which is only ever done for a user's own flag, never for a map."""
    return _FACTORY.fullmatch(spec) is not None and not os.path.exists(spec)


@functools.lru_cache(maxsize=2)
def load_autoencoder(spec: str | None = None, device: str | None = None) -> Autoencoder:
    """Loads an autoencoder once per process; see the module's docstring for the specs.

    Raises:
        UserError: if there is none at that place, or it isn't one.
    """
    name = vae_name(spec)
    try:
        return Autoencoder(_load_module(name), name, device or default_device())
    except UserError:
        raise
    except Exception as error:  # diffusers, the hub, fsspec and user code each raise their own
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"vae {name}: can't be loaded ({type(error).__name__}: {reason})") from None


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
            fs, path = url_to_fs(name)
            for file in fs.ls(path, detail=False):
                if file.endswith((".json", ".safetensors")):
                    fs.get_file(file, os.path.join(folder, os.path.basename(file)))
            return _from_diffusers(Path(folder), name)
    match = _HUB_ID.fullmatch(name)
    if match is None or name.startswith("."):
        raise UserError(
            f"vae {name}: expected a folder, a URL, a hub id (owner/name), package.module:factory or {PIXELS}"
        )
    return _from_diffusers(_from_hub(match["repository"], match["subfolder"].lstrip("/")), name)


def _from_hub(repository: str, subfolder: str) -> Path:
    """Folder of a model on the hub, downloaded unless it is in the hub's cache."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the error says it all
    patterns = [os.path.join(subfolder, pattern) for pattern in _HUB_FILES]
    return Path(snapshot_download(repository, allow_patterns=patterns)) / subfolder


def _from_diffusers(folder: Path, name: str) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise UserError(f"vae {name}: expected a folder in diffusers' format, found no config.json in it")
    import diffusers  # noqa: PLC0415 - takes seconds, which a user's own autoencoder needn't wait for

    # Diffusers warns of config keys it has no use for; they change nothing.
    logging.getLogger("diffusers").setLevel(logging.ERROR)
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
