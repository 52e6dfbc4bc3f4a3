"""No file outside of an output is ever read as its result, written or deleted, whatever output and keys are called."""

from __future__ import annotations

import os
import posixpath
import random
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.core import url_to_fs

from ot_core import ImageError, folders, storage
from ot_core.errors import BadUrlError

#: What names are made of: of everything that some library reads as more than a character.
PIECES = [
    *[
        "..",
        ".",
        "/",
        "\\",
        "::",
        ":",
        "//",
        "~",
        "*",
        "**",
        "?",
        "[",
        "]",
        "[12]",
        "[!x]",
        "{a,b}",
        "#",
        "%",
        "%2e%2e",
    ],
    *["%2F", "&", "+", "=", ";", "$HOME", "@", " ", "\0", "\n", "\x7f", "\x85", "\u202e", "\ud800", "\udcff"],
    *[
        "memory:",
        "file:",
        "s3:",
        "simplecache",
        "?versionId=1",
        "a",
        "b",
        "1",
        "2",
        "é",
        "漢",
        "e\u0301",
        "-",
        "_",
        ".png",
    ],
]
ROOTS = ["/data/out", "/data/run[12]", "/data/*", "/data/a?b", "/data/~", "/data/#%20&+ ", "/", "memory://run[1]*"]
ROOTS += ["gs://bucket/run[12]", "s3://bucket", "s3://bucket/a b#?c", "file:///data/%41", "http://host/a", "memory://"]


def _random_key(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(1, 6)))


def test_of_a_million_random_keys_each_is_refused_or_is_its_own_path_below_the_root():
    rng = random.Random(0)
    accepted = 0
    for i in range(1_000_000):
        key, root = _random_key(rng), ROOTS[i % len(ROOTS)]
        try:
            storage.check_key(key)
        except ImageError:
            continue
        accepted += 1
        url = storage.join(root, "images", f"{key}.png")
        base = storage.join(root, "images") + "/"
        # It says the key again, so that no two keys share a file; and no part of it leads up.
        assert url.startswith(base)
        assert url[len(base) : -4] == key
        assert posixpath.normpath(f"/x/{key}") == f"/x/{key}"
    assert 100_000 < accepted < 900_000


@pytest.mark.parametrize("root", [root for root in ROOTS if not root.startswith("http")])
def test_a_file_system_is_asked_for_just_that_path(root: str, gcs: str, s3: str):
    rng = random.Random(root)
    fs, base = url_to_fs(storage.join(root, "images"))
    for _ in range(3_000):
        key = _random_key(rng)
        try:
            storage.check_key(key)
        except ImageError:
            continue
        found, path = storage.filesystem(storage.join(root, "images", f"{key}.png"))
        assert found is fs
        assert path == f"{base}/{key}.png"


def _names(count: int, utf8: bool) -> list[str]:
    """Names of outputs, many of which match others when they are taken for a pattern."""
    rng = random.Random(1)
    tame = [
        "a",
        "b",
        "1",
        "2",
        "[12]",
        "[ab]",
        "[!a]",
        "*",
        "?",
        "**",
        "#",
        "%41",
        "&",
        "+",
        "~",
        "..",
        " ",
        "é",
        "{a,b}",
    ]
    names = {"run1", "run[12]", "run?", "r*", "*", "?", "[", "]", "~", "...", "# %", "run1 ", "a#1", "a?generation=1"}
    while len(names) < count:
        names.add("".join(rng.choices(tame, k=rng.randint(1, 3))))
    names -= {".", ".."}
    return sorted(names) if utf8 else sorted([*names, "\udcff", "a\udc80*"])


def _content(folder: str) -> dict[str, bytes]:
    fs, path = url_to_fs(folder)
    found = {}
    for current, _, files in fs.walk(path):
        for name in files:
            full = f"{current.rstrip('/')}/{name}"
            found[full[len(path) :]] = fs.cat_file(full)
    return found


@pytest.mark.parametrize(("kind", "count"), [("path", 120), ("memory", 60), ("gs", 12), ("s3", 12)])
def test_whatever_is_done_to_one_output_leaves_its_neighbours(
    kind: str, count: int, tmp_path: Path, request: pytest.FixtureRequest
):
    fixtures = {"memory": "memory", "gs": "gcs", "s3": "s3"}
    top = str(tmp_path / "top") if kind == "path" else str(request.getfixturevalue(fixtures[kind])) + "/top"
    (tmp_path / "local").write_bytes(b"new")
    names = _names(count, utf8=kind != "path")
    for name in names:
        for file in ("images/a.png", "manifest-00000-of-00001.parquet", f".{'0' * 32}.tmp"):
            storage.write_bytes(storage.join(top, name, file), name.encode("utf-8", "surrogateescape"))
    before = _content(top)
    for name in names:
        output, mine = storage.join(top, name), f"/{name}/"
        others = {path: data for path, data in before.items() if not path.startswith(mine)}
        said = name.encode("utf-8", "surrogateescape")
        assert set(storage.children(output)) >= {"images", "manifest-00000-of-00001.parquet"}
        assert storage.read_bytes(storage.join(output, "images", "a.png")) == said
        with storage.open_file(storage.join(output, "images", "a.png")) as file:
            assert file.read() == said
        storage.check_writable(output)
        storage.write_bytes(storage.join(output, "images", f"{name}.png"), b"new")
        storage.upload(str(tmp_path / "local"), storage.join(output, "images", "[a]*?.png"))
        storage.remove_temporary(output)
        storage.remove(storage.join(output, "images", "[a]*?.png"))
        storage.remove(storage.join(output, "images", "*"))
        after = _content(top)
        assert {path: data for path, data in after.items() if not path.startswith(mine)} == others
        assert after[f"{mine}images/{name}.png"] == b"new"
        assert f"{mine}images/a.png" in after
        storage.remove_folder(output)
        assert _content(top) == others
        before = others
    assert before == {}


OTHERS = ["s3://bucket/a?versionId=1/b.png", "az://container/a.png?versionid=1"]
OTHERS += [f"az://container/{path}" for path in ("out?", "out#", "out?#", "a?/b#", "a?x#y", "a;b?")]


@pytest.mark.parametrize("url", OTHERS)
def test_what_libraries_cut_off_a_path_is_refused(url: str, az: str):
    for use in (storage.read_bytes, storage.open_file, storage.children, storage.remove, storage.exists):
        with pytest.raises(BadUrlError, match="expected no"):
            use(url)
    with pytest.raises(BadUrlError, match="expected no"):
        storage.write_bytes(url, b"x")


def test_a_folder_that_azures_library_takes_for_another_is_told_and_the_rest_listed(az: str):
    root = f"{az}/{uuid.uuid4().hex[:8]}"
    for path in ("sub/a.png", "sub?/b.png", "e?f/c.png", "e#f/d.png"):
        storage.write_bytes(f"{root}/{path}", b"x")
    found = list(folders.below(*storage.filesystem(root)))
    assert {posixpath.basename(entry.path) for entry in found if not entry.is_folder} == {"a.png", "c.png", "d.png"}
    (failed,) = (entry for entry in found if entry.error)
    assert failed.path.endswith("/sub?")
    assert "expected no ? or # at the end" in str(failed.error)


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_bytes(b"x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "kept")
    storage.remove_folder(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "kept" / "a").read_bytes() == b"x"
    assert os.listdir(tmp_path) == ["kept"]


def test_moving_on_a_file_system_that_takes_paths_for_patterns_is_literal(tmp_path: Path):
    fs = fsspec.filesystem("dir", path=str(tmp_path), fo=None, target_protocol="file")
    (tmp_path / "out1").mkdir()
    (tmp_path / "out1" / "a").write_bytes(b"old")
    (tmp_path / "out[1]").mkdir()
    storage._put_and_rename(fs, "out[1]/a", lambda fs, path: fs.pipe_file(path, b"new"))
    assert (tmp_path / "out[1]" / "a").read_bytes() == b"new"
    assert (tmp_path / "out1" / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path / "out[1]") == ["a"]
