"""Which runs of an output are judged together: a night may have too few images to tell drift from chance.

The statistics of a run that can't be judged are kept, and those of the next runs are added until there are enough. As
long as there aren't, they are judged together with the last ones before that were enough and like the map's. So a run
of few images doesn't fail by chance, and what came before can't hide a drift for longer than a judgement takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ot_core.drift import Verdict
from ot_core.fitted_map import LatentSets
from ot_core.parts import PartStatistics, added

#: What the sides of kept statistics begin with in the file.
_PENDING, _EARLIER = "pending ", "earlier "


@dataclass(frozen=True)
class DriftHistory:
    """Statistics of an output's runs, of source and results in their random parts.

    Attributes:
        recent: this run's, and those pending.
        pending: of the runs before this one that couldn't be judged by themselves.
        earlier: of the last ones before those that could, and were like the map's.
    """

    recent: PartStatistics
    pending: PartStatistics
    earlier: PartStatistics

    @classmethod
    def going_on(cls, before: LatentSets | None, gathered: PartStatistics, run: str) -> DriftHistory:
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
            old = (_PENDING, _EARLIER)
            recent = {part: found for part, found in before.statistics.items() if not part.side.startswith(old)}
            pending = recent if before.verdict == Verdict.UNKNOWN else {}
            earlier = recent if before.verdict == Verdict.LIKE else earlier
        return cls(added(pending, gathered), pending, earlier)

    def with_earlier(self) -> PartStatistics:
        """Recent and earlier runs together."""
        return added(self.earlier, self.recent)

    def in_file(self, like: LatentSets, run: str, verdict: Verdict) -> LatentSets:
        """What is kept of it.

        Args:
            like: tells what the statistics were gathered with.
            run: the name of this run.
            verdict: on the recent ones alone.
        """
        kept = {**self.recent, **_renamed(self.pending, _PENDING), **_renamed(self.earlier, _EARLIER)}
        return replace(like, statistics=kept, run=run, verdict=verdict)


def _named(sets: LatentSets, prefix: str) -> PartStatistics:
    return {
        part._replace(side=part.side.removeprefix(prefix)): found
        for part, found in sets.statistics.items()
        if part.side.startswith(prefix)
    }


def _renamed(statistics: PartStatistics, prefix: str) -> PartStatistics:
    return {part._replace(side=prefix + part.side): found for part, found in statistics.items()}
