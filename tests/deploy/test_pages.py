"""The pages of deploy/ lead somewhere, tell of every file beside them, and are true of what runs today."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ot_core import Cause
from pipelines import evaluate, fit, maps, transport
from transforms import metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
PAGES = sorted(DEPLOY.rglob("README.md"))
OPERATING = (DEPLOY / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_link_leads_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text()) if not link.startswith("http")]
    assert links
    for link in links:
        assert (page.parent / link.partition("#")[0]).exists(), link


def test_the_index_has_every_folder():
    folders = {page.parent.name for page in PAGES} - {"deploy"}
    assert folders == set(re.findall(r"\]\((\w+)/README\.md\)", OPERATING))


def _section(title: str) -> str:
    return OPERATING.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_cause_of_failure_has_its_row():
    rows = [re.findall(r"[^|]+", line) for line in _section("Failures").splitlines() if line.startswith("| `")]
    assert [cells[0].strip(" `") for cells in rows] == [str(cause) for cause in Cause]
    assert all(len(cells) == 3 and all(cell.strip() for cell in cells) for cells in rows)


def test_every_metric_is_told_of():
    constants = {value for name, value in vars(metrics).items() if name.isupper()}
    constants -= {metrics.METRICS_NAMESPACE, metrics.THROUGH_MODEL}  # no metrics of Beam
    names = {value for value in constants if str(value).islower()}  # others are settings, such as DOT_TALLY
    assert len(names) > 20
    assert names <= set(re.findall(r"`(\w+)(?:<\w+>)?`", _section("Metrics")))
    assert f"namespace `{metrics.METRICS_NAMESPACE}`" in _section("Metrics")


def test_the_commands_run_in_the_order_of_the_page(tmp_path, photo, monkeypatch, capfd):
    jobs = {"dot-fit": fit, "dot-transport": transport, "dot-evaluate": evaluate, "dot-map": maps}
    for index in range(4):
        for side, seed in (("natural", 0), ("restored", 50)):
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(photo(64, 64, seed=seed + index)).save(tmp_path / side / f"{index}.png")
    (tmp_path / "restored/4.png").write_bytes((tmp_path / "restored/0.png").read_bytes()[:-500])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(DEPLOY.parent))
    printed = {}
    for line in [line[4:] for line in OPERATING.replace("\\\n    ", "").splitlines() if line.startswith("    ")]:
        program, *words = shlex.split(line)
        if program in jobs:
            if "--max_drift" in words:
                for index in range(5, 45):
                    Image.effect_noise((64, 64), 100 + index).convert("RGB").save(tmp_path / f"restored/{index}.png")
            # One of the five images is cut off, which is more than the page allows; those of noise drifted too far.
            expected = int("--max_failure_fraction" in words or "--max_drift" in words)
            assert jobs[program].main(words) == expected, line
        else:
            command = line.removeprefix("0 2 * * * ")  # what cron runs
            assert subprocess.run(command, shell=True).returncode == 0, line
        printed[line] = capfd.readouterr().out
    assert {line.split()[0] for line in printed} == {*jobs, "0", "python", "echo", "sha256sum", "grep"}
    out = {
        word: next(said for line, said in printed.items() if word in line)
        for word in ("0 2 * * *", "--plan", "python", "sha256sum", "grep")
    }
    assert "4 images were there already" in out["0 2 * * *"]
    assert "1 images to do: 1 new, 0 changed" in out["--plan"]
    assert "'key': '4'" in out["python"]
    assert "'error_type': 'damaged'" in out["python"]
    assert out["sha256sum"].split()[0] in out["grep"]
    assert json.loads((tmp_path / "reports/night.json").read_text())["images"]["skipped"] == 4
