"""Statistics of latents, merged by a combine, equal those computed by hand in one place."""

import io
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import numpy as np
import pytest
import torch
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from PIL import Image

from ot_core import GaussianStatistics, Part, decode_image, latent_statistics, load_autoencoder
from ot_core.autoencoder import _load_once
from ot_core.margin import with_margin
from transforms import Failure, GaussianStatisticsCombineFn, ImageRef, LatentStatistics


def _parts(n: int = 7, dimension: int = 5) -> list[GaussianStatistics]:
    rng = np.random.default_rng(0)
    return [GaussianStatistics.of(rng.normal(100, 1, (rng.integers(1, 40), dimension))) for _ in range(n)]


def _assert_equal(a: GaussianStatistics, b: GaussianStatistics) -> None:
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)
    assert np.abs(a.scatter - b.scatter).max() <= 1e-12 * np.abs(b.scatter).max()


@pytest.mark.parametrize("seed", range(5))
def test_any_split_over_accumulators_in_any_order_gives_the_same_sum(seed):
    parts, rng = _parts(), random.Random(seed)
    combine = GaussianStatisticsCombineFn()
    accumulators = [combine.create_accumulator() for _ in range(rng.randint(1, 4))]
    for part in rng.sample(parts, len(parts)):
        index = rng.randrange(len(accumulators))
        accumulators[index] = combine.add_input(accumulators[index], part)
    accumulators = [pickle.loads(pickle.dumps(accumulator)) for accumulator in accumulators]
    merged = combine.extract_output(combine.merge_accumulators(iter(accumulators)))
    _assert_equal(merged, sum(parts[1:], parts[0]))


def test_nothing_combines_to_none():
    combine = GaussianStatisticsCombineFn()
    assert combine.extract_output(combine.merge_accumulators([combine.create_accumulator()])) is None


@pytest.mark.parametrize("fanout", [None, 3])
def test_the_combine_runs_in_a_pipeline_with_and_without_fanout(fanout):
    parts = _parts()
    combine = beam.CombineGlobally(GaussianStatisticsCombineFn())
    combine = combine if fanout is None else combine.with_fanout(fanout)

    def check(found):
        (total,) = found
        _assert_equal(total, sum(parts[1:], parts[0]))

    with TestPipeline(runner="FnApiRunner") as pipeline:
        assert_that(pipeline | beam.Create(parts) | combine, check)


@pytest.fixture
def refs(tmp_path, photo):
    found = []
    for index, side in enumerate(["source", "source", "target", "target", "target"]):
        path = tmp_path / f"{index}.png"
        Image.fromarray(photo(40 + 8 * index, 56, seed=index)).save(path)
        found.append(ImageRef(str(index), str(path), side))
    return found


def _by_hand(refs, vae, patch_size):
    """One core encodes an image, whatever the number of cores: so it is in the job, to the last bit."""
    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as one_core:
            return one_core.submit(_encode_and_add, refs, vae, patch_size).result()
    finally:
        torch.set_num_threads(cores)  # for threads that begin later, too


def _encode_and_add(refs, vae, patch_size):
    autoencoder, totals = with_margin(load_autoencoder(vae)), {}
    for ref in refs:
        with open(ref.uri, "rb") as file:
            pixels = torch.from_numpy(decode_image(file.read()).pixels.copy()).permute(2, 0, 1)[None] / 255
        statistics = latent_statistics(autoencoder.inner(autoencoder.encode(autoencoder.pad(pixels)))[0], patch_size)
        totals[ref.part] = totals[ref.part] + statistics if ref.part in totals else statistics
    return totals


@pytest.mark.parametrize("max_batch_pixels", [0, 10_000])
def test_per_key_gives_one_statistic_for_each_part(refs, vae, max_batch_pixels):
    expected = _by_hand(refs, vae, 3)

    def check(found):
        assert sorted(part for part, _ in found) == [Part("source"), Part("target")]
        for part, statistics in found:
            assert statistics.count == expected[part].count
            np.testing.assert_allclose(statistics.covariance(), expected[part].covariance(), rtol=1e-4, atol=1e-6)

    with TestPipeline(runner="FnApiRunner") as pipeline:
        statistics, failures = (
            pipeline | beam.Create(refs) | LatentStatistics.PerKey(vae, 3, max_batch_pixels=max_batch_pixels)
        )
        assert_that(statistics, check)
        assert_that(failures, equal_to([]), label="NoFailures")


def test_globally_ignores_groups(refs, vae):
    expected = _by_hand([ref._replace(side="") for ref in refs], vae, 1)[Part()]

    def check(found):
        (total,) = found
        _assert_equal(total, expected)

    with TestPipeline(runner="FnApiRunner") as pipeline:
        statistics, _ = pipeline | beam.Create(refs) | LatentStatistics.Globally(LatentStatistics.PerKey(vae, 1))
        assert_that(statistics, check)


def test_one_encode_stage_loads_the_model_once_for_all_groups(refs, vae):
    _load_once.cache_clear()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | beam.Create(refs) | LatentStatistics.PerKey(vae)
    assert _load_once.cache_info().misses == 1


def test_an_image_too_small_for_one_patch_is_a_failure_and_the_others_count(refs, vae, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3)).save(buffer, "PNG")
    (tmp_path / "tiny.png").write_bytes(buffer.getvalue())
    tiny = ImageRef("tiny", str(tmp_path / "tiny.png"), "source")

    def is_the_small_one(failures):
        (failure,) = failures
        assert isinstance(failure, Failure)
        assert (failure.key, failure.stage, failure.error_type) == ("tiny", "encode", "too_small")

    with TestPipeline(runner="FnApiRunner") as pipeline:
        statistics, failures = pipeline | beam.Create([*refs, tiny]) | LatentStatistics.PerKey(vae, 3)
        assert_that(failures, is_the_small_one)
        assert_that(statistics | beam.Keys(), equal_to([Part("source"), Part("target")]), label="BothParts")


@pytest.mark.parametrize("images", [1, 5])
def test_what_crosses_the_shuffle_is_one_small_accumulator_however_many_images_it_holds(refs, vae, images, monkeypatch):
    merged: list[GaussianStatistics] = []
    merge = GaussianStatisticsCombineFn.merge_accumulators

    def merge_and_keep(self, accumulators):
        found = list(accumulators)
        merged.extend(accumulator for accumulator in found if accumulator is not None)
        return merge(self, found)

    monkeypatch.setattr(GaussianStatisticsCombineFn, "merge_accumulators", merge_and_keep)
    with TestPipeline(runner="FnApiRunner") as pipeline:
        same = [ref._replace(side="") for ref in refs[:images]]
        _ = pipeline | beam.Create(same) | LatentStatistics.PerKey(vae, 3, max_batch_pixels=0)  # a batch for each image
    (accumulator,) = merged  # the local runner's only bundle
    assert len(pickle.dumps(accumulator)) < 12_000  # 3 x 3 patches of 4 channels: a scatter of 36 x 36 doubles
