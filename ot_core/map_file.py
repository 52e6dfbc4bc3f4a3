"""The map file: one `.safetensors` file; no other module knows its tensor names.

It carries the statistics as well as the map, so that a map can be refitted, merged with more data and
checked without reading an image again. Reading never unpickles: anything but a consistent safetensors file
is refused by name.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ot_core import storage
from ot_core.errors import MapFileError
from ot_core.statistics import GaussianStatistics
from ot_core.transport_map import TransportMap

FORMAT_VERSION = "1"
CREATED_BY = "dot-beam"
_MAX_BYTES = 2**32


def write_map(transport_map: TransportMap, url: str) -> None:
    """Writes a map atomically to any fsspec URL."""
    storage.write_bytes(url, to_bytes(transport_map))


def read_map(url: str) -> TransportMap:
    """Reads and checks a map.

    Raises:
        MapFileError: if the file is missing, isn't a safetensors file, or is inconsistent; names the tensor.
    """
    try:
        data = storage.read_bytes(url, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        raise MapFileError(f"map {url}: not found; write one with dot-fit --map {url}") from None
    except (OSError, ValueError) as error:
        raise MapFileError(f"map {url}: can't be read ({error})") from None
    return from_bytes(data, name=f"map {url}")


def to_bytes(transport_map: TransportMap) -> bytes:
    """The map as a safetensors file; the same map always gives the same bytes."""
    tensors = {
        "map.matrix": transport_map.matrix,
        "map.source_mean": transport_map.source_mean,
        "map.target_mean": transport_map.target_mean,
    }
    if transport_map.noise_covariance is not None:
        tensors["map.noise_covariance"] = transport_map.noise_covariance
    if transport_map.metric is not None:
        tensors["map.metric"] = transport_map.metric
    if transport_map.invariant is not None:
        tensors["map.invariant"] = transport_map.invariant
    for side, statistics in (("source", transport_map.source), ("target", transport_map.target)):
        tensors[f"{side}.count"] = np.array(statistics.count, dtype=np.int64)
        tensors[f"{side}.mean"] = statistics.mean
        tensors[f"{side}.scatter"] = statistics.scatter
    metadata = {
        "format_version": FORMAT_VERSION,
        "patch_size": str(transport_map.patch_size),
        "latent_channels": str(transport_map.latent_channels),
        "vae": transport_map.vae,
        "vae_sha256": transport_map.vae_sha256,
        "created_by": CREATED_BY,
    }
    if transport_map.noise_floor is not None:
        metadata["noise_floor"] = repr(float(transport_map.noise_floor))
    data = save({name: np.array(tensor, order="C") for name, tensor in tensors.items()}, metadata)
    # safetensors writes metadata in a random order; the header is written again in ours.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps({**json.loads(data[8:end]), "__metadata__": metadata}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def from_bytes(data: bytes, name: str = "map") -> TransportMap:
    """Parses and checks a map; `name` opens every error message.

    Raises:
        MapFileError: as `read_map`.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "map.safetensors"
            path.write_bytes(data)
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise MapFileError(f"{name}: not a safetensors file ({error}); expected a map written by dot-fit") from None
    return _Checker(name, metadata, tensors).map()


class _Checker:
    """Turns the file's content into a map, refusing whatever doesn't hold together."""

    def __init__(self, name: str, metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> None:
        self.name, self.metadata, self.tensors = name, metadata, tensors

    def map(self) -> TransportMap:
        version = self.metadata.get("format_version")
        if version != FORMAT_VERSION:
            raise self._refusal(f"metadata format_version is {version!r}, expected {FORMAT_VERSION!r}")
        patch_size, channels = self._integer("patch_size"), self._integer("latent_channels")
        if patch_size % 2 == 0:
            raise self._refusal(f"metadata patch_size is {patch_size}, expected an odd number")
        dimension = channels * patch_size**2
        noise = self.tensors.get("map.noise_covariance")
        if noise is not None:
            noise = self._tensor("map.noise_covariance", (dimension, dimension), symmetric=True)
        metric = self.tensors.get("map.metric")
        if metric is not None:
            metric = self._tensor("map.metric", (dimension, dimension), symmetric=True)
            if np.linalg.eigvalsh(metric)[0] <= 0:
                raise self._refusal("tensor map.metric isn't positive definite")
        invariant = self.tensors.get("map.invariant")
        if invariant is not None:
            invariant = self._tensor("map.invariant", (len(invariant) if invariant.ndim else 0, dimension))
        matrix = self._tensor("map.matrix", (dimension, dimension), symmetric=noise is None and metric is None)
        if noise is None and metric is not None and not _is_symmetric(metric @ matrix):
            raise self._refusal("tensor map.matrix doesn't suit map.metric: their product isn't symmetric")
        return TransportMap(
            source=self._statistics("source", dimension),
            target=self._statistics("target", dimension),
            matrix=matrix,
            source_mean=self._tensor("map.source_mean", (dimension,)),
            target_mean=self._tensor("map.target_mean", (dimension,)),
            noise_covariance=noise,
            patch_size=patch_size,
            vae=self.metadata.get("vae", ""),
            vae_sha256=self.metadata.get("vae_sha256", ""),
            metric=metric,
            invariant=invariant,
            noise_floor=self._number("noise_floor"),
        )

    def _statistics(self, side: str, dimension: int) -> GaussianStatistics:
        count = int(self._tensor(f"{side}.count", (), dtype="int64"))
        if count < 2:
            raise self._refusal(f"tensor {side}.count is {count}, expected at least 2")
        scatter = self._tensor(f"{side}.scatter", (dimension, dimension), symmetric=True)
        eigenvalues = np.linalg.eigvalsh(scatter)
        if eigenvalues[0] < -1e-9 * max(abs(float(eigenvalues[-1])), 1e-300):
            raise self._refusal(f"tensor {side}.scatter isn't positive semi-definite (eigenvalue {eigenvalues[0]:.3g})")
        return GaussianStatistics(count, self._tensor(f"{side}.mean", (dimension,)), scatter)

    def _tensor(
        self, key: str, shape: tuple[int, ...], *, dtype: str = "float64", symmetric: bool = False
    ) -> np.ndarray:
        tensor = self.tensors.get(key)
        if tensor is None:
            raise self._refusal(f"tensor {key} is missing")
        if str(tensor.dtype) != dtype or tensor.shape != shape:
            raise self._refusal(f"tensor {key} is {tensor.dtype} {tensor.shape}, expected {dtype} {shape}")
        if not np.isfinite(tensor).all():
            raise self._refusal(f"tensor {key} holds NaN or infinity")
        if symmetric and not _is_symmetric(tensor):
            raise self._refusal(f"tensor {key} isn't symmetric")
        return tensor

    def _integer(self, key: str) -> int:
        text = self.metadata.get(key, "")
        if not text.isdecimal() or len(text) > 9 or int(text) < 1:
            raise self._refusal(f"metadata {key} is {text[:40]!r}, expected a positive integer")
        return int(text)

    def _number(self, key: str) -> float | None:
        text = self.metadata.get(key)
        if text is None:
            return None
        try:
            return float(text)
        except ValueError:
            raise self._refusal(f"metadata {key} is {text[:40]!r}, expected a number") from None

    def _refusal(self, problem: str) -> MapFileError:
        return MapFileError(f"{self.name}: {problem}; the file is damaged or wasn't written by dot-fit")


def _is_symmetric(matrix: np.ndarray) -> bool:
    return bool(np.abs(matrix - matrix.T).max() <= 1e-9 * np.abs(matrix).max())
