"""Which part of a job's images statistics are of. Only the map file knows parts by another form than `Part`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import NamedTuple

from ot_core.statistics import GaussianStatistics

#: What a map carries from, and to.
SIDES = SOURCE, TARGET = "source", "target"
#: A side's images are in so many random parts, whose halves tell how much the choice of images matters.
PARTS = 4
#: In the place of a random part's number: all of the side that isn't in random parts.
WHOLE = -1


class Part(NamedTuple):
    """One of the sets that images are in.

    Attributes:
        side: what the images are to a job: "source", "target", or a candidate's name.
        number: of a random part, or `WHOLE`.
        group: whose map they count for alone; "" is for all maps.
    """

    side: str = ""
    number: int = WHOLE
    group: str = ""


#: Statistics by the part of the images that they are of.
PartStatistics = Mapping[Part, GaussianStatistics]


def number_of(key: str, parts: int = PARTS) -> int:
    """The number of the random part that an image falls into: the same one in every job."""
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % parts


def of_side(statistics: PartStatistics, side: str) -> dict[Part, GaussianStatistics]:
    """The statistics of a side, whole or in random parts, in their order; empty where there is no such side."""
    return {part: statistics[part] for part in sorted(statistics) if part.side == side}


def added(some: PartStatistics, more: PartStatistics) -> dict[Part, GaussianStatistics]:
    """The sum of both, part by part."""
    both = {part: found + more[part] if part in more else found for part, found in some.items()}
    return {**more, **both}
