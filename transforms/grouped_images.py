"""Images in groups, each of which has a map of its own: the part that they count in, and whether there is a map."""

import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import apache_beam as beam

from ot_core import Cause, ImageError
from ot_core.groups import check_group
from ot_core.parts import number_of
from transforms.elements import Failure, ImageRef


def choose_part(grouped: Collection[str]) -> beam.PTransform:
    """Chooses the part that an image counts in, for `FitTransportMap`: ImageRef -> outputs "images" and "failures".

    Args:
        grouped: the sides whose images count for the map of their group alone; those of the others count for all.
    """
    return _checked(functools.partial(_in_part, grouped=grouped), "list")


def having_map(groups: Collection[str]) -> beam.PTransform:
    """Lets an image through if its group has a map: ImageRef -> outputs "images" and "failures".

    Args:
        groups: that have one.
    """
    return _checked(functools.partial(_with_map, groups=frozenset(groups)), "transport")


def _in_part(ref: ImageRef, grouped: Collection[str]) -> ImageRef:
    of_group = ref.side in grouped
    if of_group:
        check_group(ref.group)
    return ref._replace(part_number=number_of(ref.key), group=ref.group if of_group else "")


def _with_map(ref: ImageRef, groups: Collection[str]) -> ImageRef:
    if ref.group in groups:
        return ref
    found = f"its group {ref.group[:200]!r} has no map" if ref.group else "it has no group, so no map"
    raise ImageError(Cause.NO_MAP, f"{found}; fit one with dot-fit --group_by, or give a --default_map")


def _checked(function: Callable[[ImageRef], ImageRef], stage: str) -> Any:
    one_for_one = beam.FlatMap(_or_failure, function, stage).with_output_types(ImageRef)
    return one_for_one.with_outputs("failures", main="images")


def _or_failure(ref: ImageRef, function: Callable[[ImageRef], ImageRef], stage: str) -> Iterator[Any]:
    try:
        yield function(ref)
    except ImageError as error:
        yield beam.pvalue.TaggedOutput("failures", Failure.of(ref, stage, error))
