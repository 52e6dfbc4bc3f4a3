"""Beam transforms for deep optimal transport, to be put into anybody's pipeline.

These modules only wire: the mathematics, the model and all access to storage live in `ot_core`. Composite
PTransforms are the public surface, DoFns are not. Every transform that can fail gives `(result, failures)`.
"""

from typing import TYPE_CHECKING

from transforms import quiet_beam as _quiet_beam  # noqa: F401 - before anything else imports Beam

# isort: split

from ot_core.lazy import lazy_attributes
from transforms.elements import Failure, ImageQuality, ImageRecord, ImageRef, LoadedImage, TransportedImage
from transforms.list_images import ListImages
from transforms.records import WriteFailures, WriteManifest, WriteQuality

if TYPE_CHECKING:
    from transforms.batching import BatchByPixels
    from transforms.compare_images import CompareImages, FeatureDistances, TotalQuality
    from transforms.fit_maps import FitTransportMap, WriteTransportMap
    from transforms.latent_statistics import (
        FeatureStatistics,
        GaussianStatisticsCombineFn,
        LatentStatistics,
        ReadStatistics,
    )
    from transforms.model_handlers import FeatureStatisticsModelHandler, LatentStatisticsModelHandler
    from transforms.packing import PackShards, RemoveUnneeded
    from transforms.read_images import ReadImages
    from transforms.restore_images import DegradeImages, RestoreImages, RestoreModelHandler
    from transforms.resume import SkipDone
    from transforms.transport_handler import TransportModelHandler, TransportOptions
    from transforms.transport_images import TransportImages
    from transforms.transport_loaded import TransportLoaded
    from transforms.write_drift import WriteDrift
    from transforms.write_images import WriteImages
else:
    # What needs torch.
    __getattr__ = lazy_attributes(
        __name__,
        {
            "BatchByPixels": "batching",
            "CompareImages": "compare_images",
            "DegradeImages": "restore_images",
            "FeatureStatistics": "latent_statistics",
            "FeatureStatisticsModelHandler": "model_handlers",
            "FitTransportMap": "fit_maps",
            "GaussianStatisticsCombineFn": "latent_statistics",
            "FeatureDistances": "compare_images",
            "LatentStatistics": "latent_statistics",
            "LatentStatisticsModelHandler": "model_handlers",
            "PackShards": "packing",
            "ReadImages": "read_images",
            "ReadStatistics": "latent_statistics",
            "RemoveUnneeded": "packing",
            "RestoreImages": "restore_images",
            "RestoreModelHandler": "restore_images",
            "SkipDone": "resume",
            "TotalQuality": "compare_images",
            "TransportImages": "transport_images",
            "TransportLoaded": "transport_loaded",
            "TransportModelHandler": "transport_handler",
            "TransportOptions": "transport_handler",
            "WriteDrift": "write_drift",
            "WriteImages": "write_images",
            "WriteTransportMap": "fit_maps",
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
    "TransportOptions",
    "TransportedImage",
    "WriteDrift",
    "WriteFailures",
    "WriteImages",
    "WriteManifest",
    "WriteQuality",
    "WriteTransportMap",
]
