from __future__ import annotations

import pickle
import subprocess
import sys
from types import ModuleType

import pytest

import ot_core
import transforms


def modules_after(statement: str) -> set[str]:
    """What a fresh interpreter has imported after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_ot_core_imports_neither_beam_nor_the_layers_above_it():
    imported = modules_after("from ot_core import *\nimport ot_core.storage, ot_core.map_file")
    assert "ot_core.autoencoder" in imported
    assert not imported & {"apache_beam", "transforms", "pipelines"}


@pytest.mark.parametrize("statement", ["import ot_core.listing", "from transforms import ListImages, WriteManifest"])
def test_listing_does_without_torch(statement: str):
    imported = modules_after(statement)
    assert "ot_core.listing" in imported
    assert not imported & {"torch", "diffusers"}


@pytest.mark.parametrize("package", [ot_core, transforms])
def test_every_public_name_is_there_and_no_other(package: ModuleType):
    imported: dict[str, object] = {}
    exec(f"from {package.__name__} import *", imported)
    assert set(package.__all__) <= set(imported)
    with pytest.raises(ImportError, match="cannot import name 'Nonsense'"):
        exec(f"from {package.__name__} import Nonsense")


@pytest.mark.parametrize("name", transforms.__all__)
def test_public_transforms_can_be_pickled_by_reference(name: str):
    public = getattr(transforms, name)
    assert pickle.loads(pickle.dumps(public)) is public


@pytest.mark.parametrize("name", ot_core.__all__)
def test_every_public_name_is_documented(name: str):
    assert (getattr(ot_core, name).__doc__ or "").strip()


def test_names_that_users_import_are_there():
    names = {"GaussianStatistics", "TransportMap", "gelbrich_distance_squared", "Autoencoder"}
    assert names <= set(ot_core.__all__)
