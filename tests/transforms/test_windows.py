"""Other windows than the global one are refused when a pipeline is built, by every transform that takes elements."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.transforms import trigger, window
from PIL import Image

import transforms
from ot_core import GaussianStatistics, Part, UserError, load_autoencoder, write_map
from ot_core.features import PixelFeatures
from ot_core.layout import OutputLayout
from tests.fitted_maps import fit
from transforms import ImageQuality, ImageRecord, ImageRef, LoadedImage

REF, LOADED = ImageRef("k", "u"), LoadedImage(ImageRef("k", "u"), None, 0.0)
RECORD = ImageRecord("k", "u", "o", 0.0, 1, 1, 1, "", 0.0)
QUALITY = ImageQuality("k", "c", "r", "u", 0.0, 0.0, None, None, None, 1, 1)
FAILURE = transforms.Failure("k", "u", "read", "damaged", "m")
STATISTICS = (Part("source"), GaussianStatistics.single(np.zeros(2)))
LAYOUT = OutputLayout.of("/nowhere", (0.0,), kind="webdataset")

#: An element of the input of each transform, and how to make it.
TAKING: dict[str, tuple[Any, Callable[[], beam.PTransform]]] = {
    "BatchByPixels": (LOADED, lambda: transforms.BatchByPixels()),
    "CompareImages": (REF, lambda: transforms.CompareImages()),
    "DegradeImages": (LOADED, lambda: transforms.DegradeImages("noise:5")),
    "FeatureStatistics": (LOADED, lambda: transforms.FeatureStatistics({"pixel": PixelFeatures()})),
    "FitTransportMap": (STATISTICS, lambda: transforms.FitTransportMap()),
    "FeatureDistances": ((("latent", Part("reference")), STATISTICS[1]), lambda: transforms.FeatureDistances({})),
    "LatentStatistics.Globally": (REF, lambda: transforms.LatentStatistics.Globally()),
    "LatentStatistics.PerKey": (REF, lambda: transforms.LatentStatistics.PerKey()),
    "PackShards": (RECORD, lambda: transforms.PackShards(LAYOUT)),
    "ReadImages": (REF, lambda: transforms.ReadImages()),
    "RemoveUnneeded": ("urls", lambda: transforms.RemoveUnneeded(LAYOUT)),
    "RestoreImages": (LOADED, lambda: transforms.RestoreImages("restorer")),
    "SkipDone": (REF, lambda: transforms.SkipDone(LAYOUT)),
    "TotalQuality": (QUALITY, lambda: transforms.TotalQuality()),
    "TransportImages": (REF, lambda: transforms.TransportImages("map", "/nowhere")),
    "TransportLoaded": (LOADED, lambda: transforms.TransportLoaded("map")),
    "WriteDrift": (STATISTICS, lambda: transforms.WriteDrift("map", "/nowhere")),
    "WriteFailures": (FAILURE, lambda: transforms.WriteFailures("/nowhere")),
    "WriteImages": (LOADED, lambda: transforms.WriteImages("/nowhere")),
    "WriteManifest": (RECORD, lambda: transforms.WriteManifest("/nowhere")),
    "WriteQuality": (QUALITY, lambda: transforms.WriteQuality("/nowhere")),
    "WriteTransportMap": (None, lambda: transforms.WriteTransportMap("/nowhere")),
}
#: Transforms that begin a pipeline.
BEGINNING = {"ListImages", "ReadStatistics"}
OTHER_WINDOWS = {
    "FixedWindows": lambda: beam.WindowInto(window.FixedWindows(60)),
    "SlidingWindows": lambda: beam.WindowInto(window.SlidingWindows(60, 30)),
    "Sessions": lambda: beam.WindowInto(window.Sessions(60)),
    "Repeatedly": lambda: beam.WindowInto(
        window.GlobalWindows(),
        trigger=trigger.Repeatedly(trigger.AfterCount(1)),
        accumulation_mode=trigger.AccumulationMode.DISCARDING,
    ),
}


def test_every_public_transform_is_here():
    public = {name for name in transforms.__all__ if name != "LatentStatistics"}
    kinds = {name for name in public if inspect.isclass(getattr(transforms, name))}
    kinds = {name for name in kinds if issubclass(getattr(transforms, name), beam.PTransform)}
    assert kinds | {"LatentStatistics.Globally", "LatentStatistics.PerKey"} == set(TAKING) | BEGINNING


@pytest.mark.parametrize("windows", OTHER_WINDOWS)
@pytest.mark.parametrize("name", TAKING)
def test_other_windows_are_refused_in_one_line_when_the_pipeline_is_built(name: str, windows: str):
    element, make = TAKING[name]
    pipeline = beam.Pipeline(runner="FnApiRunner")
    elements = pipeline | beam.Create([element]).with_output_types(Any) | OTHER_WINDOWS[windows]()
    with pytest.raises(UserError) as error:
        _ = elements | make()
    assert str(error.value).startswith(f"{name}: its input is in ")
    assert windows in str(error.value)
    assert "beam.WindowInto(beam.window.GlobalWindows())" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", TAKING)
def test_the_global_window_is_taken_also_where_an_input_came_back_to_it(name: str):
    element, make = TAKING[name]
    pipeline = beam.Pipeline(runner="FnApiRunner")
    elements = pipeline | beam.Create([element]).with_output_types(Any)
    _ = elements | "Plain" >> make()
    back = elements | beam.WindowInto(window.FixedWindows(60)) | "Back" >> beam.WindowInto(window.GlobalWindows())
    _ = back | "Windowed before" >> make()


def test_a_map_as_side_input_is_looked_at_too():
    pipeline = beam.Pipeline(runner="FnApiRunner")
    maps = pipeline | "Map" >> beam.Create([None]) | beam.WindowInto(window.FixedWindows(60))
    images = pipeline | beam.Create([LOADED]).with_output_types(Any)
    with pytest.raises(UserError, match="FixedWindows"):
        _ = images | transforms.TransportLoaded(beam.pvalue.AsSingleton(maps))


def test_images_that_were_windowed_are_transported_after_coming_back(tmp_path: Path):
    """What the refusal tells a user to do."""
    refs = []
    for index in range(5):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        refs.append(ImageRef(str(index), str(path)))
    statistics = GaussianStatistics.of(np.random.default_rng(0).random((50, 3)))
    pixels = load_autoencoder("pixels")
    fitted = fit(statistics, statistics, 1, "pixels", pixels.fingerprint)
    url, output = str(tmp_path / "m.safetensors"), str(tmp_path / "out")
    write_map(fitted, url)
    with TestPipeline(runner="FnApiRunner") as pipeline:
        windowed = (
            pipeline
            | beam.Create(refs)
            | beam.Map(lambda ref: window.TimestampedValue(ref, 100 * int(ref.key))).with_output_types(ImageRef)
            | beam.WindowInto(window.FixedWindows(60))
        )
        back = windowed | "Back" >> beam.WindowInto(window.GlobalWindows())
        transported = back | transforms.TransportImages(url, output)
        _ = transported.records | transforms.WriteManifest(output)
        _ = transported.failures | transforms.WriteFailures(output)
    (manifest,) = (tmp_path / "out").glob("manifest-*.parquet")
    rows = pq.read_table(manifest).to_pylist()
    assert [(row["key"], row["source_uri"]) for row in rows] == [(ref.key, ref.uri) for ref in refs]
