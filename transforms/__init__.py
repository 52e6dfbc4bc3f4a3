"""Beam transforms for deep optimal transport, to be put into anybody's pipeline.

These modules only wire: the mathematics, the model and all access to storage live in `ot_core`. Composite
PTransforms are the public surface, DoFns are not. Every transform that can fail gives `(result, failures)`.
"""

from transforms.batching import BatchByPixels
from transforms.elements import Failure, ImageQuality, ImageRecord, ImageRef
from transforms.images import TransportImages
from transforms.inputs import ListImages, ReadImages
from transforms.maps import FitTransportMap, WriteTransportMap
from transforms.model_handlers import FeatureStatisticsModelHandler, LatentStatisticsModelHandler, TransportModelHandler
from transforms.packing import PackShards, RemoveStaging
from transforms.quality import CompareImages, GelbrichDistances, TotalQuality
from transforms.records import WriteFailures, WriteManifest, WriteQuality
from transforms.resume import SkipDone
from transforms.statistics import FeatureStatistics, GaussianStatisticsCombineFn, LatentStatistics

__all__ = [
    "BatchByPixels",
    "CompareImages",
    "Failure",
    "FeatureStatistics",
    "FeatureStatisticsModelHandler",
    "FitTransportMap",
    "GaussianStatisticsCombineFn",
    "GelbrichDistances",
    "ImageQuality",
    "ImageRecord",
    "ImageRef",
    "LatentStatistics",
    "LatentStatisticsModelHandler",
    "ListImages",
    "PackShards",
    "ReadImages",
    "RemoveStaging",
    "SkipDone",
    "TotalQuality",
    "TransportImages",
    "TransportModelHandler",
    "WriteFailures",
    "WriteManifest",
    "WriteQuality",
    "WriteTransportMap",
]
