"""Which runs of an output are judged together: a night may have too few images to tell drift from chance.

The statistics of a run that can't be judged are kept, and those of the next runs are added until there are enough. As
long as there aren't, they are judged together with the last ones before that were enough and like the map's. So a run
of few images doesn't fail by chance, and what came before can't hide a drift for longer than a judgement takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ot_core.drift import Verdict
from ot_core.map_file import LatentSets
from ot_core.statistics import GaussianStatistics

Groups = Mapping[str, GaussianStatistics]
_PENDING, _EARLIER = "pending ", "earlier "


@dataclass(frozen=True)
class DriftHistory:
    """Statistics of an output's runs, by name: source and results in their random parts, such as "source/0".

    Attributes:
        recent: this run's, and those pending.
        pending: of the runs before this one that couldn't be judged by themselves.
        earlier: of the last ones before those that could, and were like the map's.
    """

    recent: Groups
    pending: Groups
    earlier: Groups

    @classmethod
    def going_on(cls, before: LatentSets | None, gathered: Groups, run: str) -> DriftHistory:
        """The history with one more run.

        Args:
            before: the file as it was; one that this run has written already is as good as the one before that.
            gathered: this run's statistics.
            run: its name.
        """
        if before is None:
            return cls(gathered, {}, {})
        pending, earlier = _named(before, _PENDING), _named(before, _EARLIER)
        if before.run != run:
            recent = {name: found for name, found in before.groups.items() if not name.startswith((_PENDING, _EARLIER))}
            pending = recent if before.verdict == Verdict.UNKNOWN else {}
            earlier = recent if before.verdict == Verdict.LIKE else earlier
        return cls(_sum(pending, gathered), pending, earlier)

    def with_earlier(self) -> Groups:
        """Recent and earlier runs together."""
        return _sum(self.earlier, self.recent)

    def in_file(self, like: LatentSets, run: str, verdict: Verdict) -> LatentSets:
        """What is kept of it.

        Args:
            like: tells what the statistics were gathered with.
            run: the name of this run.
            verdict: on the recent ones alone.
        """
        pending = {_PENDING + name: found for name, found in self.pending.items()}
        earlier = {_EARLIER + name: found for name, found in self.earlier.items()}
        return replace(like, groups={**self.recent, **pending, **earlier}, run=run, verdict=verdict)


def _named(sets: LatentSets, prefix: str) -> Groups:
    return {name.removeprefix(prefix): found for name, found in sets.groups.items() if name.startswith(prefix)}


def _sum(some: Groups, more: Groups) -> Groups:
    both = {name: found + more[name] if name in more else found for name, found in some.items()}
    return {**more, **both}
