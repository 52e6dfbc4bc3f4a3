"""Damaged files can't hurt: see tests/fuzz_images.py. $DOT_FUZZ_CASES runs more of them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).parents[1] / "fuzz_images.py"


@pytest.mark.timeout(7200)
def test_damaged_files_of_every_format_give_an_image_or_a_named_error():
    cases = os.environ.get("DOT_FUZZ_CASES", "5000")
    run = subprocess.run([sys.executable, str(FUZZER), cases], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    outcomes = ast.literal_eval(run.stdout)
    assert sum(outcomes.values()) == int(cases)
    assert outcomes["image"] > int(cases) / 20
    assert min(outcomes["damaged"], outcomes["not_an_image"]) > int(cases) / 50
