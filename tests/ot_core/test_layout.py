"""Where the files of an output are, and that nothing else is ever taken for one of them."""

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ot_core import UserError, storage
from ot_core.layout import OutputLayout, find_numbered, numbered
from ot_core.results import read_job, roots_of

PIECES = [
    "run",
    "1",
    "[12]",
    "*",
    "?",
    "#",
    "%41",
    "&",
    "+",
    "~",
    "..x",
    "[!a]",
    "{a}",
    " ",
    "é",
    "\udcff",
    "alpha=0.50",
]
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
ALPHAS = st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0, 1.5]), min_size=1, max_size=4, unique=True)


def test_images_of_one_alpha_and_of_several_are_where_they_always_were():
    assert OutputLayout.of("out", [0.0]).image(0.0, "a/b") == "out/images/a/b.png"
    several = OutputLayout.of("gs://b/out/", [0.0, 0.5], "jpeg")
    assert several.image(0.5, "a") == "gs://b/out/images/alpha=0.50/a.jpg"
    packed = OutputLayout.of("out", [0.0], kind="webdataset")
    assert packed.written_image(0.0, "a") == "out/.staging/images/a.png"
    assert packed.shard(0.0, 3, 16) == "out/images/shard-00003-of-00016.tar"


@given(
    ALPHAS, ALPHAS, st.lists(st.tuples(st.sampled_from(["", "alpha=0.50/", "alpha=0.00/", "a/"]), NAMES), max_size=4)
)
def test_an_output_that_grows_moves_nothing_and_never_gives_two_images_one_place(first, added, keys):
    layout = OutputLayout.of("out", first)
    grown = layout.with_alphas(added)
    assert set(grown.alphas) == {*first, *added}
    assert all(grown.folders[alpha] == folder for alpha, folder in layout.folders.items())
    names = {prefix + name for prefix, name in keys}
    places = [grown.image(alpha, key) for alpha in grown.alphas for key in names]
    assert len(set(places)) == len(places)
    # What job.json says of it is enough to find everything again, wherever the output is by then.
    job = {"alpha": list(grown.alphas), "folders": list(grown.folders.values()), "map_sha256": ""}
    assert OutputLayout.of_job("moved", job) == grown._replace(root="moved")
    assert pickle.loads(pickle.dumps(grown)) == grown


@pytest.mark.parametrize(
    "job",
    [
        {"alpha": [0.0], "folders": [".."]},
        {"alpha": [0.0], "folders": ["/etc"]},
        {"alpha": [0.0], "folders": ["images/alpha=0.50/../.."]},
        {"alpha": [0.0, 0.5], "folders": ["images", "images"]},
        {"alpha": [0.0, 0.5], "folders": ["images"]},
        {"alpha": []},
        {"alpha": ["x"]},
        {"alpha": [0.0], "format": "exe"},
        {"alpha": [0.0], "output_format": "zip"},
        {},
    ],
)
def test_a_job_that_leads_elsewhere_is_refused(job):
    with pytest.raises(UserError, match="isn't as we write it"):
        OutputLayout.of_job("out", job)


@settings(max_examples=60)
@example("run[12]", "run1")
@example("*", "run1")
@given(NAMES, NAMES)
def test_files_are_found_in_their_own_folder_alone(tmp_path_factory, name, other):
    root = tmp_path_factory.mktemp("root")
    for folder in {name, other}:
        for index in range(2):
            path = root / folder / numbered("manifest", index, 2)
            path.parent.mkdir(exist_ok=True)
            path.write_text("")
        for mine in ("manifest-mine.parquet", "manifest-0-of-1.parquet", "a-manifest-00000-of-00001.parquet"):
            (root / folder / mine).write_text("")
    found = find_numbered(str(root / name), "manifest")
    assert [Path(file.url) for file in found] == [root / name / numbered("manifest", index, 2) for index in range(2)]
    assert [(file.number, file.total) for file in found] == [(0, 2), (1, 2)]
    assert os.fsencode(found[0].name) == b"manifest-00000-of-00002.parquet"


def test_files_are_found_on_every_store(store):
    assert find_numbered(f"{store}/out[1]", "manifest") == []
    for folder in ("out[1]", "out1"):
        storage.write_bytes(f"{store}/{folder}/{numbered('manifest', 0, 1)}", b"")
    (found,) = find_numbered(f"{store}/out[1]", "manifest")
    assert found.url == f"{store}/out[1]/manifest-00000-of-00001.parquet"
    assert found.details.modified is not None


def test_only_a_job_of_ours_is_one(tmp_path):
    assert read_job(str(tmp_path)) is None
    assert read_job(str(tmp_path / "gone")) is None
    for text in ("", "[]", "{", '{"alpha": 0}', '{"map_sha256": ""}', "\0"):
        (tmp_path / "job.json").write_text(text)
        assert read_job(str(tmp_path)) is None
    (tmp_path / "job.json").write_text('{"map_sha256": "", "alpha": [0.0]}')
    assert read_job(str(tmp_path)) is not None


def test_a_folder_of_images_tells_where_its_output_would_be():
    assert list(roots_of("a/images/alpha=0.50/")) == [("a/images/alpha=0.50", ""), ("a", "images/alpha=0.50")]
    assert list(roots_of("images")) == [("images", ""), (".", "images")]
    assert list(roots_of("gs://b/images-alpha=-0.50")) == [
        ("gs://b/images-alpha=-0.50", ""), ("gs://b", "images-alpha=-0.50")
    ]  # fmt: skip
    assert list(roots_of("a/b")) == [("a/b", "")]
