"""Beam, imported without what it does to the logging of whoever imports us.

It warns of clients that nothing here uses, and so sets up a handler where there was none.
"""

import importlib
import logging


def _import() -> None:
    root, silence = logging.getLogger(), logging.Filter("nothing")
    silence.filter = lambda record: False  # type: ignore[method-assign]
    before = list(root.handlers)
    root.addFilter(silence)
    try:
        importlib.import_module("apache_beam")
    finally:
        root.removeFilter(silence)
        root.handlers[:] = before


_import()

import apache_beam as beam  # noqa: E402
from apache_beam.metrics import MetricsFilter  # noqa: E402
from apache_beam.options.pipeline_options import (  # noqa: E402
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)

__all__ = [
    "DirectOptions",
    "GoogleCloudOptions",
    "MetricsFilter",
    "PipelineOptions",
    "PortableOptions",
    "StandardOptions",
    "beam",
]
