"""Fixtures of the engines, and of what they are given to do.

By default 30 small images and a tiny autoencoder. `DOT_ENGINE_IMAGES=300` takes so many of the evaluation photographs
and the default autoencoder instead: `DOT_ENGINE_IMAGES=300 pytest tests/engines --durations=0`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import fit, transport
from tests.engines import engines


@dataclass(frozen=True)
class Jobs:
    """The two jobs over one archive.

    Attributes:
        root: folder of the archive: `in`, whose two halves are `target` and `source`.
        keys: of all images.
        options: flags that both jobs take.
    """

    root: Path
    keys: frozenset[str]
    options: tuple[str, ...]

    def fit(self, map_url: str, *flags: str) -> int:
        sides = ["--target", str(self.root / "target"), "--source", str(self.root / "source")]
        return fit.main([*sides, "--map", map_url, *self.options, *flags])

    def transport(self, map_url: str, output: Path, *flags: str) -> int:
        inputs = ["--input", str(self.root / "in"), "--map", map_url, "--output", str(output)]
        return transport.main([*inputs, *self.options, *flags])


@pytest.fixture(scope="module")
def jobs(request, tmp_path_factory, photo) -> Jobs:
    root, asked = tmp_path_factory.mktemp("archive"), os.environ.get("DOT_ENGINE_IMAGES")
    (root / "in").mkdir()
    if asked:
        photos = sorted((request.getfixturevalue("shared") / "data" / "photos").rglob("*.jpg"))[: int(asked)]
        for path in photos:
            shutil.copy(path, root / "in")
    else:
        for index in range(30):
            Image.fromarray(photo(64 + 8 * (index % 5), 96, seed=index)).save(root / "in" / f"{index:02}.png")
    paths = sorted((root / "in").iterdir())
    for side, half in (("target", paths[::2]), ("source", paths[1::2])):
        (root / side).mkdir()
        for path in half:
            shutil.copy(path, root / side)
    options = () if asked else ("--vae", str(request.getfixturevalue("vae")))
    return Jobs(root, frozenset(path.stem for path in paths), options)


@pytest.fixture(scope="module")
def map_url(jobs) -> str:
    """Fitted by the local runner."""
    url = str(jobs.root / "map.safetensors")
    assert jobs.fit(url) == 0
    return url


@pytest.fixture(scope="module")
def images(jobs, map_url) -> dict[str, bytes]:
    """Transported by the local runner, by name."""
    assert jobs.transport(map_url, jobs.root / "out") == 0
    return written(jobs.root / "out")


def written(output: Path) -> dict[str, bytes]:
    """The images of an output that have their final names, by name."""
    return {path.name: path.read_bytes() for path in (output / "images").iterdir() if path.name[0] != "."}


def manifest(output: Path) -> list[dict[str, object]]:
    """Its rows, as any run of the job gives them, in order of their keys."""
    rows = pq.read_table(output / "manifest-00000-of-00001.parquet").to_pylist()
    left_out = ("seconds", "output_uri")
    rows = [{name: value for name, value in row.items() if name not in left_out} for row in rows]
    return sorted(rows, key=lambda row: row["key"])


@pytest.fixture(scope="module", params=engines.ENGINES)
def engine(request, tmp_path_factory) -> Iterator[engines.Engine]:
    with engines.running(request.param, tmp_path_factory.mktemp("engine")) as running:
        yield running
