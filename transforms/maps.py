"""Fitting a transport map from statistics, and writing it: the wiring of `ot_core.transport_map` and `map_file`."""

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations

from ot_core import (
    Cause,
    GaussianStatistics,
    TransportMap,
    UserError,
    decoder_geometry,
    load_autoencoder,
    noise_floor,
    write_map,
)
from ot_core.autoencoder import vae_name
from transforms import metrics
from transforms.elements import Failure, failure_of_group

METHODS = ("matched", "pixels", "paper")


class FitOutcome(NamedTuple):
    """Result of `FitTransportMap`: one map, or none and a failure that says why."""

    maps: beam.PCollection[TransportMap]
    failures: beam.PCollection[Failure]


@beam.typehints.with_input_types(tuple[str, GaussianStatistics])
class FitTransportMap(beam.PTransform):
    """(group, GaussianStatistics) for the groups "source" and "target" -> one TransportMap.

    Either side may come in random parts, as groups "source/0", "source/1" and so on: then the map also carries the
    noise floor of its distance.

    Args:
        vae: the autoencoder whose latents these are; the map remembers its name and fingerprint.
        patch_size: p, as in `LatentStatistics`.
        method: "matched" takes differences in the mean colour of patches for content (`ot_core.decoder`), which suits
            sides that show different things; "pixels" doesn't, which suits pairs. Both measure the map's cost in
            decoded pixels, "paper" in latents.

    Raises:
        UserError: if the method isn't known.
    """

    def __init__(self, vae: str | None = None, patch_size: int = 3, method: str = "matched") -> None:
        super().__init__()
        if method not in METHODS:
            raise UserError(f"method {method}: expected one of {', '.join(METHODS)}")
        self._vae, self._patch_size, self._method = vae, patch_size, method

    @no_annotations
    def expand(self, statistics: beam.PCollection[tuple[str, GaussianStatistics]]) -> FitOutcome:
        """Both groups meet as one small side input."""
        fitted = (
            statistics.pipeline
            | "Once" >> beam.Create([None])
            | "Fit"
            >> beam.ParDo(
                _FitDoFn(self._vae, self._patch_size, self._method), beam.pvalue.AsDict(statistics)
            ).with_outputs("failures", main="maps")
        )
        return FitOutcome(fitted.maps, fitted.failures)


class _FitDoFn(beam.DoFn):
    def __init__(self, vae: str | None, patch_size: int, method: str) -> None:
        self._vae, self._patch_size, self._method = vae, patch_size, method

    def process(self, element: None, statistics: dict[str, GaussianStatistics]) -> Iterator[Any]:
        parts = {side: _parts_of(side, statistics) for side in ("source", "target")}
        missing = [side for side in parts if sum(part.count for part in parts[side]) < 2]
        for side in missing:
            message = f"no usable image in the {side}: nothing to fit"
            yield beam.pvalue.TaggedOutput("failures", failure_of_group(side, "fit", Cause.NO_STATISTICS, message))
        if missing:
            return
        with metrics.timed("fit"):
            autoencoder = load_autoencoder(self._vae)
            source, target = (functools.reduce(operator.add, parts[side]) for side in ("source", "target"))
            known: dict[str, Any] = {}
            if self._method != "paper":
                geometry = decoder_geometry(autoencoder, target, self._patch_size)
                known["metric"] = geometry.metric
                known["invariant"] = geometry.colour if self._method == "matched" else None
            floor = noise_floor(parts["source"], parts["target"], known.get("invariant"))
            yield TransportMap.fit(
                source,
                target,
                patch_size=self._patch_size,
                vae=vae_name(self._vae),
                vae_sha256=autoencoder.fingerprint,
                **known,
                noise_floor=floor if math.isfinite(floor) else None,
            )


def _parts_of(side: str, statistics: dict[str, GaussianStatistics]) -> list[GaussianStatistics]:
    return [statistics[group] for group in sorted(statistics) if group.partition("/")[0] == side]


@beam.typehints.with_input_types(TransportMap)
@beam.typehints.with_output_types(str)
class WriteTransportMap(beam.PTransform):
    """TransportMap -> the URL that it was written to.

    Args:
        url: a `.safetensors` file, at any fsspec URL; replaced whole or not at all.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    @no_annotations
    def expand(self, maps: beam.PCollection[TransportMap]) -> beam.PCollection[str]:
        """One file."""
        return maps | "WriteMap" >> beam.Map(_write, self._url).with_output_types(str)


def _write(transport_map: TransportMap, url: str) -> str:
    write_map(transport_map, url)
    metrics.count(metrics.MAPS_WRITTEN)
    return url
