"""What transport notes of the latents that pass through it: whether the map still suits the images."""

import dataclasses
import json
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import apache_beam as beam
import torch
from apache_beam.typehints.decorators import no_annotations

from ot_core import GaussianStatistics, read_map, storage
from ot_core.drift import drift_of
from ot_core.map_file import LatentSets, write_statistics
from ot_core.noise import part_of
from ot_core.patches import patch_statistics
from transforms.elements import GatheredStatistics

#: Groups of the statistics that transport gathers: of the latents that it encoded, which may become the source of a
#: map, and of the same ones transported.
SOURCE, RESULTS = "source", "results"
#: Files below an output.
DRIFT, STATISTICS = "drift.json", "drift.safetensors"
#: What is told: of which group, and which side of the map it should be like.
_TOLD = {"inputs": (SOURCE, "source"), "results": (RESULTS, "target")}


class SampledPatches(NamedTuple):
    """Some patches of an image's latent, (n, D) each: as it was encoded, and the same ones transported."""

    key: str
    before: torch.Tensor
    after: torch.Tensor


def gather(sampled: Sequence[SampledPatches], workers: Executor | None = None) -> GatheredStatistics:
    """Statistics of the patches of a batch, for each kind and random part; latents that aren't finite don't count."""
    together: dict[str, list[torch.Tensor]] = {}
    for key, before, after in sampled:
        if len(before) and bool(before.isfinite().all() and after.isfinite().all()):
            together.setdefault(part_of(SOURCE, key), []).append(before)
            together.setdefault(part_of(RESULTS, key), []).append(after)
    patches = [torch.cat(several) for several in together.values()]
    statistics = workers.map(patch_statistics, patches) if workers else map(patch_statistics, patches)
    return GatheredStatistics(tuple(zip(together, statistics, strict=True)))


@beam.typehints.with_input_types(tuple[str, GaussianStatistics])
@beam.typehints.with_output_types(str)
class WriteDrift(beam.PTransform):
    """(group, GaussianStatistics) of `TransportImages` -> the URL of `<output>/drift.json`.

    Tells how far the inputs are from the map's source, and the results from its target (`ot_core.drift`). The
    statistics themselves are written to `<output>/drift.safetensors`, for fitting a map from.

    Args:
        map: URL of the map.
        output: URL of the folder.
    """

    def __init__(self, map: str, output: str) -> None:
        super().__init__()
        self._map, self._output = map, output

    @no_annotations
    def expand(self, statistics: beam.PCollection[tuple[str, GaussianStatistics]]) -> beam.PCollection[str]:
        """A few small side inputs; written even where there are none."""
        return (
            statistics.pipeline
            | "Once" >> beam.Create([None])
            | "Write" >> beam.Map(_write_drift, self._map, self._output, beam.pvalue.AsDict(statistics))
        )


def _write_drift(_: None, map_url: str, output: str, groups: dict[str, GaussianStatistics]) -> str:
    transport_map = read_map(map_url)
    sets = LatentSets(
        groups,
        transport_map.patch_size,
        transport_map.latent_channels,
        transport_map.vae,
        transport_map.vae_sha256,
    )
    write_statistics(sets, storage.join(output, STATISTICS))
    found: dict[str, Any] = {"map": map_url, "map_distance_squared": transport_map.distance_squared()}
    for name, (group, side) in _TOLD.items():
        drift = drift_of([part for _, part in sorted(sets.named(group).items())], transport_map, side)
        found[name] = drift and {"from": side, **{k: _json(v) for k, v in dataclasses.asdict(drift).items()}}
    url = storage.join(output, DRIFT)
    storage.write_bytes(url, json.dumps(found, indent=1).encode())
    return url


def _json(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
