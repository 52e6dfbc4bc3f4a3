from __future__ import annotations

import subprocess
import sys

import pytest

import ot_core


def modules_after(statement: str) -> set[str]:
    """What a fresh interpreter has imported after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_ot_core_imports_neither_beam_nor_the_layers_above_it():
    imported = modules_after("from ot_core import *\nimport ot_core.storage, ot_core.map_file")
    assert "ot_core.autoencoder" in imported
    assert not imported & {"apache_beam", "transforms", "pipelines"}


@pytest.mark.parametrize("name", ot_core.__all__)
def test_every_public_name_is_documented(name: str):
    assert (getattr(ot_core, name).__doc__ or "").strip()


def test_names_that_users_import_are_there():
    names = {"GaussianStatistics", "TransportMap", "gelbrich_distance_squared", "Autoencoder"}
    assert names <= set(ot_core.__all__)
