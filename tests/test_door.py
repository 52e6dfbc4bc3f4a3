"""Every read and write of what users name goes through `ot_core.storage`, which retries and takes paths literally."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for package in ("ot_core", "transforms", "pipelines") for path in (ROOT / package).glob("*.py"))
#: The door and its rooms.
DOOR = {"ot_core/storage.py", "ot_core/web.py", "ot_core/folders.py"}
#: Names of fsspec that touch no file.
HARMLESS = {"LocalFileSystem", "glob_translate"}
#: Methods of file systems that take their path for a pattern, at least on some stores.
PATTERNS = {"cat", "copy", "cp", "delete", "expand_path", "get", "glob", "move", "mv", "put", "rename", "rm"}
OF_OS = {"link", "listdir", "mkdir", "makedirs", "open", "remove", "rename", "replace", "rmdir", "scandir", "symlink"}
OF_OS |= {"unlink", "walk"}
OF_PATHS = {"glob", "iterdir", "open", "read_bytes", "read_text", "rglob", "unlink", "write_bytes", "write_text"}
OTHERS = {"fsspec.open", "np.load", "np.save", "pq.read_schema", "pq.read_table", "torch.load", "torch.save"}
#: What may touch files all the same, and why: single calls, or a whole module.
ALLOWED = {
    "ot_core/features.py torch.load": "of bytes that the door read",
    "ot_core/features.py torch.save": "to bytes that the door writes",
    "ot_core/map_file.py path.write_bytes": "a temporary folder, for a library that reads paths only",
    "ot_core/restorer_files.py path.write_bytes": "likewise",
    "pipelines/command.py": "the process's own streams, and /proc",
    "ot_core/encoding.py open": "a file in memory, for what a codec writes",
    "pipelines/local_workers.py Path(f'/proc/{process}/environ').read_bytes": "the system's own",
    "ot_core/device.py _DRIVER.read_text": "the system's own, which tells the driver's version",
    "ot_core/hardware.py os.open": "locks, by which processes share out a machine's GPUs",
    "pipelines/flags.py": "Beam's own source",
    "transforms/metrics.py": "a temporary folder, in which processes leave their tallies",
    "pipelines/demo.py PHOTOS.glob": "the bundled photographs",
}


def _calls(path: Path) -> Iterator[tuple[str, str, str]]:
    """Of each call: what it is called on, as far as that is a name, the function's name, and both."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            whole = ast.unparse(node.func)
            if isinstance(node.func, ast.Attribute):
                yield ast.unparse(node.func.value), node.func.attr, whole
            elif isinstance(node.func, ast.Name):
                yield "", node.func.id, whole


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_only_the_door_uses_fsspec():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used = {alias.name for alias in node.names if alias.name.split(".")[0] == "fsspec"}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fsspec":
                used = {alias.name for alias in node.names} - HARMLESS
            else:
                continue
            assert not used or _name(path) in DOOR, f"{_name(path)}: use ot_core.storage instead of {used} of fsspec"


def test_nothing_else_touches_a_file():
    found = set()
    for path in MODULES:
        if _name(path) in DOOR:
            continue
        for owner, function, whole in _calls(path):
            if (
                (owner, function) == ("", "open")
                or (owner == "os" and function in OF_OS)
                or owner == "shutil"
                or whole in ("glob.glob", "glob.iglob", *OTHERS)
                or (function in OF_PATHS and owner not in ("", "storage", "os", "Image", "tarfile", "zipfile"))
            ) or (whole == "Image.open" and "BytesIO" not in path.read_text()):
                found.add(_name(path) if _name(path) in ALLOWED else f"{_name(path)} {whole}")
    assert sorted(found - set(ALLOWED)) == [], "use ot_core.storage"
    assert sorted(set(ALLOWED) - found) == [], "allowed, but not there any more"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_path_is_taken_for_a_pattern(path: Path):
    taken = {whole for owner, function, whole in _calls(path) if owner.endswith("fs") and function in PATTERNS}
    # Moving is guarded where a file system would take the path for a pattern.
    assert taken <= ({"fs.mv"} if _name(path) == "ot_core/storage.py" else set())
