"""Beam YAML: the pipelines write what the commands write, and mistakes are told in a line."""

import datetime
import json
import re
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.yaml import main
from PIL import Image

from ot_core import UserError, read_map
from pipelines import beam_yaml, evaluate, fit, transport

FOLDER = Path(__file__).parents[2] / "deploy/yaml"
README = (FOLDER / "README.md").read_text()
TRANSFORMS = {
    name: getattr(beam_yaml, path.rpartition(".")[2])
    for name, path in yaml.safe_load((FOLDER / "providers.yaml").read_text())[0]["transforms"].items()
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory, photo, vae):
    """Natural and restored photographs, among these one that isn't, one key twice, and a map."""
    root = tmp_path_factory.mktemp("archive")
    for folder in ("natural", "restored", "more"):
        (root / folder).mkdir()
    for index in range(4):
        pixels = Image.fromarray(photo(72, 96, seed=index))
        pixels.save(root / f"natural/{index}.png")
        pixels.reduce(2).resize(pixels.size).save(root / f"restored/{index}.png")
    (root / "restored/text.png").write_text("no image")
    Image.fromarray(photo(40, 48, seed=9)).save(root / "more/3.png")
    sides = ["--target", str(root / "natural"), "--source", str(root / "restored")]
    assert fit.main([*sides, "--map", str(root / "run.safetensors"), "--vae", vae]) == 0
    return root


def _run(name: str, **variables: object) -> None:
    """What `python -m apache_beam.yaml.main` does."""
    path, given = FOLDER / f"{name}.yaml", json.dumps(variables)
    main.run(["--runner=FnApiRunner", f"--yaml_pipeline_file={path}", f"--jinja_variables={given}"])


def _rows(folder: Path, name: str) -> list[dict]:
    """Rows of a folder, without what differs between any two runs."""
    rows = [row for path in sorted(folder.glob(f"{name}-*.parquet")) for row in pq.read_table(path).to_pylist()]
    for row in rows:
        row.pop("seconds", None)
        if "output_uri" in row:
            row["output_uri"] = row["output_uri"].removeprefix(str(folder))
    return rows


def _images(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("images/**/*") if p.is_file()}


def test_fit_writes_the_map_and_the_failures_of_its_command(archive, vae, tmp_path):
    sides = {"target": str(archive / "natural"), "source": str(archive / "restored")}
    _run("fit", **sides, map=str(tmp_path / "run.safetensors"), vae=vae)
    found, expected = read_map(str(tmp_path / "run.safetensors")), read_map(str(archive / "run.safetensors"))
    for side in ("source", "target"):
        for part in ("count", "mean", "scatter"):
            figures = [getattr(getattr(fitted, side), part) for fitted in (found, expected)]
            np.testing.assert_allclose(*figures, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.map.matrix, expected.map.matrix, rtol=1e-12, atol=1e-12)
    assert (found.space.vae, found.space.vae_sha256) == (expected.space.vae, expected.space.vae_sha256)
    (failure,) = _rows(tmp_path, "run.failures")
    assert failure["error_type"] == "not_an_image"
    assert [failure] == _rows(archive, "run.failures")


def test_pairs_are_fitted_as_the_command_fits_them(archive, vae, tmp_path):
    sides = {"target": str(archive / "natural"), "source": str(archive / "restored")}
    maps = {name: str(tmp_path / f"{name}.safetensors") for name in ("command", "yaml")}
    flags = [word for name, url in sides.items() for word in (f"--{name}", url)]
    assert fit.main([*flags, "--map", maps["command"], "--vae", vae, "--paired", "--max_images", "3"]) == 0
    _run("fit", **sides, map=maps["yaml"], vae=vae, paired=True, max_images=3)
    found, expected = read_map(maps["yaml"]), read_map(maps["command"])
    assert found.map.invariant is expected.map.invariant is None
    assert found.source.count == expected.source.count
    np.testing.assert_allclose(found.map.matrix, expected.map.matrix, rtol=1e-12, atol=1e-12)


def test_groups_have_maps_of_their_own_here_too(archive, vae, tmp_path):
    images = [
        {"uri": f"{archive}/restored/{index}.png", "key": f"{index}", "camera": "ab"[index // 2]} for index in range(4)
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(image) + "\n" for image in images))
    groups = {"map": f"{tmp_path}/{{group}}.safetensors", "group_by": "column:camera"}
    given = str(tmp_path / "list.jsonl")
    _run("fit", target=str(archive / "natural"), source=given, vae=vae, common_target=True, **groups)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["a.safetensors", "b.safetensors"]
    (tmp_path / "b.safetensors").unlink()
    _run("transport", input=given, output=str(tmp_path / "out"), **groups)
    assert [(row["key"], row["group"]) for row in _rows(tmp_path / "out", "manifest")] == [("0", "a"), ("1", "a")]
    assert {row["error_type"] for row in _rows(tmp_path / "out", "failures")} == {"no_map"}
    _run("transport", input=given, output=str(tmp_path / "all"), default_map=str(tmp_path / "a.safetensors"), **groups)
    assert len(_rows(tmp_path / "all", "manifest")) == 4


def test_images_are_added_to_a_map_as_the_command_adds_them(archive, tmp_path):
    old, command = str(archive / "run.safetensors"), str(tmp_path / "command.safetensors")
    assert fit.main(["--source", str(archive / "more"), "--add_to", old, "--map", command]) == 0
    add = beam_yaml.FitTransportMap(add_to=old, map=str(tmp_path / "yaml.safetensors"))
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        listed = pipeline | beam_yaml.ListImages(inputs={"source": str(archive / "more")})
        _ = listed["images"] | add
    found, expected = read_map(str(tmp_path / "yaml.safetensors")), read_map(command)
    assert found.source.count == expected.source.count > read_map(old).source.count
    np.testing.assert_allclose(found.map.matrix, expected.map.matrix, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variables", [{}, {"output_format": "webdataset", "output_shards": 3, "format": "jpeg"}])
def test_transport_writes_the_images_and_rows_of_its_command(archive, tmp_path, variables):
    map_url, inputs = str(archive / "run.safetensors"), [str(archive / "restored"), str(archive / "more")]
    flags = [f"--{name}={value}" for name, value in variables.items()]
    command = ["--input", *inputs, "--map", map_url, "--output", str(tmp_path / "command"), "--alpha", "0", "0.5"]
    assert transport.main([*command, *flags]) == 0
    _run("transport", input=inputs, map=map_url, output=str(tmp_path / "yaml"), alpha=[0, 0.5], **variables)
    found, expected = tmp_path / "yaml", tmp_path / "command"
    assert len(_images(found)) == (4 if variables else 8)
    assert _images(found) == _images(expected)
    assert _rows(found, "manifest") == _rows(expected, "manifest")
    assert len(_rows(found, "manifest")) == 8
    assert _rows(found, "failures") == _rows(expected, "failures")
    assert {row["error_type"] for row in _rows(found, "failures")} == {"not_an_image", "duplicate_key"}
    assert (found / "job.json").read_text() == (expected / "job.json").read_text()
    drift = [json.loads((folder / "drift.json").read_text())["inputs"] for folder in (found, expected)]
    assert drift[0]["patches"] == drift[1]["patches"] > 0


def test_degrading_restoring_and_keeping_what_was_restored_go_as_in_the_commands(archive, tmp_path):
    degrade, restorer = "bicubic:2,jpeg:30-60", "bicubic:2"
    target, maps = (
        str(archive / "natural"),
        {name: str(tmp_path / f"{name}.safetensors") for name in ("command", "yaml")},
    )
    flags = ["--degrade", degrade, "--restorer", restorer, "--vae", "pixels"]
    assert fit.main(["--target", target, "--map", maps["command"], *flags]) == 0
    _run("fit", target=target, map=maps["yaml"], degrade=degrade, restorer=restorer, vae="pixels")
    found, expected = read_map(maps["yaml"]), read_map(maps["command"])
    np.testing.assert_allclose(found.map.matrix, expected.map.matrix, rtol=1e-12, atol=1e-12)
    assert (found.origin, found.map.invariant) == (expected.origin, expected.map.invariant)
    given = ["--input", str(archive / "more"), "--map", maps["command"], "--restorer", restorer, "--keep_restored"]
    assert transport.main([*given, "--output", str(tmp_path / "command")]) == 0
    variables = {"map": maps["command"], "restorer": restorer, "keep_restored": True}
    _run("transport", input=str(archive / "more"), output=str(tmp_path / "yaml"), **variables)
    assert len(_images(tmp_path / "yaml")) == 2
    assert _images(tmp_path / "yaml") == _images(tmp_path / "command")
    assert (tmp_path / "yaml/job.json").read_text() == (tmp_path / "command/job.json").read_text()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"degrade": "jpeg:1000"}, "degradation jpeg:1000: .*expected a whole number from 1 to 100, or a range A-B"),
        ({"degrade": "bicubic:2", "restorer": "bicubic:3"}, "degrade bicubic:2: needs a restorer of scale 2; .* has 3"),
        ({"degrade": "jpeg:9", "restorer": "nothing.onnx"}, r"restorer nothing\.onnx: no such file"),
    ],
)
def test_what_cannot_degrade_or_restore_is_told_before_work_starts(archive, tmp_path, variables, message):
    with pytest.raises(ValueError, match="FitTransportMap") as error:
        _run("fit", target=str(archive / "natural"), map=str(tmp_path / "m.safetensors"), vae="pixels", **variables)
    assert re.fullmatch(rf'Error .* "FitTransportMap" at line \d+: {message}', str(error.value))
    assert not list(tmp_path.iterdir())


def test_evaluate_writes_the_report_of_its_command(archive, vae, tmp_path):
    candidates = {"restored": str(archive / "restored"), "copy": str(archive / "natural")}
    command = ["--reference", str(archive / "natural"), "--report", str(tmp_path / "command"), "--vae", vae]
    assert evaluate.main([*command, "--candidate", *(f"{name}={url}" for name, url in candidates.items())]) == 0
    _run("evaluate", reference=command[1], candidate=candidates, report=str(tmp_path / "yaml"), vae=vae)
    found, expected = tmp_path / "yaml", tmp_path / "command"
    for name in ("totals.json", "report.html"):
        assert (found / name).read_text() == (expected / name).read_text()
    assert json.loads((found / "totals.json").read_text())["failures"] == 1
    assert len(_rows(found, "images")) == 8
    for name in ("images", "failures"):
        assert _rows(found, name) == _rows(expected, name)


def test_rows_from_anywhere_go_in_and_rows_for_anybody_come_out(archive, tmp_path):
    images = [{"key": f"a/{index}", "uri": str(archive / f"natural/{index}.png")} for index in range(3)]
    images.append({"key": "gone", "uri": str(archive / "gone.png")})
    pipeline = {
        "providers": [{"include": str(FOLDER / "providers.yaml")}],
        "pipeline": {
            "transforms": [
                {"type": "Create", "config": {"elements": images}},
                {
                    "type": "Filter",
                    "input": "Create",
                    "config": {"language": "python", "keep": "not key.endswith('2')"},
                },
                {
                    "type": "TransportImages",
                    "input": "Filter",
                    "config": {
                        "map": str(archive / "run.safetensors"),
                        "output": str(tmp_path),
                        "resume": True,
                        "error_handling": {"output": "bad"},
                    },
                },
                _fields("Written", "TransportImages", "key", "alpha", "width"),
                _fields("Failed", "TransportImages.bad", "key", "error_type"),
                _equal("Written", {"key": "a/0", "alpha": 0.0, "width": 96}, {"key": "a/1", "alpha": 0.0, "width": 96}),
                _equal("Failed", {"key": "gone", "error_type": "not_found"}),
            ]
        },
    }
    for _ in range(2):  # the second time from the manifest
        main.run(["--runner=FnApiRunner", f"--yaml_pipeline={yaml.safe_dump(pipeline)}"])
    assert len(_images(tmp_path)) == 2


def _fields(name: str, given: str, *fields: str) -> dict:
    config = {"language": "python", "fields": {field: field for field in fields}}
    return {"type": "MapToFields", "name": name, "input": given, "config": config}


def _equal(given: str, *elements: dict) -> dict:
    return {"type": "AssertEqual", "name": f"Assert{given}", "input": given, "config": {"elements": list(elements)}}


MAP_AND_OUTPUT = {"map": "m", "output": "o"}
MISTAKES = [
    ("TransportImages", {**MAP_AND_OUTPUT, "alhpa": 0}, "alhpa: unknown parameter; did you mean alpha?"),
    (
        "TransportImages",
        {**MAP_AND_OUTPUT, "help": True},
        "help: unknown parameter; expected one of accelerator, allow_other_restorer, alpha,",
    ),
    ("TransportImages", {**MAP_AND_OUTPUT, "quality": 101}, "quality: 101: expected a number from 1 to 100"),
    ("TransportImages", {**MAP_AND_OUTPUT, "quality": 9.5}, "quality: invalid int value: '9.5'"),
    ("TransportImages", {**MAP_AND_OUTPUT, "quality": [90]}, "quality: expected text or a number, not [90]"),
    ("TransportImages", {**MAP_AND_OUTPUT, "alpha": [True]}, "alpha: expected text or a number, not True"),
    ("TransportImages", {**MAP_AND_OUTPUT, "alpha": []}, "alpha: expected at least one argument"),
    ("TransportImages", {**MAP_AND_OUTPUT, "resume": "yes"}, "resume: expected true or false, not 'yes'"),
    ("TransportImages", {**MAP_AND_OUTPUT, "format": "gif"}, "format: invalid choice: 'gif' (choose from"),
    ("TransportImages", {"map": None, "output": "o"}, "the following arguments are required: map"),
    ("ListImages", {}, "inputs: expected a URL"),
    ("ListImages", {"inputs": {"source": 5}}, "inputs: expected a URL"),
    ("ListImages", {"inputs": "i", "input": "i"}, "input: unknown parameter; did you mean inputs?"),
    ("ListImages", {"inputs": "i", "max_images": 0}, "max_images: 0: expected a number from 1"),
    ("ListImages", {"inputs": "i", "since": datetime.date(2025, 12, 31)}, "since: expected text or a number"),
    ("ListImages", {"inputs": "i", "since": "yesterday"}, "since: yesterday: expected a date or time"),
    ("FitTransportMap", {"map": "m.safetensors", "patch_size": 4}, "patch_size: invalid choice: 4"),
    ("FitTransportMap", {"map": "m", "error_handling": {"output": "maps"}}, "error_handling: expected {output: NAME}"),
    (
        "EvaluateImages",
        {"reference": "r", "candidate": {"a": ["b"]}, "report": "p", "features": ["x"]},
        "features: inv",
    ),
    ("WriteFailures", {"output": "o", "manifest_shards": "many"}, "manifest_shards: invalid int value: 'many'"),
]


@pytest.mark.parametrize(("name", "parameters", "message"), MISTAKES)
def test_a_wrong_parameter_is_named_in_one_line(name, parameters, message):
    with pytest.raises(UserError) as error:
        TRANSFORMS[name](**parameters)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert "--" not in str(error.value)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"patch_size": 4},
            r'Invalid .* at "FitTransportMap" at line \d+: patch_size: invalid choice: 4 \(choose .*\)',
        ),
        ({"group_by": 5}, r'Error .* "ListImages" at line \d+: group_by 5: expected column:NAME, .*'),
        ({"source": "nowhere"}, r'Error .* "ListImages" at line \d+: inputs source nowhere: no image matched; .*'),
        ({"map": "run.st"}, r'Error .* "FitTransportMap" at line \d+: map run.st: expected a name ending in .*'),
    ],
)
def test_beam_says_which_transform_and_line_a_mistake_is_in(archive, vae, variables, message):
    given = {"target": str(archive / "natural"), "source": str(archive / "restored"), "map": "run.safetensors"}
    with pytest.raises(ValueError, match="transform") as error:
        _run("fit", **{**given, "vae": vae, **variables})
    assert re.fullmatch(message, str(error.value))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("the store\nis gone"), "the store is gone"),
        (KeyError("x"), "unexpected KeyError: 'x'"),
        (UserError("--inputs i:\nmissing"), "inputs i: missing"),
    ],
)
def test_whatever_goes_wrong_while_the_graph_is_built_is_told_in_one_line(error, message, monkeypatch):
    def fail(self, given, args):
        raise error

    monkeypatch.setattr(TRANSFORMS["ListImages"], "wire", fail)
    with pytest.raises(UserError) as raised:
        _ = beam.Pipeline() | TRANSFORMS["ListImages"](inputs="i")
    assert str(raised.value) == message


def test_the_mistake_on_the_page_is_told_as_it_says(archive, tmp_path):
    (lines,) = re.findall(r"^    ValueError: ((?:.*\n    )*.*)$", README, re.MULTILINE)
    with pytest.raises(ValueError, match="format") as error:
        _run("transport", input=str(archive / "natural"), map="m", output=str(tmp_path), format="gif")
    # Versions of Beam count the lines differently.
    assert re.sub(r"line \d+", "line N", str(error.value)) == re.sub(r"line \d+", "line N", " ".join(lines.split()))


@pytest.mark.parametrize(
    ("row", "found"), [(beam.Row(uri="u"), "uri (str)"), (beam.Row(key=1, uri="u"), "key (int64), uri (str)")]
)
def test_rows_that_name_no_image_are_refused_before_work_starts(row, found):
    pipeline = beam.Pipeline(runner="FnApiRunner")
    rows = pipeline | beam.Create([row])
    with pytest.raises(UserError, match=re.escape(f"input: expected rows with text in key, uri; found {found}")):
        _ = rows | beam_yaml.TransportImages(**MAP_AND_OUTPUT)


def test_a_runner_that_loses_images_is_refused_here_too():
    pipeline = beam.Pipeline(runner="FnApiRunner", options=PipelineOptions(["--runner=DaskRunner"]))
    with pytest.raises(UserError, match="Beam's DaskRunner loses images"):
        _ = pipeline | beam_yaml.ListImages(inputs="i")


def test_the_page_has_every_transform_with_its_parameters():
    rows = [line.split("|")[1:-1] for line in README.splitlines() if line.startswith("| `")]
    shown = {name.strip(" `"): set(re.findall(r"`(\w+)`", parameters)) for name, _, _, parameters in rows}
    assert shown == {name: set(transform.flags().flags()) for name, transform in TRANSFORMS.items()}


def test_every_command_of_the_page_names_the_variables_that_its_file_needs():
    commands = re.findall(r"--yaml_pipeline_file=deploy/yaml/(\w+)\.yaml \\\n +--jinja_variables='([^']*)'", README)
    assert {name for name, _ in commands} == {"fit", "transport", "evaluate"}
    for name, variables in commands:
        text = (FOLDER / f"{name}.yaml").read_text()
        (needed,) = re.findall(r"# Needs the Jinja variables (.*);", text)
        given = json.loads(variables)
        assert set(re.findall(r"\w+", re.sub(r"\(.*?\)| and ", " ", needed))) <= set(given)
        assert all(re.search(rf"\b{variable}\b", text.partition("pipeline:")[2]) for variable in given)
