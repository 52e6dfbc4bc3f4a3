"""What transport notes of the latents that pass through it: whether the map still suits the images."""

import dataclasses
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import torch
from apache_beam.typehints.decorators import no_annotations

from ot_core import GaussianStatistics, MapFileError, read_map, storage, strict_json
from ot_core.drift import LIMIT, Drift, DriftMeter, Verdict
from ot_core.drift_history import DriftHistory
from ot_core.fitted_map import LatentSets
from ot_core.layout import drift_url, statistics_url
from ot_core.map_file import read_statistics, write_statistics
from ot_core.parts import SOURCE, TARGET, Part, PartStatistics, number_of, of_side
from ot_core.patches import latent_statistics
from transforms.elements import GatheredStatistics
from transforms.fit_maps import by_group
from transforms.windows import check_windows

#: The side that transported latents are on; those that were encoded may become the source of a map.
RESULTS = "results"
#: What is told: of which side of the images, and which side of the map it should be like.
_TOLD = {"inputs": (SOURCE, SOURCE), "results": (RESULTS, TARGET)}


class ImageStatistics(NamedTuple):
    """Statistics of the patches of an image's latent: as it was encoded, and fully transported.

    The group is the one whose map it was transported with, "" where that is for images of any.
    """

    key: str
    before: GaussianStatistics
    after: GaussianStatistics
    group: str = ""

    @classmethod
    def of(
        cls, key: str, before: torch.Tensor, after: torch.Tensor, patch_size: int, group: str = ""
    ) -> "ImageStatistics | None":
        """Of two latents (C, H, W); None where no patch fits in, or one isn't finite: such an image doesn't count."""
        try:
            found = [latent_statistics(latent, patch_size) for latent in (before, after)]
        except ValueError:
            return None
        return cls(key, found[0], found[1], group) if found[0] and found[1] else None


def gather(images: Sequence[ImageStatistics]) -> GatheredStatistics:
    """Statistics of a batch, by part. Nothing is fitted from results, so they are in one part of each group."""
    together: dict[Part, list[GaussianStatistics]] = {}
    for key, before, after, group in images:
        together.setdefault(Part(SOURCE, number_of(key), group), []).append(before)
        together.setdefault(Part(RESULTS, 0, group), []).append(after)
    return GatheredStatistics(tuple((part, GaussianStatistics.total(several)) for part, several in together.items()))


@beam.typehints.with_input_types(tuple[Part, GaussianStatistics])
@beam.typehints.with_output_types(str)
class WriteDrift(beam.PTransform):
    """(Part, GaussianStatistics) of `TransportImages` -> the URL of `<output>/drift.json`.

    Tells how far the inputs are from the map's source, and the results from its target (`ot_core.drift`). The
    statistics themselves are written to `<output>/drift.safetensors`, for fitting a map from. Of maps by group it
    tells the same under `groups`, and writes statistics to `<output>/drift/<group>.safetensors`.

    Args:
        map: URL of the map, or of several by group, as in `TransportImages`.
        output: URL of the folder.
        limit: the drift from which on images are told to be unlike those that the map was fitted on.
        resume: whether to add to what earlier runs left of images that they were too few of to judge
            (`ot_core.drift_history`); else these are replaced.
        after: written before this is: the manifest. A run that is killed before it has written the manifest may do
            images again, so it leaves no statistics, which would count them twice.
    """

    def __init__(
        self,
        map: str | Mapping[str, str],
        output: str,
        limit: float = LIMIT,
        resume: bool = False,
        after: beam.PCollection[Any] | None = None,
    ) -> None:
        super().__init__()
        self._maps, self._output, self._limit = {"": map} if isinstance(map, str) else dict(map), output, limit
        self._resume, self._after, self._run = resume, after, uuid.uuid4().hex

    @no_annotations
    def expand(self, statistics: beam.PCollection[tuple[Part, GaussianStatistics]]) -> beam.PCollection[str]:
        """A map's statistics meet; written even where there are none."""
        check_windows(self, statistics)
        every_map = statistics.pipeline | "EveryMap" >> beam.Create([(group, None) for group in self._maps])
        waits = [] if self._after is None else [beam.pvalue.AsIter(self._after)]
        measure = _MeasureDoFn(self._maps, self._output, self._limit, self._resume, self._run)
        measured = (
            (every_map, statistics | "KeyByGroup" >> beam.Map(by_group))
            | "FlattenGroups" >> beam.Flatten()
            | "GroupByGroup" >> beam.GroupByKey()
            | "Measure" >> beam.ParDo(measure, *waits)
        )
        return (
            statistics.pipeline
            | "Once" >> beam.Create([None])
            | "Write" >> beam.Map(_write_drift, self._output, self._limit, beam.pvalue.AsDict(measured))
        )


class _MeasureDoFn(beam.DoFn):
    """Writes the statistics of one map's images, and gives what to tell of them."""

    def __init__(self, maps: Mapping[str, str], output: str, limit: float, resume: bool, run: str) -> None:
        self._maps, self._output, self._limit, self._resume, self._run = maps, output, limit, resume, run

    def process(
        self, element: tuple[str, Iterable[tuple[Part, GaussianStatistics] | None]], *after: Any
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        group, given = element
        fitted = read_map(self._maps[group])
        gathered = dict(item for item in given if item is not None)
        told: dict[str, Any] = dict.fromkeys(_TOLD)
        sets, url = fitted.sets(), statistics_url(self._output, group)
        before = _read_before(url, sets) if self._resume else None
        if gathered:
            meters = {side: DriftMeter(fitted, side) for _, side in _TOLD.values()}
            history = DriftHistory.going_on(before, gathered, self._run)
            judged, by_itself = history.recent, Verdict.UNKNOWN
            recent = _drift(meters[SOURCE], judged, SOURCE)
            if recent is not None:
                by_itself = recent.verdict(self._limit)
            write_statistics(history.in_file(sets, self._run, by_itself), url)
            if by_itself == Verdict.UNKNOWN:
                judged = history.with_earlier()
            for name, (ours, theirs) in _TOLD.items():
                told[name] = self._told(theirs, _drift(meters[theirs], judged, ours), _images_of(gathered, ours))
        elif before is None:
            write_statistics(dataclasses.replace(sets, statistics={}), url)
        distance = fitted.distance_squared()
        yield group, {"map": self._maps[group], "map_distance_squared": distance, **told}

    def _told(self, side: str, drift: Drift | None, images: int) -> dict[str, Any] | None:
        if drift is None:
            return None
        known = {"from": side, "verdict": drift.verdict(self._limit), "images_of_this_run": images}
        return {**known, **dataclasses.asdict(drift)}


def _read_before(url: str, expected: LatentSets) -> LatentSets | None:
    """What earlier runs left, unless it is of another space, or can't be read."""
    if storage.details(url) is None:
        return None
    try:
        found = read_statistics(url)
    except MapFileError:
        return None
    return None if found.space.difference(expected.space) else found


def _images_of(statistics: PartStatistics, side: str) -> int:
    return sum(found.images.count for found in of_side(statistics, side).values() if found.images is not None)


def _drift(meter: DriftMeter, statistics: PartStatistics, side: str) -> Drift | None:
    parts = list(of_side(statistics, side).values())
    return meter.drift_of(GaussianStatistics.total(parts)) if parts else None


def _write_drift(_: None, output: str, limit: float, measured: Mapping[str, dict[str, Any]]) -> str:
    groups = dict(sorted(measured.items()))
    found = groups.pop("", {})
    if groups:
        found = {**found, "groups": groups}
    url = drift_url(output)
    storage.write_bytes(url, strict_json.dumps({"limit": limit, **found}, indent=1).encode())
    return url
