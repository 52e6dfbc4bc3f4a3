"""Our transforms work in the global window, that of every batch pipeline, and refuse others when a pipeline is built.

They work on several elements at once: they read ahead, batch images of any window for the model, write behind it, and
fill files that are one for the whole input. An element's window would get lost on the way, and its event time does.
"""

from typing import Any

import apache_beam as beam
from apache_beam.transforms.trigger import DefaultTrigger
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from ot_core import UserError


def check_windows(transform: beam.PTransform, *inputs: Any) -> None:
    """Refuses what a transform would mix up; call it where the transform is expanded.

    Args:
        transform: whose inputs they are.
        *inputs: PCollections.

    Raises:
        UserError: if one of them is in other windows than the global one, or its groups are given more than once.
    """
    for pcollection in inputs:
        windowing = pcollection.windowing
        if windowing.windowfn != GlobalWindows() or windowing.triggerfn != DefaultTrigger():
            windows, trigger = type(windowing.windowfn).__name__, type(windowing.triggerfn).__name__
            raise UserError(
                f"{type(transform).__qualname__}: its input is in {windows} with {trigger}, but it works in "
                "GlobalWindows with DefaultTrigger; apply beam.WindowInto(beam.window.GlobalWindows()) before it"
            )


def in_global_window(output: Any) -> Any:
    """What finish_bundle must give instead of an element or a TaggedOutput."""
    if isinstance(output, beam.pvalue.TaggedOutput):
        return beam.pvalue.TaggedOutput(output.tag, in_global_window(output.value))
    window = GlobalWindow()
    return WindowedValue(output, window.max_timestamp(), [window])
