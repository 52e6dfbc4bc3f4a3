"""Statistics of latents that pass through the model anyway: of patches side by side, which costs next to nothing."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ot_core import GaussianStatistics
from ot_core.noise import part_of
from ot_core.patches import tiled_statistics
from transforms.drift import RESULTS, SOURCE
from transforms.elements import GatheredStatistics

#: Latent positions along each side of what is looked at of a latent: larger ones cost no more.
WINDOW = 96


class Windows(NamedTuple):
    """The same window of a latent, as it was encoded and as it is decoded."""

    before: Tensor
    after: Tensor


def windows_of(latents: Tensor, transported: Tensor, keys: Sequence[str], patch_size: int) -> list[Windows]:
    """Cuts a window of whole patches out of each latent, at a place that depends on the image's key alone."""
    sizes = [_whole_patches(size, patch_size) for size in latents.shape[2:]]
    rows, columns = (whole - size + 1 for whole, size in zip(latents.shape[2:], sizes, strict=True))
    found = []
    for before, after, key in zip(latents, transported, keys, strict=True):
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        down, across = divmod(int.from_bytes(digest[:8], "big") % (rows * columns), columns)
        place = (slice(None), slice(down, down + sizes[0]), slice(across, across + sizes[1]))
        found.append(Windows(before[place].clone(), after[place].clone()))  # a view would keep the whole latent
    return found


def _whole_patches(size: int, patch_size: int) -> int:
    """Room is left where there is any, so that patches may begin at any position of the latent."""
    return min(size, max(patch_size, min(WINDOW, size - patch_size + 1) // patch_size * patch_size))


def gather(windows: Sequence[tuple[str, str, Windows]], patch_size: int) -> GatheredStatistics:
    """Statistics of the patches in a batch's windows, given with keys and groups: for each kind, part and group."""
    alike: dict[tuple[str, tuple[int, ...]], list[Tensor]] = {}
    for key, of_map, pair in windows:
        for kind, window in zip((SOURCE, RESULTS), pair, strict=True):
            alike.setdefault((part_of(kind, key, of_map), tuple(window.shape)), []).append(window)
    totals: dict[str, list[GaussianStatistics]] = {}
    for (group, _), several in alike.items():
        statistics = tiled_statistics(several, patch_size)
        if statistics is not None:
            totals.setdefault(group, []).append(statistics)
    return GatheredStatistics(tuple((group, GaussianStatistics.total(parts)) for group, parts in totals.items()))
