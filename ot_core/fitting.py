"""From statistics to a transport map, and from a map to the autoencoder that it belongs to."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from ot_core.autoencoder import DEFAULT_VAE, Autoencoder, is_factory, load_autoencoder
from ot_core.check import KeptBack
from ot_core.checking import check_map
from ot_core.decoder import DecoderGeometry, decoder_geometry
from ot_core.errors import MapFileError
from ot_core.map_file import LatentSets, read_map
from ot_core.noise import noise_floor
from ot_core.parts import SIDES, WHOLE, PartStatistics, of_side
from ot_core.restorer import Restorer
from ot_core.rounding import rounding_covariance
from ot_core.statistics import GaussianStatistics
from ot_core.transport import LatentTransport
from ot_core.transport_map import UNKNOWN_ORIGIN, SourceOrigin, TransportMap

_NOTHING = GaussianStatistics.single([0.0])


def method_of(transport_map: TransportMap) -> str:
    """Which of the methods a map was fitted with."""
    if transport_map.metric is None:
        return "paper"
    return "pixels" if transport_map.invariant is None else "matched"


def is_noisy(transport_map: TransportMap) -> bool:
    """Whether chance explains a third or more of the distance between a map's sides."""
    floor = transport_map.noise_floor
    return floor is not None and floor > transport_map.distance_squared() / 3


def fit_map(
    statistics: PartStatistics,
    autoencoder: Autoencoder,
    patch_size: int,
    method: str,
    geometry: DecoderGeometry | None = None,
    origin: SourceOrigin = UNKNOWN_ORIGIN,
    kept_back: KeptBack | None = None,
    residual: float | None = None,
) -> TransportMap:
    """Fits a map from statistics of both sides.

    Args:
        statistics: of both sides, whole or in random parts. Of these, the map also carries the noise floor of its
            distance, and the parts themselves.
        autoencoder: whose latents these are; the map remembers its name, fingerprint and margin.
        patch_size: p of the patches.
        method: "matched" takes differences in the mean colour of patches for content (`ot_core.decoder`), which suits
            sides that show different things; "pixels" doesn't, which suits pairs. Both measure the map's cost in
            decoded pixels, and amplify nothing that rounding the images to 8 bits could have made
            (`ot_core.rounding`). "paper" is the paper's map as it stands, whose cost is measured in latents.
        geometry: of the decoder at the target, where it is known already.
        origin: how the source's images were made.
        kept_back: pairs of one random part, on which a map of the other parts is checked (`ot_core.check`). The map
            itself is fitted on all parts.
        residual: the map's residual weight; default the best for the pairs, or 0 where there are none.
    """
    sides = {side: of_side(statistics, side) for side in SIDES}
    source, target = (functools.reduce(operator.add, of_parts.values()) for of_parts in sides.values())
    known: dict[str, Any] = {}
    if method != "paper":
        geometry = geometry or decoder_geometry(autoencoder, target, patch_size)
        known["metric"] = geometry.metric
        known["invariant"] = geometry.colour if method == "matched" else None
        known["rounding"] = rounding_covariance(autoencoder, source, patch_size)
    in_parts = [{} if any(part.number == WHOLE for part in of_parts) else of_parts for of_parts in sides.values()]
    source_parts, target_parts = (list(of_parts.values()) for of_parts in in_parts)
    floor = noise_floor(source_parts, target_parts, known.get("invariant"))
    fitted = TransportMap.fit(
        source,
        target,
        patch_size=patch_size,
        vae=autoencoder.name,
        vae_sha256=autoencoder.fingerprint,
        margin=autoencoder.margin,
        **known,
        noise_floor=floor if math.isfinite(floor) else None,
        parts={**in_parts[0], **in_parts[1]},
        origin=origin,
        residual=residual or 0.0,
    )
    if kept_back is None or not kept_back.pairs:
        return fitted
    others = [[found for part, found in sides[side].items() if part.number != kept_back.number] for side in SIDES]
    totals = [GaussianStatistics.total(side or [_NOTHING]) for side in others]
    if min(side.count for side in totals) < 2:
        return fitted
    of_others = TransportMap.fit(*totals, patch_size=patch_size, **known)
    transport = LatentTransport(of_others, device=autoencoder.device)
    weight, check = check_map(kept_back.pairs, autoencoder, transport, residual)
    return dataclasses.replace(fitted, residual=weight, check=check)


def check_restorer(transport_map: TransportMap | LatentSets, name: str, restorer: Restorer) -> None:
    """Refuses images of one restorer where statistics are of another's; unknown ones go with any.

    Args:
        transport_map: the map, or statistics.
        name: what to call it.
        restorer: what restores the images.

    Raises:
        MapFileError: if they don't belong together.
    """
    origin = transport_map.origin
    if origin.restorer_sha256 and origin.restorer_sha256 != restorer.fingerprint:
        raise MapFileError(
            f"{name}: was fitted for the restorer {origin.restorer} ({origin.restorer_sha256[:12]}), not for "
            f"{restorer.name} ({restorer.fingerprint[:12]}); pass the same --restorer, fit again, or add "
            "--allow_other_restorer"
        )


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
    if transport_map.margin % autoencoder.downsampling_factor:
        raise MapFileError(
            f"map {map_url}: has a margin of {transport_map.margin} pixels; expected a multiple of "
            f"{autoencoder.downsampling_factor}, the autoencoder's downsampling factor; fit again"
        )
    return autoencoder.with_margin(transport_map.margin)


def read_maps(
    urls: Mapping[str, str],
    vae: str | None = None,
    device: str | None = None,
    precision: str | None = "float32",
    compiled: bool = False,
) -> Iterator[tuple[str, TransportMap, Autoencoder]]:
    """Maps by group, one by one, each with the autoencoder that they all were fitted with.

    Raises:
        MapFileError: as `autoencoder_of_map`, also if two of them weren't fitted with the same one or patch size.
        UserError: likewise.
    """
    patch_size, margin = None, None
    for group, url in urls.items():
        transport_map = read_map(url)
        patch_size = patch_size or transport_map.patch_size
        if transport_map.patch_size != patch_size:
            raise MapFileError(f"map {url}: has patch size {transport_map.patch_size}, and the others {patch_size}")
        autoencoder = autoencoder_of_map(transport_map, url, vae, device, precision, compiled)
        margin = transport_map.margin if margin is None else margin
        if transport_map.margin != margin:
            raise MapFileError(f"map {url}: has a margin of {transport_map.margin} pixels, and the others {margin}")
        vae = autoencoder.name
        yield group, transport_map, autoencoder
