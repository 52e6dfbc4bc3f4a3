"""Images in groups, each of which has a map of its own: the part that they count in, and whether there is a map."""

from collections.abc import Collection, Iterator
from typing import Any

import apache_beam as beam

from ot_core import Cause, ImageError
from ot_core.groups import check_group
from ot_core.parts import number_of
from transforms.elements import Failure, ImageRef


class _ChooseDoFn(beam.DoFn):
    """Gives an image, perhaps changed, or the failure that says why not, as the output "failures"."""

    #: Of the failures.
    stage = ""

    def process(self, element: ImageRef) -> Iterator[Any]:
        """One for one."""
        try:
            chosen = self.chosen(element)
        except ImageError as error:
            yield beam.pvalue.TaggedOutput("failures", Failure.of(element, self.stage, error))
        else:
            yield chosen

    def chosen(self, ref: ImageRef) -> ImageRef:
        """The image; raises ImageError."""
        raise NotImplementedError


class ChoosePartDoFn(_ChooseDoFn):
    """Chooses the part that an image counts in, for `FitTransportMap`.

    Args:
        grouped: the sides whose images count for the map of their group alone; those of the others count for all.
    """

    stage = "list"

    def __init__(self, grouped: Collection[str]) -> None:
        self._grouped = grouped

    def chosen(self, ref: ImageRef) -> ImageRef:
        """See the class."""
        grouped = ref.side in self._grouped
        if grouped:
            check_group(ref.group)
        return ref._replace(part_number=number_of(ref.key), group=ref.group if grouped else "")


class HasMapDoFn(_ChooseDoFn):
    """Lets an image through if its group has a map.

    Args:
        groups: that have one.
    """

    stage = "transport"

    def __init__(self, groups: Collection[str]) -> None:
        self._groups = frozenset(groups)

    def chosen(self, ref: ImageRef) -> ImageRef:
        """See the class."""
        if ref.group in self._groups:
            return ref
        found = f"its group {ref.group[:200]!r} has no map" if ref.group else "it has no group, so no map"
        raise ImageError(Cause.NO_MAP, f"{found}; fit one with dot-fit --group_by, or give a --default_map")
