"""The pages of deploy/ lead somewhere, tell of every file beside them, and are true of what runs today."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ot_core import Cause
from pipelines import evaluate, fit, options, transport
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


def test_the_command_for_one_machine_is_one():
    (line,) = [line for line in OPERATING.splitlines() if line.startswith("    dot-transport ... ")]
    words = [word for word in shlex.split(line)[1:] if word != "..."]
    _, beam_options = options.parse(transport.parser(), ["--input=i", "--map=m", "--output=o", *words])
    given = beam_options.get_all_options()
    assert (given["direct_num_workers"], given["direct_running_mode"]) == (4, "multi_processing")


def _section(title: str) -> str:
    return OPERATING.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_cause_of_failure_has_its_row():
    rows = [re.findall(r"[^|]+", line) for line in _section("Failures").splitlines() if line.startswith("| `")]
    assert [cells[0].strip(" `") for cells in rows] == [str(cause) for cause in Cause]
    assert all(len(cells) == 3 and all(cell.strip() for cell in cells) for cells in rows)


def test_every_metric_is_told_of():
    names = {value for name, value in vars(metrics).items() if name.isupper() and name != "METRICS_NAMESPACE"}
    assert len(names) > 20
    assert names <= set(re.findall(r"`(\w+)`", _section("Metrics")))
    assert f"namespace `{metrics.METRICS_NAMESPACE}`" in _section("Metrics")


def test_the_commands_run_in_the_order_of_the_page(tmp_path, photo, monkeypatch, capfd):
    jobs = {"dot-fit": fit, "dot-transport": transport, "dot-evaluate": evaluate}
    lines = [line[4:] for line in OPERATING.splitlines() if line.startswith("    ") and " ... " not in line]
    for index in range(4):
        for side, seed in (("natural", 0), ("restored", 50)):
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(photo(64, 64, seed=seed + index)).save(tmp_path / side / f"{index}.png")
    (tmp_path / "restored/4.png").write_bytes((tmp_path / "restored/0.png").read_bytes()[:-500])
    monkeypatch.chdir(tmp_path)
    printed = {}
    for line in lines:
        program, *words = shlex.split(line)
        if program in jobs:
            # One of the five images is cut off, which is more than the page allows.
            expected = int("--max_failure_fraction" in words)
            assert jobs[program].main(words) == expected, line
        else:
            command = [sys.executable, *words] if program == "python" else [program, *words]
            assert subprocess.run(command, timeout=60).returncode == 0, line
        printed[line] = capfd.readouterr().out
    assert {line.split()[0] for line in lines} == {*jobs, "python", "sha256sum", "grep"}
    (failures,) = [out for line, out in printed.items() if line.startswith("python")]
    assert "'key': '4'" in failures
    assert "'error_type': 'damaged'" in failures
    (made_by,) = [out.split()[0] for line, out in printed.items() if line.startswith("sha256sum")]
    assert made_by in printed["grep map_sha256 enhanced/run7/job.json"]
    assert "1 images to do: 1 new, 0 changed" in next(out for line, out in printed.items() if "--plan" in line)
    assert '"written": 4' in (tmp_path / "reports/night.json").read_text()
