"""A transport map together with what it was fitted from, and statistics that a map may be fitted from."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ot_core.latent_space import LatentSpace
from ot_core.noise import noise_floor
from ot_core.parts import SIDES, SOURCE, TARGET, WHOLE, Part, PartStatistics, of_side
from ot_core.statistics import Array, GaussianStatistics
from ot_core.transport_map import TransportMap

if TYPE_CHECKING:
    from ot_core.check import MapCheck


@dataclass(frozen=True)
class SourceOrigin:
    """How the images of a source were made, as far as the fit did it itself.

    Attributes:
        restorer: the name that it was loaded from, or "" for images that were restored elsewhere.
        restorer_sha256: its fingerprint, or "".
        degradation: what natural images were degraded by (`ot_core.degradation`), or "".
    """

    restorer: str = ""
    restorer_sha256: str = ""
    degradation: str = ""


UNKNOWN_ORIGIN: Final = SourceOrigin()


@dataclass(frozen=True, eq=False)
class LatentSets:
    """Statistics of sets of latent patches, and what they were gathered with.

    Attributes:
        statistics: of each part.
        space: of the patches.
        origin: how the images of the side "source" were made.
        run: which run of transport they were gathered in, or "".
        verdict: on their drift, as `ot_core.drift.Verdict`, or "".
    """

    statistics: PartStatistics
    space: LatentSpace
    origin: SourceOrigin = UNKNOWN_ORIGIN
    run: str = ""
    verdict: str = ""

    @property
    def sides(self) -> list[str]:
        """Those that there are statistics of."""
        return sorted({part.side for part in self.statistics})

    def of_side(self, side: str) -> dict[Part, GaussianStatistics]:
        """See `ot_core.parts.of_side`."""
        return of_side(self.statistics, side)


@dataclass(frozen=True, eq=False)
class FittedMap:
    """What dot-fit writes: a map, what it was fitted from, and what is known of it.

    Attributes:
        map: the map itself.
        space: of the patches that it maps.
        statistics: of the source, restored images' patches, and of the target, natural ones'; each as a whole, and the
            same in random parts where these are known. Their halves tell how much the choice of images matters.
        noise_floor: squared Wasserstein distance between source and target that chance alone would give
            (`ot_core.noise_floor`), or None if unknown.
        origin: how the source's images were made.
        residual: the share of what the autoencoder loses of an image that is added back to its result
            (`ot_core.pixel_transport`).
        check: what the map does to pairs that it wasn't fitted on, where some were kept back.
    """

    map: TransportMap
    space: LatentSpace
    statistics: PartStatistics
    noise_floor: float | None = None
    origin: SourceOrigin = UNKNOWN_ORIGIN
    residual: float = 0.0
    check: MapCheck | None = None

    @classmethod
    def fit(
        cls,
        statistics: PartStatistics,
        space: LatentSpace,
        *,
        metric: Array | None = None,
        invariant: Array | None = None,
        rounding: Array | None = None,
        origin: SourceOrigin = UNKNOWN_ORIGIN,
        residual: float = 0.0,
    ) -> FittedMap:
        """Fits a map from statistics of both sides.

        Args:
            statistics: of both sides, whole or in random parts. Of sides in random parts alone, the map also carries
                the parts, and the noise floor of its distance.
            space: of the patches.
            metric: as in `TransportMap.fit`.
            invariant: the same.
            rounding: the same.
            origin: kept with the map.
            residual: kept with the map.

        Raises:
            ValueError: if the dimensions of the statistics differ, or aren't the space's.
        """
        sides = {side: of_side(statistics, side) for side in SIDES}
        source, target = (functools.reduce(operator.add, of_parts.values()) for of_parts in sides.values())
        if source.dimension != space.dimension:
            raise ValueError(f"source has dimension {source.dimension}, expected {space.dimension} of {space}")
        fitted = TransportMap.fit(source, target, metric=metric, invariant=invariant, rounding=rounding)
        parts = [of_parts if all(part.number != WHOLE for part in of_parts) else {} for of_parts in sides.values()]
        floor = noise_floor(list(parts[0].values()), list(parts[1].values()), invariant)
        return cls(
            fitted,
            space,
            {Part(SOURCE): source, Part(TARGET): target, **parts[0], **parts[1]},
            floor if math.isfinite(floor) else None,
            origin,
            residual,
        )

    @property
    def source(self) -> GaussianStatistics:
        """Of the whole source."""
        return self.side(SOURCE)

    @property
    def target(self) -> GaussianStatistics:
        """Of the whole target."""
        return self.side(TARGET)

    def side(self, side: str) -> GaussianStatistics:
        """Of all of a side."""
        return self.statistics[Part(side)]

    def parts_of(self, side: str) -> dict[Part, GaussianStatistics]:
        """The random parts of a side; none where they aren't known."""
        return {part: found for part, found in of_side(self.statistics, side).items() if part != Part(side)}

    def sets(self) -> LatentSets:
        """What it was fitted from: each side in its parts, or whole where they aren't known."""
        parts = [self.parts_of(side) or {Part(side): self.side(side)} for side in SIDES]
        return LatentSets({**parts[0], **parts[1]}, self.space, self.origin)

    def distance_squared(self) -> float:
        """Squared 2-Wasserstein distance between source and target, the latter matched where there are invariants."""
        return self.map.distance_squared(self.source, self.target)

    @property
    def is_noisy(self) -> bool:
        """Whether chance explains a third or more of the distance between its sides."""
        return self.noise_floor is not None and self.noise_floor > self.distance_squared() / 3
