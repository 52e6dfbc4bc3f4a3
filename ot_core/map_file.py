"""The map file and the statistics file, each one `.safetensors` file; no other module knows their tensor names.

A map carries its statistics too, so that it can be refitted, merged with more data and checked without reading an image
again; a statistics file carries nothing else. Reading never unpickles: anything but a consistent safetensors file is
refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ot_core import storage
from ot_core.check import MapCheck
from ot_core.errors import MapFileError
from ot_core.fitted_map import FittedMap, LatentSets, SourceOrigin
from ot_core.latent_space import LatentSpace
from ot_core.parts import SIDES, WHOLE, Part, PartStatistics
from ot_core.statistics import GaussianStatistics
from ot_core.transport_map import TransportMap

FORMAT_VERSION = "1"
CREATED_BY = "dot-beam"
_MAX_BYTES = 2**32
#: A part as tensors are named: "source", "source/3", "source/3/group".
_PART = re.compile(r"([^/]*)(?:/(\d+))?(?:/(.*))?", re.DOTALL)
#: Of a map; those after the first three only where it has them.
_ARRAYS = ("matrix", "source_mean", "target_mean", "noise_covariance", "metric", "invariant")
_COUNT = ".count"
_IMAGES = ".images"


def write_map(fitted: FittedMap, url: str) -> None:
    """Writes a map atomically to any fsspec URL."""
    storage.write_bytes(url, to_bytes(fitted))


def read_map(url: str) -> FittedMap:
    """Reads and checks a map.

    Raises:
        MapFileError: if the file is missing, isn't a safetensors file, or is inconsistent; names the tensor.
    """
    return from_bytes(_read(f"map {url}", url, f"write one with dot-fit --map {url}"), name=f"map {url}")


def write_statistics(sets: LatentSets, url: str) -> None:
    """Writes statistics atomically to any fsspec URL."""
    metadata = _metadata(sets.space, sets.origin)
    metadata |= {name: value for name, value in (("run", sets.run), ("verdict", sets.verdict)) if value}
    storage.write_bytes(url, _to_safetensors(_tensors(sets.statistics), metadata))


def read_statistics(url: str) -> LatentSets:
    """Reads and checks a statistics file, or the statistics that a map carries.

    Raises:
        MapFileError: as `read_map`.
    """
    name = f"statistics {url}"
    checker = _checker(_read(name, url, "expected a map or a statistics file"), name)
    return checker.map().sets() if "map.matrix" in checker.tensors else checker.sets()


def _read(name: str, url: str, hint: str) -> bytes:
    try:
        return storage.read_bytes(url, max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        raise MapFileError(f"{name}: not found; {hint}") from None
    except (OSError, ValueError) as error:
        raise MapFileError(f"{name}: can't be read ({error})") from None


def to_bytes(fitted: FittedMap) -> bytes:
    """The map as a safetensors file; the same map always gives the same bytes."""
    arrays = {f"map.{name}": getattr(fitted.map, name) for name in _ARRAYS}
    tensors = {name: array for name, array in arrays.items() if array is not None}
    metadata = _metadata(fitted.space, fitted.origin)
    if fitted.residual:
        metadata["residual"] = repr(float(fitted.residual))
    if fitted.check is not None:
        metadata["check"] = fitted.check.to_json()
    if fitted.noise_floor is not None:
        metadata["noise_floor"] = repr(float(fitted.noise_floor))
    return _to_safetensors(tensors | _tensors(fitted.statistics), metadata)


def _name_of(part: Part) -> str:
    number = [] if part.number == WHOLE else [str(part.number)]
    return "/".join([part.side, *number, *([part.group] if part.group else [])])


def _part_of(name: str) -> Part:
    found = _PART.fullmatch(name)
    assert found is not None  # any text is a part's name
    side, number, group = found.groups()
    return Part(side, WHOLE if number is None else int(number), group or "")


def _tensors(of_parts: PartStatistics) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for part, statistics in of_parts.items():
        name = _name_of(part)
        tensors[name + _COUNT] = np.array(statistics.count, dtype=np.int64)
        tensors[f"{name}.mean"] = statistics.mean
        tensors[f"{name}.scatter"] = statistics.scatter
        images = statistics.images
        if images is not None:
            tensors[name + _IMAGES] = np.array(images.count, dtype=np.int64)
            tensors[f"{name}{_IMAGES}_mean"], tensors[f"{name}{_IMAGES}_scatter"] = images.mean, images.scatter
    return tensors


def _metadata(space: LatentSpace, origin: SourceOrigin) -> dict[str, str]:
    return {
        "format_version": FORMAT_VERSION,
        "patch_size": str(space.patch_size),
        "latent_channels": str(space.latent_channels),
        "vae": space.vae,
        "vae_sha256": space.vae_sha256,
        **({"margin": str(space.margin)} if space.margin else {}),
        "created_by": CREATED_BY,
        **{name: value for name, value in dataclasses.asdict(origin).items() if value},
    }


def _to_safetensors(tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    data = save({name: np.array(tensor, order="C") for name, tensor in tensors.items()}, metadata)
    # safetensors writes metadata in a random order; the header is written again in ours.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps({**json.loads(data[8:end]), "__metadata__": metadata}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def from_bytes(data: bytes, name: str = "map") -> FittedMap:
    """Parses and checks a map; `name` opens every error message.

    Raises:
        MapFileError: as `read_map`.
    """
    return _checker(data, name).map()


def metadata_of(data: bytes, name: str = "map") -> dict[str, str]:
    """All metadata of a map, whatever wrote them; arguments and errors are those of `from_bytes`."""
    return _checker(data, name).metadata


def _checker(data: bytes, name: str) -> _Checker:
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "map.safetensors"
            path.write_bytes(data)
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise MapFileError(f"{name}: not a safetensors file ({error}); expected a map written by dot-fit") from None
    return _Checker(name, metadata, tensors)


class _Checker:
    """Turns the file's content into a map or statistics, refusing whatever doesn't hold together."""

    def __init__(self, name: str, metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> None:
        self.name, self.metadata, self.tensors = name, metadata, tensors

    def sets(self) -> LatentSets:
        space = self._space()
        return LatentSets(
            {_part_of(name): self._statistics(name, space.dimension, least=1) for name in self._names()},
            space,
            self._origin(),
            run=self.metadata.get("run", ""),
            verdict=self.metadata.get("verdict", ""),
        )

    def _names(self) -> list[str]:
        """Of the parts."""
        return sorted(key.removesuffix(_COUNT) for key in self.tensors if key.endswith(_COUNT))

    def _check(self) -> MapCheck | None:
        try:
            return MapCheck.from_json(self.metadata["check"]) if "check" in self.metadata else None
        except ValueError:
            raise self._refusal(
                f"metadata check is {self.metadata['check'][:40]!r}, expected what dot-fit found"
            ) from None

    def _origin(self) -> SourceOrigin:
        return SourceOrigin(*(self.metadata.get(field.name, "") for field in dataclasses.fields(SourceOrigin)))

    def map(self) -> FittedMap:
        space = self._space()
        square = (space.dimension, space.dimension)
        noise, metric, invariant = (self.tensors.get(f"map.{name}") for name in _ARRAYS[3:])
        if noise is not None:
            noise = self._tensor("map.noise_covariance", square, symmetric=True)
        if metric is not None:
            metric = self._tensor("map.metric", square, symmetric=True)
            if np.linalg.eigvalsh(metric)[0] <= 0:
                raise self._refusal("tensor map.metric isn't positive definite")
        if invariant is not None:
            invariant = self._tensor("map.invariant", (len(invariant) if invariant.ndim else 0, space.dimension))
        matrix = self._tensor("map.matrix", square, symmetric=noise is None and metric is None)
        if noise is None and metric is not None and not _is_symmetric(metric @ matrix):
            raise self._refusal("tensor map.matrix doesn't suit map.metric: their product isn't symmetric")
        source_mean, target_mean = (self._tensor(f"map.{side}_mean", (space.dimension,)) for side in SIDES)
        wholes = {Part(side): self._statistics(side, space.dimension) for side in SIDES}
        parts = [self._parts(side, whole) for (side, *_), whole in wholes.items()]
        return FittedMap(
            TransportMap(matrix, source_mean, target_mean, noise, metric, invariant),
            space,
            {**wholes, **parts[0], **parts[1]},
            self._number("noise_floor"),
            self._origin(),
            self._number("residual") or 0.0,
            self._check(),
        )

    def _space(self) -> LatentSpace:
        version = self.metadata.get("format_version")
        if version != FORMAT_VERSION:
            raise self._refusal(f"metadata format_version is {version!r}, expected {FORMAT_VERSION!r}")
        patch_size, channels = self._integer("patch_size"), self._integer("latent_channels")
        if patch_size % 2 == 0:
            raise self._refusal(f"metadata patch_size is {patch_size}, expected an odd number")
        named = self.metadata.get("vae", ""), self.metadata.get("vae_sha256", "")
        # Files without a margin are of images that were encoded as they are.
        return LatentSpace(patch_size, channels, *named, self._integer("margin") if "margin" in self.metadata else 0)

    def _parts(self, side: str, whole: GaussianStatistics) -> dict[Part, GaussianStatistics]:
        names = [name for name in self._names() if name.startswith(f"{side}/")]
        parts = {_part_of(name): self._statistics(name, whole.dimension, least=1) for name in names}
        count = sum(part.count for part in parts.values())
        if parts and count != whole.count:
            raise self._refusal(f"tensor {side}.count is {whole.count}, but its parts hold {count}")
        return parts

    def _statistics(self, name: str, dimension: int, least: int = 2) -> GaussianStatistics:
        count = int(self._tensor(name + _COUNT, (), dtype="int64"))
        if count < least:
            raise self._refusal(f"tensor {name}.count is {count}, expected at least {least}")
        scatter = self._tensor(f"{name}.scatter", (dimension, dimension), symmetric=True)
        eigenvalues = np.linalg.eigvalsh(scatter)
        if eigenvalues[0] < -1e-9 * max(abs(float(eigenvalues[-1])), 1e-300):
            raise self._refusal(f"tensor {name}.scatter isn't positive semi-definite (eigenvalue {eigenvalues[0]:.3g})")
        return GaussianStatistics(count, self._tensor(f"{name}.mean", (dimension,)), scatter, self._images(name, count))

    def _images(self, name: str, most: int) -> GaussianStatistics | None:
        """Statistics over the images of a set, which files of earlier versions don't have."""
        name += _IMAGES
        if name not in self.tensors:
            return None
        count = int(self._tensor(name, (), dtype="int64"))
        if not 1 <= count <= most:
            raise self._refusal(f"tensor {name} is {count}, expected 1 to {most}")
        mean = self.tensors.get(f"{name}_mean")
        size = mean.size if mean is not None else 1
        scatter = self._tensor(f"{name}_scatter", (size, size), symmetric=True)
        return GaussianStatistics(count, self._tensor(f"{name}_mean", (size,)), scatter)

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
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise self._refusal(f"metadata {key} is {text[:40]!r}, expected a finite number")
        return number

    def _refusal(self, problem: str) -> MapFileError:
        return MapFileError(f"{self.name}: {problem}; the file is damaged or wasn't written by dot-fit")


def _is_symmetric(matrix: np.ndarray) -> bool:
    return bool(np.abs(matrix - matrix.T).max() <= 1e-9 * np.abs(matrix).max())
