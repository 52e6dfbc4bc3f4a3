"""Fitting a transport map from statistics, and writing it: the wiring of `ot_core.fitting` and `map_file`."""

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations

from ot_core import (
    Autoencoder,
    Cause,
    FittedMap,
    GaussianStatistics,
    UserError,
    decoder_geometry,
    load_autoencoder,
    write_map,
)
from ot_core.check import KeptBack
from ot_core.choices import METHODS
from ot_core.decoder import DecoderGeometry
from ot_core.fitted_map import UNKNOWN_ORIGIN, SourceOrigin
from ot_core.fitting import fit_map
from ot_core.groups import map_of_group
from ot_core.margin import with_margin
from ot_core.parts import SIDES, TARGET, WHOLE, Part, PartStatistics, added, of_side
from transforms import metrics
from transforms.elements import Failure, failure_of_side
from transforms.pairs import KeptRefs, PairReader
from transforms.windows import check_windows
from transforms.worker import ends_with_device


class FitOutcome(NamedTuple):
    """Result of `FitTransportMap`: (group, FittedMap), "" where there are no groups; or why there is none."""

    maps: beam.PCollection[tuple[str, FittedMap]]
    failures: beam.PCollection[Failure]


@beam.typehints.with_input_types(tuple[Part, GaussianStatistics])
class FitTransportMap(beam.PTransform):
    """(Part, GaussianStatistics) for the sides "source" and "target" -> (group, FittedMap).

    Either side may come in random parts (`ot_core.parts`): then the map also carries the noise floor of its distance,
    and the parts themselves. Of a side that has a whole as well, the floor isn't known.

    With groups, what is of a group counts for its map alone, and what is of none for all maps.

    Args:
        vae: the autoencoder whose latents these are; the map remembers its name and fingerprint.
        patch_size: p, as in `LatentStatistics`.
        method: "matched" takes differences in the mean colour of patches for content (`ot_core.decoder`), which suits
            sides that show different things; "pixels" doesn't, which suits pairs. Both measure the map's cost in
            decoded pixels, "paper" in latents.
        grouped: whether there are groups, of which each gets a map; else one map of the group "".
        origin: how the source's images were made, for the map to remember.
        margin: pixels that images were continued by before they were encoded; default measured (`ot_core.margin`).
        kept_back: what `KeepBackPairs` gives, to check each map on; default none.
        read_pair: reads those.
        residual: the maps' residual weight; default what the pairs that are kept back give, else 0.
        device: of the autoencoder, as in `ot_core.hardware.chosen_device`.

    Raises:
        UserError: if the method isn't known.
    """

    def __init__(
        self,
        vae: str | None = None,
        patch_size: int = 3,
        method: str = "matched",
        grouped: bool = False,
        origin: SourceOrigin = UNKNOWN_ORIGIN,
        margin: int | None = None,
        kept_back: "beam.PCollection[tuple[str, KeptRefs]] | None" = None,
        read_pair: PairReader | None = None,
        residual: float | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise UserError(f"method {method}: expected one of {', '.join(METHODS)}")
        self._fit = _FitDoFn(vae, patch_size, method, origin, margin, read_pair or PairReader(), residual, device)
        self._kept_back = kept_back
        self._grouped = grouped

    @no_annotations
    def expand(self, statistics: beam.PCollection[tuple[Part, GaussianStatistics]]) -> FitOutcome:
        """What all maps have in common is a small side input; groups are spread over workers."""
        check_windows(self, statistics)
        common, elements = statistics, statistics.pipeline | "Once" >> beam.Create([("", ())])
        if self._grouped:
            common, own = statistics | "IsOfGroup" >> beam.Partition(_is_of_group, 2)
            elements = own | "KeyByGroup" >> beam.Map(by_group) | "GroupByGroup" >> beam.GroupByKey()
        kept_back = self._kept_back
        if kept_back is None:
            kept_back = statistics.pipeline | "NoPairs" >> beam.Create([], reshuffle=False)
        fit = beam.ParDo(self._fit, beam.pvalue.AsDict(common), beam.pvalue.AsDict(kept_back))
        fitted = elements | "Fit" >> fit.with_outputs("failures", main="maps")
        return FitOutcome(fitted.maps, fitted.failures)


def _is_of_group(item: tuple[Part, GaussianStatistics], partitions: int) -> int:
    return int(bool(item[0].group))


def by_group(item: tuple[Part, GaussianStatistics]) -> tuple[str, tuple[Part, GaussianStatistics]]:
    """Statistics of a group as those of no group, under its name."""
    part, statistics = item
    return part.group, (part._replace(group=""), statistics)


@dataclass(eq=False)
class _FitDoFn(beam.DoFn):
    vae: str | None
    patch_size: int
    method: str
    origin: SourceOrigin
    margin: int | None
    read_pair: PairReader
    residual: float | None
    device: str | None = None
    of_common: DecoderGeometry | None = field(default=None, init=False)

    def process(
        self,
        element: tuple[str, Iterable[tuple[Part, GaussianStatistics]]],
        common: PartStatistics,
        kept_back: Mapping[str, KeptRefs],
    ) -> Iterator[Any]:
        group, own = element[0], dict(element[1])
        statistics = added(own, common)
        sides = {side: list(of_side(statistics, side).values()) for side in SIDES}
        missing = [side for side, found in sides.items() if sum(part.count for part in found) < 2]
        for side in missing:
            of_group = f" of group {group}" if group else ""
            message = f"no usable image in the {side}{of_group}: nothing to fit"
            yield beam.pvalue.TaggedOutput("failures", failure_of_side(side, "fit", Cause.NO_STATISTICS, message))
        if missing:
            return
        with metrics.timed("fit"), ends_with_device():
            autoencoder = with_margin(load_autoencoder(self.vae, self.device), self.margin)
            geometry = None
            if self.method != "paper":
                target = functools.reduce(operator.add, sides[TARGET])
                geometry = self._geometry(autoencoder, target, common=not of_side(own, TARGET))
            number, refs = kept_back.get(group, (WHOLE, ()))
            pairs = KeptBack(number, [pair for each in refs if (pair := self.read_pair(each)) is not None])
            fitted = fit_map(
                statistics, autoencoder, self.patch_size, self.method, geometry, self.origin, pairs, self.residual
            )
            yield group, fitted

    def _geometry(self, autoencoder: Autoencoder, target: GaussianStatistics, common: bool) -> DecoderGeometry:
        """Measured once for a target that all maps have in common: it takes about as long as everything else."""
        if not common:
            return decoder_geometry(autoencoder, target, self.patch_size)
        self.of_common = self.of_common or decoder_geometry(autoencoder, target, self.patch_size)
        return self.of_common


@beam.typehints.with_input_types(tuple[str, FittedMap])
@beam.typehints.with_output_types(str)
class WriteTransportMap(beam.PTransform):
    """(group, FittedMap) -> the URL that it was written to.

    Args:
        url: a `.safetensors` file, at any fsspec URL; replaced whole or not at all. Of several maps, with {group} where
            the group's name goes.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    @no_annotations
    def expand(self, maps: beam.PCollection[tuple[str, FittedMap]]) -> beam.PCollection[str]:
        """A file for each."""
        check_windows(self, maps)
        return maps | "WriteMap" >> beam.Map(_write, self._url).with_output_types(str)


def _write(element: tuple[str, FittedMap], url: str) -> str:
    group, fitted = element
    url = map_of_group(url, group) if group else url
    write_map(fitted, url)
    metrics.count(metrics.MAPS_WRITTEN)
    if fitted.is_noisy:
        metrics.count(metrics.MAPS_MOSTLY_NOISE)
    return url
