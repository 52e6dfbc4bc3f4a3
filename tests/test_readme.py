"""The README is true of what runs today."""

import re
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ot_core import Cause
from pipelines import evaluate, fit, maps, transport, trial

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PARSERS = {
    "dot-fit": fit.parser(),
    "dot-transport": transport.parser(),
    "dot-evaluate": evaluate.parser(),
    "dot-trial": trial.parser(),
    "dot-map": maps.parser(),
}


def _flags(prog: str) -> set[str]:
    return {name for action in PARSERS[prog]._actions for name in action.option_strings if name.startswith("--")}


@pytest.mark.parametrize("prog", PARSERS)
def test_every_flag_shown_in_a_command_exists(prog):
    commands = [line for line in README.splitlines() if line.startswith(f"    {prog} ")]
    assert commands
    for command in commands:
        assert set(re.findall(r"--\w+", command)) <= _flags(prog)


def test_every_flag_is_in_the_tables_and_nothing_else_is():
    tables = README.split("## Flags")[1].split("\n## ")[0]
    shown = {
        flag
        for row in tables.splitlines()
        if row.startswith("| `--")
        for flag in re.findall(r"--\w+", row.split("|")[1])
    }
    assert shown == set().union(*map(_flags, PARSERS)) - {"--help", "--version", "--config"}


def test_every_cause_of_failure_is_listed():
    listed = README.split("`error_type` is one of")[1].split("\n\n")[1]
    assert re.findall(r"`(\w+)`", listed) == [str(cause) for cause in Cause]


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def _snippet(beginning: str) -> str:
    (found,) = [text for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if text.startswith(beginning)]
    return found


def test_the_python_snippets_are_those_that_are_run_here():
    assert README.count("```python") == 2


def test_the_pipeline_of_public_parts_writes_what_the_job_writes(tmp_path, monkeypatch, photo):
    for name in ("natural", "degraded"):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.fromarray(photo(48, 64, seed=index)).save(tmp_path / name / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    restorer = ["--restorer", "bicubic:1"]
    flags = ["--degrade", "jpeg:10", "--vae", "pixels", "--map", "m.safetensors"]
    assert fit.main(["--target", "natural", *flags, *restorer]) == 0
    assert transport.main(["--input", "degraded", "--map", "m.safetensors", "--output", "job", *restorer]) == 0
    with beam.Pipeline("FnApiRunner") as pipeline:
        exec(_snippet("from transforms").replace("swinir.safetensors", "bicubic:1"), {"pipeline": pipeline})
    expected = {path.name: path.read_bytes() for path in (tmp_path / "job/images").iterdir()}
    assert len(expected) == 3 == len(pq.read_table("job/manifest-00000-of-00001.parquet"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "enhanced/images").iterdir()} == expected


def test_the_lines_without_beam_transport_an_image(tmp_path, monkeypatch, photo):
    monkeypatch.chdir(tmp_path)
    originals = [Image.fromarray(photo(64, 96, seed=index)) for index in range(3)]
    restored = [image.reduce(2).resize(image.size) for image in originals]
    snippet, names = _snippet("from ot_core"), {"originals": originals, "restored": restored, "image": restored[0]}
    assert len(snippet.partition("\n\n")[2].splitlines()) == 3
    exec(snippet, names)
    result = names["natural_looking"]
    assert (result.size, result.mode) == (restored[0].size, "RGB")
    assert (np.asarray(result) != np.asarray(restored[0])).any()
