"""Beam transforms for deep optimal transport, to be put into anybody's pipeline.

These modules only wire: the mathematics, the model and all access to storage live in `ot_core`. Composite
PTransforms are the public surface, DoFns are not. Every transform that can fail gives `(result, failures)`.
"""

from transforms.batching import BatchByPixels
from transforms.elements import Failure, ImageRecord, ImageRef
from transforms.images import TransportImages
from transforms.inputs import ListImages, ReadImages
from transforms.maps import FitTransportMap, WriteTransportMap
from transforms.model_handlers import LatentStatisticsModelHandler, TransportModelHandler
from transforms.records import WriteFailures, WriteManifest
from transforms.statistics import GaussianStatisticsCombineFn, LatentStatistics

__all__ = [
    "BatchByPixels",
    "Failure",
    "FitTransportMap",
    "GaussianStatisticsCombineFn",
    "ImageRecord",
    "ImageRef",
    "LatentStatistics",
    "LatentStatisticsModelHandler",
    "ListImages",
    "ReadImages",
    "TransportImages",
    "TransportModelHandler",
    "WriteFailures",
    "WriteManifest",
    "WriteTransportMap",
]
