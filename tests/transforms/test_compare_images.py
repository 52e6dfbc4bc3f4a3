"""Comparing reads every image once, hands all of them on, and pairs them by key."""

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from PIL import Image

from ot_core import GaussianStatistics, Part
from ot_core.features import LatentFeatures, PixelFeatures
from transforms import CompareImages, Failure, FeatureDistances, FeatureStatistics, ImageRef, TotalQuality


@pytest.fixture
def refs(tmp_path, photo):
    """Two references; "restored" and "enhanced" of the first, "restored" of an unknown one; the second stays alone."""
    found = []
    for group, key in [
        ("reference", "a"), ("restored", "a"), ("enhanced", "a"), ("reference", "alone"), ("restored", "stranger"),
    ]:  # fmt: skip
        path = tmp_path / f"{group}-{key}.png"
        shade = {"reference": 0, "restored": 2, "enhanced": 5}[group]
        Image.fromarray(np.minimum(photo(48, 64) + shade, 255).astype(np.uint8)).save(path)
        found.append(ImageRef(key, str(path), group))
    return found


def test_pairs_are_measured_and_every_image_is_handed_on(refs):
    def one_change(changes):
        ((change, key, found, psnr),) = changes
        assert [name for name, value in psnr if value] == ["restored", "enhanced"]
        assert key == "a"
        assert change == pytest.approx(3, rel=0.02)
        assert [ref.side for ref in found] == ["reference", "restored", "enhanced"]

    with TestPipeline(runner="FnApiRunner") as pipeline:
        images, quality, changes, failures = pipeline | beam.Create(refs) | CompareImages(baseline="restored")
        assert_that(images | beam.Map(lambda loaded: loaded.ref), equal_to(refs), label="Images")
        rows = quality | beam.Map(lambda row: (row.key, row.candidate, row.width, row.height, row.psnr is not None))
        assert_that(
            rows,
            equal_to(
                [
                    ("a", "restored", 64, 48, True),
                    ("a", "enhanced", 64, 48, True),
                    ("stranger", "restored", 64, 48, False),
                ]
            ),
            label="Rows",
        )
        assert_that(changes, one_change, label="Changes")
        assert_that(failures, equal_to([]), label="Failures")


def test_an_unreadable_reference_is_one_failure_and_its_candidates_still_count_as_a_set(refs):
    refs = [
        ref._replace(uri=ref.uri + ".gone") if (ref.key, ref.side) == ("a", "reference") else ref for ref in refs[:3]
    ]
    with TestPipeline(runner="FnApiRunner") as pipeline:
        images, quality, _, failures = pipeline | beam.Create(refs) | CompareImages()
        assert_that(images | beam.Map(lambda loaded: loaded.ref.side), equal_to(["restored", "enhanced"]))
        assert_that(quality, equal_to([]), label="Rows")
        assert_that(failures | beam.Map(lambda f: (f.stage, f.key)), equal_to([("read", "a")]), label="Failures")


def test_an_image_that_one_feature_refuses_counts_in_none(tmp_path, photo, vae):
    refs = []
    for key, size in {"good": (48, 64), "small": (7, 64)}.items():
        Image.fromarray(photo(*size)).save(tmp_path / f"{key}.png")
        refs.append(ImageRef(key, str(tmp_path / f"{key}.png"), "reference"))

    def both(found):
        counts = {key: statistics.count for key, statistics in found}
        assert counts == {("latent", Part("reference")): 12 * 16, ("pixel", Part("reference")): 6 * 8}

    extractors = {"latent": LatentFeatures(vae, 1), "pixel": PixelFeatures()}
    with TestPipeline(runner="FnApiRunner") as pipeline:
        images = (pipeline | beam.Create(refs) | CompareImages()).images
        statistics, failures = images | FeatureStatistics(extractors, max_batch_pixels=100_000)
        assert_that(statistics, both)
        assert_that(failures | beam.Map(lambda f: (f.key, f.error_type)), equal_to([("small", "too_small")]), "Small")


def test_distances_are_measured_from_the_reference_and_one_vector_is_not_enough():
    rng = np.random.default_rng(0)
    known = GaussianStatistics.of(rng.normal(size=(50, 3)))
    moved = GaussianStatistics(known.count, known.mean + 1, known.scatter)
    half = GaussianStatistics.of(rng.normal(size=(25, 3)))
    statistics = [
        (("pixel", Part("reference", 0)), known),
        (("pixel", Part("far", 0)), moved),
        (("pixel", Part("reference", 1)), half),
        (("pixel", Part("far", 1)), GaussianStatistics(half.count, half.mean + 1, half.scatter)),
        (("pixel", Part("poor")), GaussianStatistics.single([0.0] * 3)),
    ]

    def three(found):
        ((key, distance),) = found
        assert key == ("pixel", "far")
        assert distance.value == pytest.approx(3, rel=1e-9)
        assert distance.without == pytest.approx({0: 3, 1: 3}, rel=1e-9)

    def names_the_candidate(failures):
        (failure,) = failures
        assert isinstance(failure, Failure)
        assert (failure.stage, failure.error_type) == ("distance", "no_statistics")
        assert "poor" in failure.message

    with TestPipeline(runner="FnApiRunner") as pipeline:
        distances, failures = pipeline | beam.Create(statistics) | FeatureDistances({"pixel": PixelFeatures()})
        assert_that(distances, three)
        assert_that(failures, names_the_candidate, label="Failures")


def test_totals_have_one_element_for_each_candidate(refs):
    with TestPipeline(runner="FnApiRunner") as pipeline:
        quality = (pipeline | beam.Create(refs) | CompareImages()).quality
        totals = (
            quality | TotalQuality() | beam.MapTuple(lambda candidate, total: (candidate, total.count, total.images))
        )
        assert_that(totals, equal_to([("restored", 1, 2), ("enhanced", 1, 1)]))
