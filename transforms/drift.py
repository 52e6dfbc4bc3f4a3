"""What transport notes of the latents that pass through it: whether the map still suits the images."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import apache_beam as beam
import torch
from apache_beam.typehints.decorators import no_annotations

from ot_core import GaussianStatistics, read_map, storage, strict_json
from ot_core.drift import drift_of
from ot_core.layout import DRIFT, statistics_of_group
from ot_core.map_file import LatentSets, write_statistics
from ot_core.noise import part_of
from ot_core.patches import patch_statistics
from transforms.elements import GatheredStatistics
from transforms.maps import by_group
from transforms.windows import check_windows

#: Groups of the statistics that transport gathers: of the latents that it encoded, which may become the source of a
#: map, and of the same ones transported.
SOURCE, RESULTS = "source", "results"
#: What is told: of which group, and which side of the map it should be like.
_TOLD = {"inputs": (SOURCE, "source"), "results": (RESULTS, "target")}


class SampledPatches(NamedTuple):
    """Some patches of an image's latent, (n, D) each: as it was encoded, and the same ones transported.

    The group is the one whose map it was transported with, "" where that is for images of any.
    """

    key: str
    before: torch.Tensor
    after: torch.Tensor
    group: str = ""


def gather(sampled: Sequence[SampledPatches], workers: Executor | None = None) -> GatheredStatistics:
    """Statistics of the patches of a batch, for each kind, part and group; latents that aren't finite don't count."""
    together: dict[str, list[torch.Tensor]] = {}
    for key, before, after, group in sampled:
        if len(before) and bool(before.isfinite().all() and after.isfinite().all()):
            together.setdefault(part_of(SOURCE, key, group), []).append(before)
            together.setdefault(part_of(RESULTS, key, group), []).append(after)
    patches = [torch.cat(several) for several in together.values()]
    statistics = workers.map(patch_statistics, patches) if workers else map(patch_statistics, patches)
    return GatheredStatistics(tuple(zip(together, statistics, strict=True)))


@beam.typehints.with_input_types(tuple[str, GaussianStatistics])
@beam.typehints.with_output_types(str)
class WriteDrift(beam.PTransform):
    """(group, GaussianStatistics) of `TransportImages` -> the URL of `<output>/drift.json`.

    Tells how far the inputs are from the map's source, and the results from its target (`ot_core.drift`). The
    statistics themselves are written to `<output>/drift.safetensors`, for fitting a map from. Of maps by subgroup it
    tells the same under `groups`, and writes statistics to `<output>/drift/<subgroup>.safetensors`.

    Args:
        map: URL of the map, or of several by subgroup, as in `TransportImages`.
        output: URL of the folder.
    """

    def __init__(self, map: str | Mapping[str, str], output: str) -> None:
        super().__init__()
        self._maps, self._output = {"": map} if isinstance(map, str) else dict(map), output

    @no_annotations
    def expand(self, statistics: beam.PCollection[tuple[str, GaussianStatistics]]) -> beam.PCollection[str]:
        """A map's statistics meet; written even where there are none."""
        check_windows(self, statistics)
        every_map = statistics.pipeline | "EveryMap" >> beam.Create([(group, None) for group in self._maps])
        measured = (
            (every_map, statistics | "KeyByGroup" >> beam.Map(by_group))
            | "FlattenGroups" >> beam.Flatten()
            | "GroupByGroup" >> beam.GroupByKey()
            | "Measure" >> beam.Map(_measure, self._maps, self._output)
        )
        return (
            statistics.pipeline
            | "Once" >> beam.Create([None])
            | "Write" >> beam.Map(_write_drift, self._output, beam.pvalue.AsDict(measured))
        )


def _measure(
    element: tuple[str, Iterable[tuple[str, GaussianStatistics] | None]], maps: Mapping[str, str], output: str
) -> tuple[str, dict[str, Any]]:
    """Writes the statistics of one map's images, and gives what to tell of them."""
    subgroup, given = element
    map_url = maps[subgroup]
    transport_map = read_map(map_url)
    gathered = dict(item for item in given if item is not None)
    sets = dataclasses.replace(LatentSets.of_map(transport_map), groups=gathered)
    write_statistics(sets, statistics_of_group(output, subgroup))
    found: dict[str, Any] = {"map": map_url, "map_distance_squared": transport_map.distance_squared()}
    for name, (group, side) in _TOLD.items():
        drift = drift_of([part for _, part in sorted(sets.named(group).items())], transport_map, side)
        found[name] = drift and {"from": side, **dataclasses.asdict(drift)}
    return subgroup, found


def _write_drift(_: None, output: str, measured: Mapping[str, dict[str, Any]]) -> str:
    groups = dict(sorted(measured.items()))
    found = groups.pop("", {})
    if groups:
        found = {**found, "groups": groups}
    url = storage.join(output, DRIFT)
    storage.write_bytes(url, strict_json.dumps(found, indent=1).encode())
    return url
