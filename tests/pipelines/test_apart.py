"""What a job writes is never among what it reads, however the two are spelt; and no path is left empty."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ot_core import UserError, storage
from ot_core.layout import OutputLayout
from ot_core.places import Place
from pipelines import beam_yaml, demo, evaluate, fit, maps, transport
from pipelines.apart import check_apart


def _is_refused(spec: str, output: str, kind: str = "files") -> bool:
    layout = OutputLayout.of(output, [0.0], kind=kind)
    try:
        check_apart([("--input", spec)], f"--output {output}", layout.places(), layout.examples())
    except UserError:
        return True
    return False


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "work/in").mkdir(parents=True)
    (tmp_path / "work/data").mkdir()
    (tmp_path / "link").symlink_to("work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize(
    ("spec", "output"),
    [
        (".", "out"),
        ("./", "./out/"),
        ("..", "out"),
        ("../work", "out"),
        ("../link", "out"),
        ("in/..", "out"),
        ("{here}", "out"),
        ("{here}//", "in/../out"),
        ("file://{here}", "out"),
        (".", "file://{here}/out"),
        ("/", "out"),
        ("out", "out"),
        ("out/images", "out"),
        ("out/images/a.png", "out"),
        ("out/.staging", "out"),
        ("../link/out/images/a", "out"),
        ("**/*.png", "out"),
        ("**", "out"),
        ("*/images/*.png", "out"),
        ("data/**", "data/out"),
        ("{here}/**/*.png", "out"),
        ("../*/out/images/*.png", "out"),
        ("[a-o]ut/*/*.png", "out"),
        ("gs://b/a", "gcs://b/a/out"),
        ("gs://b/a", "gs://b/a//out"),
        ("gs://b", "gs://b/out"),
        ("gs://b/**/*.png", "gcs://b/out"),
        ("s3a://b/a/", "s3://b/a"),
        ("memory://a", "memory:///a/out"),
    ],
)
def test_an_output_inside_of_an_input_is_refused(spec, output, here):
    assert _is_refused(spec.format(here=here), output.format(here=here))


@pytest.mark.parametrize(
    ("spec", "output"),
    [
        ("in", "out"),
        ("in", "in2"),
        ("in", "inner/in"),
        ("out/in", "out"),
        ("*.png", "out"),
        ("data/*", "data/out"),
        ("in/**/*.png", "out"),
        ("in/*.tar", "out"),
        ("out[1]", "out1"),
        ("gs://b/a", "gs://c/a/out"),
        ("gs://b/a", "s3://b/a/out"),
        ("gs://b/a", "gs://b/ab"),
        ("unknown://b/a", "out"),
        ("a/**.png", "out"),
    ],
)
def test_an_output_beside_an_input_is_not(spec, output, here):
    (here / "out[1]").mkdir()
    assert not _is_refused(spec, output)


def test_patterns_that_name_shards_or_manifests_of_the_output_are_refused(here):
    assert _is_refused("**/*.tar", "out", "webdataset")
    assert not _is_refused("**/*.tar", "out", "files")
    assert _is_refused("out/images/shard-*.parquet", "out", "parquet")
    assert _is_refused("out/*.parquet", "out")


@given(st.lists(st.sampled_from(["a", "b", "[ab]", "#", "%41", "..", ".", "a~", "", "é"]), min_size=1, max_size=5))
def test_a_place_is_that_of_the_path_however_it_is_spelt(parts):
    path = "/".join(parts)
    if not path.strip("/"):
        return
    expected = Place("", os.path.realpath(path))
    for spelt in (path, f"./{path}" if not path.startswith("/") else path, os.path.abspath(path), path + "/"):
        assert Place.of(spelt) == expected
        assert Place.of(spelt).lies_below(Place.of(os.path.dirname(os.path.realpath(path))))


def test_a_folder_that_is_one_by_another_name_is_the_same_place(tmp_path):
    (tmp_path / "a").mkdir()
    assert Place.of(str(tmp_path / "a/b")).lies_below(Place.of(str(tmp_path / "a")))
    assert not Place.of(str(tmp_path / "a")).lies_below(Place.of(str(tmp_path / "a/b")))
    assert not Place.of(str(tmp_path / "ab")).lies_below(Place.of(str(tmp_path / "a")))


@pytest.fixture(scope="module")
def made(tmp_path_factory, photo):
    root = tmp_path_factory.mktemp("made")
    for index in range(3):
        for folder in ("a", "b"):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(photo(20, 24, seed=index + 5 * (folder == "b"))).save(root / folder / f"{index}.png")
    sides = ["--target", str(root / "a"), "--source", str(root / "b"), "--paired", "--vae", "pixels"]
    assert fit.main([*sides, "--map", str(root / "px.safetensors")]) == 0
    return root


def test_a_list_or_link_that_leads_into_the_output_gives_failures(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text(f"{made}/a/0.png\nout/images/1.png\n../{tmp_path.name}/out/images/2.png\n")
    command = ["--map", str(made / "px.safetensors"), "--output", "out"]
    assert transport.main(["--input", str(made / "a"), *command]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out/images").rglob("*")}
    capsys.readouterr()
    assert transport.main(["--input", "list.txt", *command, "--resume"]) == 1
    assert "2 of 3 images failed, over --max_failure_fraction 0.5" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in (tmp_path / "out/images").rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 1


def test_reports_and_failures_are_no_inputs(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sides = ["--source", str(made / "a"), "--target", "maps/*.parquet", "--map", "maps/m.safetensors"]
    assert fit.main(sides) == 2
    assert "--map maps/m.safetensors: lies in --target maps/*.parquet" in capsys.readouterr().err
    candidates = ["--reference", str(made / "a"), "--candidate", "x=report/*.parquet", "--report", "report/"]
    assert evaluate.main(candidates) == 2
    assert "--report report/: lies in --candidate report/*.parquet" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


COMPLETE = {
    transport: {"--input": "a", "--map": "px.safetensors", "--output": "out"},
    fit: {"--source": "a", "--target": "b", "--map": "new.safetensors"},
    evaluate: {"--reference": "a", "--candidate": "x=b", "--report": "report"},
}
MORE = {
    transport: ["--default_map", "--vae", "--summary", "--group_by"],
    fit: ["--add_to", "--vae", "--summary", "--group_by"],
    evaluate: ["--inception_weights", "--lpips_weights", "--vae", "--summary"],
}


@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
@pytest.mark.parametrize(
    ("job", "flag"), [(job, flag) for job in COMPLETE for flag in [*COMPLETE[job], *MORE[job]]]
)  # fmt: skip
def test_an_empty_path_is_refused_in_one_line(job, flag, empty, made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(made)
    before = sorted(made.rglob("*"))
    flags = {**COMPLETE[job], flag: empty}
    assert job.main([word for pair in flags.items() for word in pair]) == 2
    told = capsys.readouterr().err.strip()
    assert f"{flag}: empty; expected a path or URL" in told
    assert "\n" not in told
    if flag in ("--input", "--source", "--target", "--reference", "--candidate"):
        flags[flag] = COMPLETE[job][flag]
        assert job.main([word for pair in flags.items() for word in pair] + [flag, empty]) == 2
    assert sorted(made.rglob("*")) == before


def test_an_empty_path_is_refused_by_the_other_commands_too(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    before = sorted(made.rglob("*"))
    assert evaluate.main(["--reference", "a", "--candidate", "x=", "--report", "report"]) == 2
    assert maps.main(["inspect", ""]) == 2
    assert maps.main(["diff", "px.safetensors", " "]) == 2
    assert demo.main(["--output", ""]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 4
    for transform, parameters in (
        (beam_yaml.ListImages, {"inputs": ""}),
        (beam_yaml.ListImages, {"inputs": ["a", " "]}),
        (beam_yaml.ListImages, {"inputs": {"source": "a", "target": ""}}),
        (beam_yaml.FitTransportMap, {"map": ""}),
        (beam_yaml.TransportImages, {"map": "px.safetensors", "output": ""}),
        (beam_yaml.EvaluateImages, {"reference": ["a"], "candidate": {"x": "b"}, "report": " "}),
        (beam_yaml.WriteFailures, {"output": ""}),
    ):
        with pytest.raises(UserError, match="empty; expected a path or URL"):
            transform(**parameters)
    assert sorted(made.rglob("*")) == before


def test_a_path_that_is_not_utf_8_is_refused_before_any_work(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["--input", str(made / "a"), "--map", str(made / "px.safetensors"), "--output", "out\udcff"]
    assert transport.main(command) == 2
    assert "expected a path or URL in UTF-8" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("bad", "flags", "code"), [
    (0, [], 0),
    (2, [], 1),
    (1, [], 0),
    (2, ["--max_failure_fraction", "1"], 0),
    (3, ["--max_failure_fraction", "1"], 1),
    (3, [], 1),
    (3, ["--since", "2999-01-01"], 0),
    (3, ["--resume", "--plan"], 0),
])  # fmt: skip
def test_a_job_that_did_nothing_or_failed_at_most_ends_so(bad, flags, code, made, tmp_path, capsys):
    source = tmp_path / "in"
    for index in range(3):
        data = b"no image" if index < bad else storage.read_bytes(f"{made}/a/{index}.png")
        storage.write_bytes(f"{source}/{index}.png", data)
    command = ["--input", str(source), "--map", str(made / "px.safetensors"), "--output", str(tmp_path / "out")]
    assert transport.main([*command, *flags]) == code
    told = capsys.readouterr().err
    assert ("could be used" in told or "over --max_failure_fraction" in told) == bool(code)
    if not flags:
        # What is there already is done; and the same few failures don't end every night.
        assert transport.main([*command, "--resume"]) == code


def test_images_without_pairs_are_judged_as_sets(made, tmp_path, capsys):
    """Distances need no pairs: the images of several candidates then have no reference, each of which is a row."""
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for index in range(3):
            data = storage.read_bytes(f"{made}/b/{index}.png")
            (tmp_path / name / f"other{index}.png").write_bytes(data)
    candidates = [f"{name}={tmp_path / name}" for name in ("x", "y")]
    command = ["--reference", str(made / "a"), "--candidate", *candidates, "--features", "pixel"]
    assert evaluate.main([*command, "--report", str(tmp_path / "report")]) == 0
    for path in tmp_path.glob("?/*.png"):
        path.write_bytes(b"no image")
    assert evaluate.main([*command, "--report", str(tmp_path / "report")]) == 1
