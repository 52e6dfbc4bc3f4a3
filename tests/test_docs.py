"""README and docs are true of what runs today, in plain English."""

import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import ot_core
import transforms
from pipelines import evaluate, fit, maps, transport, trial

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROSE = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")), *sorted(ROOT.glob("deploy/**/*.md"))]
JOBS = {"dot-fit": fit, "dot-transport": transport, "dot-evaluate": evaluate, "dot-trial": trial, "dot-map": maps}
#: Of a banner about another version of mkdocs.
QUIET = {"NO_MKDOCS_2_WARNING": "1"}
#: Commands that no test of this file runs, and why.
NOT_RUN_HERE = {
    "pip install": "tests run in an environment that is installed already, by `make test`",
    "dot-demo": "tests/pipelines/test_demo.py runs it",
    "make test-engines": "`make test` runs what is at hand of it",
    "python -m benchmarks.gpu": "needs a GPU",
}
#: House style: what to write instead of some words. In prose, not in code.
STYLE = {
    r"\bGelbrich\b": "Wasserstein",
    r"\bthe luck of\b": "chance",
    r"\bhappens? to show\b": "differ in content",
    r"\b(Fréchet|FD) distance\b": "squared Wasserstein distance",
    r"\bwhat then still\b": "a plain condition",
    r"\bknows two things\b": "say which",
    r"\bby chance \d": "say what is expected by chance",
    r"\butili[sz]e": "use",
    r"\bplease\b": "nothing",
    r"\bsimply\b": "nothing",
    r"\bin order to\b": "to",
}


def _commands(page: Path) -> list[str]:
    """Commands of a page, each on one line; a line of a file that follows a `# name` is none."""
    text = page.read_text().replace(" \\\n", " ")
    lines = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    return [re.sub(" {2,}", " ", line) for line in lines if re.match(r"(dot-\w+|pip|make|python)\b", line)]


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_bytes()) <= 6 * 1024


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        made = page != ROOT / "README.md" and re.search(r"results/|operations/|reference/commands|changes", target)
        if not target.startswith("http") and not made:  # `make docs` checks what it makes
            assert (page.parent / target).exists(), target


def test_no_line_of_what_benchmarks_and_models_tell_is_longer_than_those_of_prose():
    pages = [*ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("ot_core/**/*.md"), *ROOT.glob("pipelines/**/*.md")]
    assert len(pages) > 5
    for page in pages:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            assert len(line) <= 120 or line.startswith("|"), f"{page.name}:{number}: longer than 120 characters"


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_keeps_to_the_house_style(page):
    code = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        code ^= line.startswith("```")
        assert len(line) <= 120 or line.startswith("|"), f"{page.name}:{number}: longer than 120 characters"
        if code or line.startswith("    "):
            continue
        for unwanted, instead in STYLE.items():
            assert not re.search(unwanted, line, re.IGNORECASE), f"{page.name}:{number}: {unwanted}: write {instead}"


def _images(folder: Path, photo, names, extension, seed=0):
    for index, name in enumerate(names):
        path = folder / f"{name}{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(64, 96, seed=seed + index)).save(path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, photo):
    """Images, maps and an output, as pages take them to be there."""
    folder = tmp_path_factory.mktemp("docs")
    names = [f"run7/canon/{i}" for i in range(4)]
    for name in ("natural", "photos", "originals"):
        _images(folder / name, photo, names, ".jpg")
    _images(folder / "archive", photo, names, ".png")
    for name in ("restored", "restored/run8"):
        _images(folder / name, photo, names, ".png", seed=20)
    sides = ["--target", str(folder / "natural"), "--source", str(folder / "restored/run7"), "--vae", "pixels"]
    run7 = folder / "maps/run7.safetensors"
    assert fit.main([*sides, "--map", str(run7)]) == 0
    for name in ("run8", "canon"):
        shutil.copy(run7, folder / f"maps/{name}.safetensors")
    done = ["--input", str(folder / "restored/run8"), "--map", str(run7), "--output", str(folder / "enhanced/run8")]
    assert transport.main(done) == 0
    return folder


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _commands(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_command_is_run(page, prepared, tmp_path, monkeypatch):
    """In a folder with images, where buckets are folders, and the model is a small one."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    commands, small = _commands(page), ["--vae", "pixels"]
    if page.name != "drift.md":
        shutil.rmtree("enhanced")
    if page.name == "evaluate.md":
        shutil.copytree("restored", "enhanced")
    held = re.search(r"^    # (\w+\.yaml)\n((?:    .*\n)+)", page.read_text(), re.MULTILINE)
    if held:
        settings = yaml.safe_load(held[2].replace("gs://", ""))
        Path(held[1]).write_text(yaml.safe_dump(settings))
    outputs: set[str] = set()
    for command in commands:
        if any(command.startswith(prefix) for prefix in NOT_RUN_HERE):
            continue
        words = shlex.split(command.replace("gs://", ""))
        words = ["bicubic:1" if word == "swinir.safetensors" else word for word in words]
        if "--output" in words:
            output = words[words.index("--output") + 1]
            words += ["--overwrite"] if output in outputs and "--resume" not in words else []
            outputs.add(output)
        if words[0] in ("dot-fit", "dot-evaluate", "dot-trial") and "--add_to" not in words:
            words += small
        assert JOBS[words[0]].main(words[1:]) == 0, command


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs/notebook.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    (restored, _), (_, detail) = names["scores"][1.0], names["scores"][0.0]
    assert restored > 20
    assert detail > names["scores"][1.0][1], "transported images have more detail than restored ones"
    assert (tmp_path / "map.safetensors").is_file()


def _snippet(page: str, beginning: str) -> str:
    text = (ROOT / page).read_text()
    (found,) = [text for text in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if text.startswith(beginning)]
    return found


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
        exec(
            _snippet("docs/how-to/pipelines.md", "from transforms").replace("swinir.safetensors", "bicubic:1"),
            {"pipeline": pipeline},
        )
    expected = {path.name: path.read_bytes() for path in (tmp_path / "job/images").iterdir()}
    assert len(expected) == 3 == len(pq.read_table("job/manifest-00000-of-00001.parquet"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "enhanced/images").iterdir()} == expected


def test_the_lines_without_beam_transport_an_image(tmp_path, monkeypatch, photo):
    monkeypatch.chdir(tmp_path)
    originals = [Image.fromarray(photo(64, 96, seed=index)) for index in range(3)]
    restored = [image.reduce(2).resize(image.size) for image in originals]
    snippet = _snippet("README.md", "from ot_core")
    assert _snippet("docs/how-to/pipelines.md", "from ot_core") == snippet
    names = {"originals": originals, "restored": restored, "image": restored[0]}
    assert len(snippet.partition("\n\n")[2].splitlines()) == 3
    exec(snippet, names)
    result = names["natural_looking"]
    assert (result.size, result.mode) == (restored[0].size, "RGB")
    assert (np.asarray(result) != np.asarray(restored[0])).any()


def test_the_site_builds_without_a_broken_link_and_has_every_flag_and_name(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **QUIET})
    assert (built.returncode, built.stdout) == (0, ""), built.stderr
    commands = html.unescape((tmp_path / "site/reference/commands/index.html").read_text())
    for parser in (job.parser() for job in JOBS.values()):
        assert all(
            f"<code>{flag.option_strings[0]}" in commands for flag in parser.flags().values() if flag.option_strings
        )
    python = (tmp_path / "site/reference/python/index.html").read_text()
    for package in (ot_core, transforms):
        assert all(f'id="{package.__name__}.{name}"' in python for name in package.__all__)
