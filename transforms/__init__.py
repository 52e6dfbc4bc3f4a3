"""Beam transforms for deep optimal transport, to be put into anybody's pipeline.

These modules only wire: the mathematics, the model and all access to storage live in `ot_core`. Composite
PTransforms are the public surface, DoFns are not. Every transform that can fail gives `(result, failures)`.
"""

from typing import TYPE_CHECKING

from transforms import quiet_beam as _quiet_beam  # noqa: F401 - before anything else imports Beam

# isort: split

from ot_core.lazy import lazy_attributes
from transforms.elements import Failure, ImageQuality, ImageRecord, ImageRef, LoadedImage, TransportedImage
from transforms.inputs import ListImages
from transforms.records import WriteFailures, WriteManifest, WriteQuality

if TYPE_CHECKING:
    from transforms.batching import BatchByPixels
    from transforms.drift import WriteDrift
    from transforms.images import TransportImages
    from transforms.maps import FitTransportMap, WriteTransportMap
    from transforms.model_handlers import FeatureStatisticsModelHandler, LatentStatisticsModelHandler
    from transforms.packing import PackShards, RemoveUnneeded
    from transforms.quality import CompareImages, FeatureDistances, TotalQuality
    from transforms.reading import ReadImages
    from transforms.restoring import DegradeImages, RestoreImages, RestoreModelHandler
    from transforms.resume import SkipDone
    from transforms.statistics import FeatureStatistics, GaussianStatisticsCombineFn, LatentStatistics, ReadStatistics
    from transforms.transport_handler import TransportModelHandler
    from transforms.transporting import TransportLoaded
    from transforms.writing import WriteImages
else:
    # What needs torch.
    __getattr__ = lazy_attributes(
        __name__,
        {
            "BatchByPixels": "batching",
            "CompareImages": "quality",
            "DegradeImages": "restoring",
            "FeatureStatistics": "statistics",
            "FeatureStatisticsModelHandler": "model_handlers",
            "FitTransportMap": "maps",
            "GaussianStatisticsCombineFn": "statistics",
            "FeatureDistances": "quality",
            "LatentStatistics": "statistics",
            "LatentStatisticsModelHandler": "model_handlers",
            "PackShards": "packing",
            "ReadImages": "reading",
            "ReadStatistics": "statistics",
            "RemoveUnneeded": "packing",
            "RestoreImages": "restoring",
            "RestoreModelHandler": "restoring",
            "SkipDone": "resume",
            "TotalQuality": "quality",
            "TransportImages": "images",
            "TransportLoaded": "transporting",
            "TransportModelHandler": "transport_handler",
            "WriteDrift": "drift",
            "WriteImages": "writing",
            "WriteTransportMap": "maps",
        },
    )


__all__ = [
    "BatchByPixels",
    "CompareImages",
    "DegradeImages",
    "Failure",
    "FeatureDistances",
    "FeatureStatistics",
    "FeatureStatisticsModelHandler",
    "FitTransportMap",
    "GaussianStatisticsCombineFn",
    "ImageQuality",
    "ImageRecord",
    "ImageRef",
    "LatentStatistics",
    "LatentStatisticsModelHandler",
    "ListImages",
    "LoadedImage",
    "PackShards",
    "ReadImages",
    "ReadStatistics",
    "RemoveUnneeded",
    "RestoreImages",
    "RestoreModelHandler",
    "SkipDone",
    "TotalQuality",
    "TransportImages",
    "TransportLoaded",
    "TransportModelHandler",
    "TransportedImage",
    "WriteDrift",
    "WriteFailures",
    "WriteImages",
    "WriteManifest",
    "WriteQuality",
    "WriteTransportMap",
]
