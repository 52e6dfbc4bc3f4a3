"""Whatever a key says, nothing is written outside the output's root."""

import os
from pathlib import Path

import apache_beam as beam
import fsspec
import numpy as np
import pytest
from apache_beam.utils.windowed_value import WindowedValue
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ot_core import DecodedImage
from ot_core.layout import OutputLayout
from transforms.elements import Failure, ImageRef, LoadedImage, TransportedImage
from transforms.write_images import _WriteImageDoFn

PIXELS = np.zeros((2, 3, 3), np.uint8)
PIECES = [
    "..", ".", "", "/", "\\", "a", "é", "~", "$HOME", "%2e%2e", "%2F", "::", ":", "C:", "file:", "gs://b/", "memory://",
    "*", "?", "[a]", "#", "\0", "\n", " ", "\udcff", "x" * 300, "a.png", "-rf", "|", "con", "\u202e", ".git",
]  # fmt: skip
KEYS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), min_size=1, max_size=6).flatmap(
    lambda parts: st.sampled_from(["".join(parts), "/".join(parts)])
)


def _write(root: str, key: str) -> list:
    loaded = LoadedImage(ImageRef(key, "u"), DecodedImage(PIXELS), 0.0)
    transported = TransportedImage(loaded, (PIXELS,), 0.0)
    writer = _WriteImageDoFn(OutputLayout.of(root, [0.0]), 95)
    writer.start_bundle()
    outputs = [*writer.process(transported), *writer.finish_bundle()]
    values = [output.value if isinstance(output, beam.pvalue.TaggedOutput) else output for output in outputs]
    return [value.value if isinstance(value, WindowedValue) else value for value in values]


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_on_a_local_disk(tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "out"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    @settings(max_examples=300)
    @example("../../escaped")
    @example("/etc/escaped")
    @example("a/../../../escaped")
    @given(KEYS)
    def check(key: str) -> None:
        (record,) = _write(f"{prefix}{root}", key)
        written = [path for path in tmp_path.rglob("*") if path.is_file()]
        if isinstance(record, Failure):
            assert not written
        else:
            assert written == [root / "images" / f"{key}.png"]
            assert record.output_uri == f"{prefix}{root}/images/{key}.png"
            os.remove(written[0])

    check()


def test_in_memory(memory: str):
    root = f"{memory}/out"

    @settings(max_examples=300)
    @given(KEYS)
    def check(key: str) -> None:
        fs = fsspec.filesystem("memory")
        before = set(fs.store)
        (record,) = _write(root, key)
        written = set(fs.store) - before
        if isinstance(record, Failure):
            assert not written
        else:
            assert written == {"/" + root.removeprefix("memory://").lstrip("/") + f"/images/{key}.png"}
            fs.store.pop(written.pop())

    check()
