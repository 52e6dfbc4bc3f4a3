"""The pages of deploy/ lead somewhere, and tell of every file beside them."""

import re
import shlex
from pathlib import Path

import pytest

from pipelines import options, transport

DEPLOY = Path(__file__).parents[2] / "deploy"
PAGES = sorted(DEPLOY.rglob("README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_link_leads_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text()) if not link.startswith("http")]
    assert links
    for link in links:
        assert (page.parent / link.partition("#")[0]).exists(), link


def test_the_index_has_every_folder():
    folders = {page.parent.name for page in PAGES} - {"deploy"}
    assert folders == set(re.findall(r"\]\((\w+)/README\.md\)", (DEPLOY / "README.md").read_text()))


def test_the_command_for_one_machine_is_one():
    (line,) = [line for line in (DEPLOY / "README.md").read_text().splitlines() if line.startswith("    dot-transport")]
    words = [word for word in shlex.split(line)[1:] if word != "..."]
    _, beam_options = options.parse(transport.parser(), ["--input=i", "--map=m", "--output=o", *words])
    given = beam_options.get_all_options()
    assert (given["direct_num_workers"], given["direct_running_mode"]) == (4, "multi_processing")
