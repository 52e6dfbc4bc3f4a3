"""What a map does to pairs that it wasn't fitted on: whether it helps, at which alpha, and what to add back.

A pair is a restored image beside its original. `dot-fit` keeps a few back, fits a map on the others, and measures its
results (`ot_core.checking`); the map that it writes is fitted on all of them, and carries what was found, as told here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.generic]

#: Weights of the restored image that are tried.
ALPHAS: Final = (0.0, 0.25, 0.5, 0.75)
#: At most so many pairs are looked at, and so many pixels along each side in the middle of each.
MOST_PAIRS: Final = 8
#: Fewer pairs tell less of other images than a map tells that was fitted on fewer.
_ENOUGH_PAIRS = 4
CROP: Final = 512
#: The smallest image whose spectrum tells something.
SMALLEST: Final = 64
#: Shares and decibels below which two figures count as equal.
_CLEAR_SHARE, _CLEAR_DB = 0.05, 0.01
#: A result may lack no more than this of the spectrum than the restored images do, in dB.
_SPECTRUM_DB = 1.0
#: Power at the frequencies of a weave, against its neighbours, that isn't seen.
_UNSEEN_GRID = 1.5


class Pair(NamedTuple):
    """A restored image and its original, each (H, W, 3), uint8 or float32 in [0, 1], of one size."""

    restored: Pixels
    original: Pixels


class KeptBack(NamedTuple):
    """Pairs of one random part of the images (`ot_core.parts`), and the part's number."""

    number: int
    pairs: Sequence[Pair]


@dataclass(frozen=True)
class Measured:
    """How near images are to their originals.

    Attributes:
        psnr: in dB, the mean over images.
        distance: squared Wasserstein distance between 8 x 8 squares of pixels of the images and of the originals.
        spectrum: error of the radial log power spectrum in dB (`ot_core.naturalness`).
        grid: power at a period of four pixels against its neighbours; about 1 without a weave.
    """

    psnr: float
    distance: float
    spectrum: float
    grid: float


@dataclass(frozen=True)
class MapCheck:
    """What a map does to pairs that it wasn't fitted on.

    Attributes:
        pairs: how many.
        restored: the restored images themselves.
        results: of each alpha.
    """

    pairs: int
    restored: Measured
    results: tuple[tuple[float, Measured], ...]

    @property
    def alpha(self) -> float | None:
        """The alpha whose results are nearest to natural images at no less PSNR than the restored ones.

        None where there is no such alpha, or none clearly nearer than the restored images.
        """
        return self._nearest(lambda found: found.psnr >= self.restored.psnr - _CLEAR_DB)

    @property
    def bold_alpha(self) -> float | None:
        """The same at any PSNR."""
        return self._nearest(lambda found: True)

    @property
    def sentence(self) -> str:
        """In plain words, for people who decide whether to run the job."""
        if self.alpha is not None:
            found = dict(self.results)[self.alpha]
            return f"helps: use alpha {self.alpha:g} ({self._told(found)})"
        if self.bold_alpha is not None:
            found = dict(self.results)[self.bold_alpha]
            return f"trades exactness for a natural look: alpha {self.bold_alpha:g} ({self._told(found)})"
        return f"does not help this restorer: {self._obstacle()}"

    def _nearest(self, allowed: Callable[[Measured], bool]) -> float | None:
        fit = [(alpha, found) for alpha, found in self.results if allowed(found) and not self._spoilt(found)]
        clear = [(alpha, found) for alpha, found in fit if self._share(found) < 1 - _CLEAR_SHARE]
        return min(clear, key=lambda one: one[1].distance)[0] if clear else None

    def _share(self, found: Measured) -> float:
        return found.distance / self.restored.distance if self.restored.distance > 0 else 1.0

    def _spoilt(self, found: Measured) -> bool:
        return self._woven(found) or found.spectrum > self.restored.spectrum + _SPECTRUM_DB

    def _woven(self, found: Measured) -> bool:
        return found.grid > max(_UNSEEN_GRID, (1 + _CLEAR_SHARE) * self.restored.grid)

    def _obstacle(self) -> str:
        nearer = [found for _, found in self.results if self._share(found) < 1 - _CLEAR_SHARE]
        if not nearer:
            return "at no alpha are the results nearer to natural images"
        if all(self._woven(found) for found in nearer):
            return "the autoencoder is too weak: it leaves a weave"
        return "the autoencoder is too weak: it loses fine detail"

    def _told(self, found: Measured) -> str:
        change = found.psnr - self.restored.psnr
        exactness = "PSNR alike" if abs(change) < 10 * _CLEAR_DB / 2 else f"PSNR {change:+.1f} dB"
        return f"{1 - self._share(found):.0%} nearer to natural images, {exactness}, on {self.pairs} pairs"

    def to_json(self) -> str:
        """For the map file."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> MapCheck:
        """What `to_json` gave.

        Raises:
            ValueError: if it is something else.
        """
        found: dict[str, Any] = json.loads(text)
        try:
            results = tuple((float(alpha), Measured(**measured)) for alpha, measured in found["results"])
            return cls(int(found["pairs"]), Measured(**found["restored"]), results)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not what the check of a map looks like ({error!r})") from None


def part_to_keep_back(pairs: Mapping[int, Sized]) -> int | None:
    """The random part with the fewest pairs that are enough, or with the most where none has enough; None of no pair.

    Args:
        pairs: those of each part, by its number.
    """
    found = sorted((min(len(of_part), MOST_PAIRS), part) for part, of_part in pairs.items() if len(of_part))
    enough = [part for count, part in found if count >= _ENOUGH_PAIRS]
    return enough[0] if enough else found[-1][1] if found else None


def middle(pixels: Pixels, most: int = CROP, unit: int = 1) -> Pixels | None:
    """The middle of an image, at most so many pixels along each side, a multiple of a unit; None of a small image."""
    height, width = (min(side, most) // unit * unit for side in pixels.shape[:2])
    if min(height, width) < SMALLEST:
        return None
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
