"""From statistics to a transport map, and from a map to the autoencoder that it belongs to."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from ot_core.autoencoder import DEFAULT_VAE, Autoencoder, is_factory, load_autoencoder
from ot_core.check import KeptBack
from ot_core.checking import check_map
from ot_core.decoder import DecoderGeometry, decoder_geometry
from ot_core.errors import MapFileError
from ot_core.fitted_map import UNKNOWN_ORIGIN, FittedMap, SourceOrigin
from ot_core.latent_space import LatentSpace
from ot_core.latent_transport import LatentTransport
from ot_core.map_file import read_map
from ot_core.parts import SIDES, PartStatistics, of_side
from ot_core.restorer import Restorer
from ot_core.rounding import rounding_covariance
from ot_core.statistics import GaussianStatistics
from ot_core.transport_map import TransportMap

_NOTHING = GaussianStatistics.single([0.0])


def fit_map(
    statistics: PartStatistics,
    autoencoder: Autoencoder,
    patch_size: int,
    method: str,
    geometry: DecoderGeometry | None = None,
    origin: SourceOrigin = UNKNOWN_ORIGIN,
    kept_back: KeptBack | None = None,
    residual: float | None = None,
) -> FittedMap:
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
    source, target = (functools.reduce(operator.add, of_side(statistics, side).values()) for side in SIDES)
    known: dict[str, Any] = {}
    if method != "paper":
        geometry = geometry or decoder_geometry(autoencoder, target, patch_size)
        known["metric"] = geometry.metric
        known["invariant"] = geometry.colour if method == "matched" else None
        known["rounding"] = rounding_covariance(autoencoder, source, patch_size)
    space = LatentSpace.of(autoencoder, patch_size)
    fitted = FittedMap.fit(statistics, space, **known, origin=origin, residual=residual or 0.0)
    if kept_back is None or not kept_back.pairs:
        return fitted
    others = {part: found for part, found in statistics.items() if part.number != kept_back.number}
    sides = [GaussianStatistics.total([*of_side(others, side).values()] or [_NOTHING]) for side in SIDES]
    if min(side.count for side in sides) < 2:
        return fitted
    of_others = TransportMap.fit(*sides, **known)
    transport = LatentTransport(of_others, patch_size, device=autoencoder.device)
    weight, check = check_map(kept_back.pairs, autoencoder, transport, residual)
    return dataclasses.replace(fitted, residual=weight, check=check)


def check_restorer(origin: SourceOrigin, name: str, restorer: Restorer) -> None:
    """Refuses images of one restorer where statistics are of another's; unknown ones go with any.

    Args:
        origin: of the map's or the statistics' source.
        name: what to call these.
        restorer: what restores the images.

    Raises:
        MapFileError: if they don't belong together.
    """
    if origin.restorer_sha256 and origin.restorer_sha256 != restorer.fingerprint:
        raise MapFileError(
            f"{name}: was fitted for the restorer {origin.restorer} ({origin.restorer_sha256[:12]}), not for "
            f"{restorer.name} ({restorer.fingerprint[:12]}); pass the same --restorer, fit again, or add "
            "--allow_other_restorer"
        )


def autoencoder_of(
    space: LatentSpace,
    map_url: str,
    vae: str | None = None,
    device: str | None = None,
    precision: str | None = "float32",
    compiled: bool = False,
) -> Autoencoder:
    """The autoencoder of a map's or statistics' space: the user's choice, or the one they name; checked to be the same.

    A map is data, so it may name a folder, a URL or a hub id, but never code to import: that takes the user's flag.

    Raises:
        MapFileError: if the autoencoder isn't the one that the map was fitted with.
        UserError: if it can't be loaded.
    """
    if vae is None and is_factory(space.vae):
        raise MapFileError(
            f"map {map_url}: was fitted with the autoencoder {space.vae}, which is code; "
            f"pass --vae {space.vae} if you trust it"
        )
    autoencoder = load_autoencoder(vae or space.vae or DEFAULT_VAE, device, precision, compiled)
    if space.vae_sha256 and space.vae_sha256 != autoencoder.fingerprint:
        raise MapFileError(
            f"map {map_url}: was fitted with the autoencoder {space.vae} ({space.vae_sha256[:12]}), "
            f"not with {autoencoder.name} ({autoencoder.fingerprint[:12]}); pass the same --vae, or fit again"
        )
    if space.latent_channels != autoencoder.latent_channels:
        raise MapFileError(
            f"map {map_url}: is for {space.latent_channels} latent channels, but the autoencoder "
            f"{autoencoder.name} has {autoencoder.latent_channels}; pass the --vae that it was fitted with"
        )
    if space.margin % autoencoder.downsampling_factor:
        raise MapFileError(
            f"map {map_url}: has a margin of {space.margin} pixels; expected a multiple of "
            f"{autoencoder.downsampling_factor}, the autoencoder's downsampling factor; fit again"
        )
    return autoencoder.with_margin(space.margin)


def read_maps(
    urls: Mapping[str, str],
    vae: str | None = None,
    device: str | None = None,
    precision: str | None = "float32",
    compiled: bool = False,
) -> Iterator[tuple[str, FittedMap, Autoencoder]]:
    """Maps by group, one by one, each with the autoencoder that they all were fitted with.

    Raises:
        MapFileError: as `autoencoder_of`, also if two of them aren't of one space.
        UserError: likewise.
    """
    first: LatentSpace | None = None
    for group, url in urls.items():
        fitted = read_map(url)
        autoencoder = autoencoder_of(fitted.space, url, vae, device, precision, compiled)
        first = first or fitted.space
        difference = fitted.space.difference(first)
        if difference:
            raise MapFileError(f"map {url}: has {difference} as the others; fit all with the same settings")
        vae = autoencoder.name
        yield group, fitted, autoencoder
