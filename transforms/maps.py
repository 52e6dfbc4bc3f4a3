"""Fitting a transport map from statistics, and writing it: the wiring of `ot_core.transport_map` and `map_file`."""

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations

from ot_core import (
    Autoencoder,
    Cause,
    GaussianStatistics,
    MapFileError,
    TransportMap,
    UserError,
    decoder_geometry,
    load_autoencoder,
    noise_floor,
    write_map,
)
from ot_core.autoencoder import DEFAULT_VAE, is_factory, vae_name
from ot_core.map_file import LatentSets
from transforms import metrics
from transforms.elements import Failure, failure_of_group

METHODS = ("matched", "pixels", "paper")


def method_of(transport_map: TransportMap) -> str:
    """Which of the methods a map was fitted with."""
    if transport_map.metric is None:
        return "paper"
    return "pixels" if transport_map.invariant is None else "matched"


class FitOutcome(NamedTuple):
    """Result of `FitTransportMap`: one map, or none and a failure that says why."""

    maps: beam.PCollection[TransportMap]
    failures: beam.PCollection[Failure]


@beam.typehints.with_input_types(tuple[str, GaussianStatistics])
class FitTransportMap(beam.PTransform):
    """(group, GaussianStatistics) for the groups "source" and "target" -> one TransportMap.

    Either side may come in random parts, as groups "source/0", "source/1" and so on: then the map also carries the
    noise floor of its distance, and the parts themselves. A group of the side's own name is all of it that isn't in
    such parts; of a side with one, the floor isn't known.

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
            in_parts = {side: [] if side in statistics else found for side, found in parts.items()}
            floor = noise_floor(in_parts["source"], in_parts["target"], known.get("invariant"))
            yield TransportMap.fit(
                source,
                target,
                patch_size=self._patch_size,
                vae=vae_name(self._vae),
                vae_sha256=autoencoder.fingerprint,
                **known,
                noise_floor=floor if math.isfinite(floor) else None,
                parts={group: s for group, s in statistics.items() if in_parts.get(group.partition("/")[0])},
            )


def _parts_of(side: str, statistics: dict[str, GaussianStatistics]) -> list[GaussianStatistics]:
    return [statistics[group] for group in sorted(statistics) if group.partition("/")[0] == side]


def autoencoder_of_map(
    transport_map: TransportMap | LatentSets,
    map_url: str,
    vae: str | None = None,
    device: str | None = None,
    precision: str | None = "float32",
    compiled: bool = False,
) -> Autoencoder:
    """The autoencoder to use with a map or statistics: the user's choice, or the one they name; checked to be the same.

    A map is data, so it may name a folder, a URL or a hub id, but never code to import: that takes the user's flag.

    Raises:
        MapFileError: if the autoencoder isn't the one that the map was fitted with.
        UserError: if it can't be loaded.
    """
    if vae is None and is_factory(transport_map.vae):
        raise MapFileError(
            f"map {map_url}: was fitted with the autoencoder {transport_map.vae}, which is code; "
            f"pass --vae {transport_map.vae} if you trust it"
        )
    autoencoder = load_autoencoder(vae or transport_map.vae or DEFAULT_VAE, device, precision, compiled)
    if transport_map.vae_sha256 and transport_map.vae_sha256 != autoencoder.fingerprint:
        raise MapFileError(
            f"map {map_url}: was fitted with the autoencoder {transport_map.vae} ({transport_map.vae_sha256[:12]}), "
            f"not with {autoencoder.name} ({autoencoder.fingerprint[:12]}); pass the same --vae, or fit again"
        )
    if transport_map.latent_channels != autoencoder.latent_channels:
        raise MapFileError(
            f"map {map_url}: is for {transport_map.latent_channels} latent channels, but the autoencoder "
            f"{autoencoder.name} has {autoencoder.latent_channels}; pass the --vae that it was fitted with"
        )
    return autoencoder


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
