"""What a night tells: what it would do, and how many images came to what."""

import json
import time

import pytest
from PIL import Image

from pipelines import fit, transport


@pytest.fixture
def archive(tmp_path, photo, vae):
    for index in range(4):
        _put(tmp_path, photo, index)
    sides = ["--target", str(tmp_path / "in"), "--source", str(tmp_path / "in")]
    assert fit.main([*sides, "--map", str(tmp_path / "map.safetensors"), "--vae", vae]) == 0
    return tmp_path


def _put(root, photo, index, seed=0):
    (root / "in").mkdir(exist_ok=True)
    Image.fromarray(photo(24, 32, seed=10 * seed + index)).save(root / f"in/{index}.png")


def _night(root, *flags):
    command = ["--input", str(root / "in"), "--map", str(root / "map.safetensors"), "--output", str(root / "out")]
    code = transport.main([*command, "--resume", "--summary", str(root / "night.json"), *flags])
    return code, json.loads((root / "night.json").read_text())


def _counts(told):
    return {name: n for name, n in told["images"].items() if n and name != "read"}


def _files(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_each_night_tells_what_was_new_changed_skipped_and_failed(archive, photo):
    code, told = _night(archive)
    assert (code, told["job"], told["failures"]) == (0, "dot-transport", {})
    assert _counts(told) == {"listed": 4, "new": 4, "written": 4}

    time.sleep(0.05)
    _put(archive, photo, 4)
    (archive / "in/5.png").write_text("no image")
    _put(archive, photo, 1, seed=1)
    (archive / "out/images/2.png").unlink()
    code, told = _night(archive)
    assert (code, told["failures"]) == (0, {"not_an_image": 1})
    assert _counts(told) == {"listed": 6, "new": 2, "changed": 2, "skipped": 2, "written": 3, "failed": 1}

    code, told = _night(archive, "--max_failure_fraction", "0.1")
    assert code == 1, "told all the same"
    assert _counts(told) == {"listed": 6, "new": 1, "skipped": 5, "failed": 1}


def test_a_plan_counts_what_the_night_then_does_and_writes_nothing(archive, photo, capsys):
    code, told = _night(archive, "--plan")
    assert (code, _counts(told)) == (0, {"listed": 4, "new": 4})
    assert not (archive / "out").exists()
    assert _night(archive)[0] == 0

    time.sleep(0.05)
    _put(archive, photo, 4)
    _put(archive, photo, 1, seed=1)
    before = _files(archive / "out")
    capsys.readouterr()
    code, planned = _night(archive, "--plan")
    assert "2 images to do: 1 new, 1 changed" in capsys.readouterr().out
    assert _files(archive / "out") == before
    code, told = _night(archive)
    assert _counts(told) == {**_counts(planned), "written": 2} == {
        "listed": 5, "new": 1, "changed": 1, "skipped": 3, "written": 2
    }  # fmt: skip


def test_a_first_run_is_planned_without_a_flag_and_one_over_results_asks_for_it(archive, capsys):
    command = ["--input", str(archive / "in"), "--map", str(archive / "map.safetensors"), "--plan"]
    command += ["--output", str(archive / "out")]
    assert transport.main(command) == 0
    assert "4 images to do: 4 new, 0 changed" in capsys.readouterr().out
    assert not (archive / "out").exists()
    assert _night(archive)[0] == 0
    assert transport.main(command) == 2
    assert "holds the results of a job; add --resume" in capsys.readouterr().err
    before = _files(archive / "out")
    assert transport.main([*command, "--overwrite"]) == 0
    assert "4 images to do: 4 new, 0 changed" in capsys.readouterr().out
    assert _files(archive / "out") == before


def test_a_plan_tells_of_images_that_are_not_in_the_manifest_yet(archive):
    assert _night(archive)[0] == 0
    (archive / "out/manifest-00000-of-00001.parquet").unlink()
    assert _counts(_night(archive, "--plan")[1]) == {"listed": 4, "skipped": 4, "recovered": 4}


def test_a_plan_is_refused_where_resuming_would_be(archive, capsys):
    assert _night(archive)[0] == 0
    capsys.readouterr()
    assert _night(archive, "--plan", "--alpha", "0.5")[0] == 2
    assert "was made with alpha [0.0], not [0.5]" in capsys.readouterr().err


def test_a_summary_that_can_not_be_written_is_found_before_any_work(archive, capsys):
    (archive / "file").write_text("")
    command = ["--input", str(archive / "in"), "--map", str(archive / "map.safetensors"), "--resume"]
    command += ["--output", str(archive / "out"), "--summary", str(archive / "file/night.json")]
    assert transport.main(command) == 2
    assert "not writable" in capsys.readouterr().err
    assert not (archive / "out").exists()
