"""The public transforms in somebody else's pipeline."""

import inspect

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from PIL import Image

import transforms
from ot_core import DecodedImage, UserError
from transforms import FitTransportMap, LatentStatistics, ListImages, TransportImages, WriteManifest, WriteTransportMap


@pytest.fixture
def photos(tmp_path, photo):
    for side in ("source", "target"):
        (tmp_path / side).mkdir()
        for index in range(3):
            Image.fromarray(photo(64, 48, seed=index)).save(tmp_path / side / f"{index}.png")
    return tmp_path


def _fit(photos, vae):
    url = str(photos / "map.safetensors")
    with TestPipeline(runner="FnApiRunner") as pipeline:
        inputs = {side: str(photos / side) for side in ("source", "target")}
        images, _ = pipeline | ListImages(inputs)
        statistics, _ = images | LatentStatistics.PerKey(vae)
        maps, failures = statistics | FitTransportMap(vae)
        assert_that(maps | WriteTransportMap(url), equal_to([url]))
        assert_that(failures, equal_to([]), label="NoFailures")
    return url


def test_fit_and_transport_compose_in_a_users_own_pipeline(photos, vae):
    map_url = _fit(photos, vae)
    output = str(photos / "out")
    with TestPipeline(runner="FnApiRunner") as pipeline:
        images, _ = pipeline | ListImages(str(photos / "source"))
        records, failures = images | TransportImages(map=map_url, output=output, alphas=[0.0, 1.0])
        _ = records | WriteManifest(output)
        assert_that(failures, equal_to([]))
    manifest = pq.read_table(f"{output}/manifest-00000-of-00001.parquet").to_pylist()
    assert [(row["key"], row["alpha"]) for row in manifest] == [(str(k), a) for k in range(3) for a in (0.0, 1.0)]
    with Image.open(f"{output}/images/alpha=1.00/0.png") as written, Image.open(photos / "source/0.png") as read:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(read))


def test_without_a_usable_side_there_is_a_failure_and_no_map(photos, vae):
    with TestPipeline(runner="FnApiRunner") as pipeline:
        images, _ = pipeline | ListImages({"source": str(photos / "source")})
        statistics, _ = images | LatentStatistics.PerKey(vae)
        maps, failures = statistics | FitTransportMap(vae)
        assert_that(maps, equal_to([]))
        rows = failures | beam.Map(lambda row: (row.source_uri, row.stage, row.error_type))
        assert_that(rows, equal_to([("target", "fit", "no_statistics")]), label="Failures")


def test_pixels_are_never_pickled_between_stages(photos, vae, monkeypatch):
    map_url = _fit(photos, vae)

    def refuse(self):
        raise AssertionError("a decoded image was pickled")

    monkeypatch.setattr(DecodedImage, "__reduce__", refuse)
    with TestPipeline(runner="FnApiRunner") as pipeline:
        images, _ = pipeline | ListImages(str(photos / "source"))
        transport = TransportImages(map=map_url, output=str(photos / "out"), statistics=True)
        records, failures, statistics = images | transport
        assert_that(records | beam.combiners.Count.Globally(), equal_to([3]))
        assert_that(failures, equal_to([]), label="NoFailures")
        kinds = statistics | beam.Map(lambda item: item[0].side) | beam.Distinct()
        assert_that(kinds, equal_to(["source", "results"]), label="Statistics")


@pytest.mark.parametrize("options", [{"alphas": []}, {"alphas": [0.5, 0.501]}, {"format": "gif"}])
def test_options_that_cannot_work_are_refused_at_construction(options):
    with pytest.raises(UserError):
        TransportImages(map="m", output="o", **options)


def _labels(**options):
    pipeline = beam.Pipeline(runner="FnApiRunner")
    images, _ = pipeline | ListImages("x")
    _ = images | TransportImages(map="m", output="o", **options)
    _ = images | LatentStatistics.PerKey(fanout=4 if options else None)
    found = []

    def visit(part):
        found.append(part.full_label)
        for child in part.parts:
            visit(child)

    for part in pipeline._root_transform().parts:
        visit(part)
    return found


def test_stage_labels_do_not_depend_on_options():
    stable = [label for label in _labels() if "MergeStatistics/" not in label]
    other = [label for label in _labels(alphas=[0.1, 0.2], format="jpeg") if "MergeStatistics/" not in label]
    assert stable == other
    ours = [label for label in stable if "core.py" not in label]  # Beam's Create has such a label of its own
    assert not [label for label in ours if "lambda" in label or ".py" in label]


def test_every_public_transform_is_documented_and_states_its_input_type():
    for name in transforms.__all__:
        public = getattr(transforms, name)
        assert inspect.getdoc(public), name
        takes_elements = inspect.isclass(public) and issubclass(public, beam.PTransform)
        if takes_elements and name not in ("ListImages", "ReadStatistics"):
            hints = public._type_hints
            assert getattr(hints, "input_types", None) is not None, name
