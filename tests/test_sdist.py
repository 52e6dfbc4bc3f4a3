"""What `--setup_file ./setup.py` sends to workers: a source distribution with everything in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from apache_beam.runners.portability.stager import Stager

ROOT = Path(__file__).parents[1]
PACKAGES = ("ot_core", "transforms", "pipelines")


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_workers_get_every_file_and_the_default_autoencoder_loads_from_it(tmp_path):
    # A copy, since setuptools leaves its notes beside the sources.
    checkout, built, installed = tmp_path / "checkout", tmp_path / "built", tmp_path / "installed"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    expected = {f"{package}/{name}" for package in PACKAGES for name in _files(checkout / package)}
    assert {"ot_core/py.typed", "transforms/py.typed", "pipelines/py.typed"} < expected

    built.mkdir()
    archive = Stager._build_setup_package(str(checkout / "setup.py"), str(built))  # as Beam does it
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", installed]
    subprocess.run([sys.executable, "-m", *map(str, install), archive], check=True, cwd=tmp_path)
    assert expected <= _files(installed), expected - _files(installed)

    program = (
        "import ot_core, pipelines.fit, transforms, torch\n"
        "vae = ot_core.load_autoencoder(None)\n"
        "print(ot_core.__file__, pipelines.__file__, transforms.__file__)\n"
        "print(vae.decode(vae.encode(torch.zeros(1, 3, 64, 64))).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(installed)) == 3
    assert "[1, 3, 64, 64]" in done.stdout
