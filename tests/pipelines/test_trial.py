"""One command tells from a user's own photographs whether this would help."""

import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ot_core import read_map, storage
from pipelines import transport, trial
from pipelines.sheet import shown

RESTORER = "tests.pipelines.restorers:median"
#: Names of images that can't be used.
BAD = {"tiny": "too_small", "damaged": "damaged", "empty": "empty_file"}


@pytest.fixture(scope="module")
def photos(photo, tmp_path_factory):
    """Photographs: large, small, odd, grey and transparent ones, in folders; and what is none."""
    root = tmp_path_factory.mktemp("photos")
    (root / "more [1]").mkdir()
    for index in range(9):
        image = Image.fromarray(photo(57 + 12 * (index % 3), 83 + 30 * (index % 2), seed=index))
        image = image.convert("L") if index == 3 else image
        if index == 5:
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(root / ("more [1]" if index % 3 else "") / f"{index} #.png")
    Image.new("RGB", (3, 2)).save(root / "tiny.png")
    (root / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 but no more")
    (root / "empty.png").write_bytes(b"")
    return root


def _trial(photos, report, *arguments, vae="pixels"):
    given = ["--natural", str(photos), "--report", str(report), "--crop", "64", "--vae", vae]
    return trial.main([*given, *arguments])


@pytest.fixture(scope="module")
def enlarged(photos, tmp_path_factory):
    """The report of a trial of a reduction, which bicubic enlargement brings back."""
    report = tmp_path_factory.mktemp("enlarged") / "report [2]"
    assert _trial(photos, report, "--degrade", "bicubic:4") == 0
    return report


def _keys(folder):
    return {str(path.relative_to(folder).with_suffix("")): path for path in folder.rglob("*.png")}


def test_it_fits_on_one_half_and_tries_the_other(enlarged):
    fitted, tried = (
        {json.loads(line)["key"] for line in (enlarged / "work/natural" / f"{name}.jsonl").read_text().splitlines()}
        for name in ("fitted", "tried")
    )
    assert (len(fitted), len(tried)) == (5, 4)
    assert fitted | tried == _keys(enlarged / "work/natural/images").keys()
    assert not fitted & tried
    for alpha in ("0.00", "0.50", "1.00"):
        assert _keys(enlarged / f"work/enhanced/images/alpha={alpha}").keys() == tried


def test_photographs_are_cropped_to_what_can_be_brought_back(enlarged):
    sizes = {Image.open(path).size for path in _keys(enlarged / "work/natural/images").values()}
    assert sizes == {(64, 56), (64, 64)}
    for key, path in _keys(enlarged / "work/degraded/images").items():
        natural = Image.open(enlarged / f"work/natural/images/{key}.png")
        assert tuple(4 * side for side in Image.open(path).size) == natural.size
        assert (natural.mode == "L") == (key == "3 #")


def test_what_cannot_be_used_is_a_failure_and_costs_nothing_else(enlarged):
    rows = pq.read_table(enlarged / "photographs.failures-00000-of-00001.parquet").to_pylist()
    assert {row["key"]: row["error_type"] for row in rows} == BAD
    assert pq.read_table(enlarged / "failures-00000-of-00001.parquet").num_rows == 0


def test_the_report_compares_each_alpha_with_the_restored_and_the_map_is_ready(enlarged, tmp_path):
    rows = json.loads((enlarged / "totals.json").read_text())["candidates"]
    assert [(row["alpha"], row["count"]) for row in rows] == [(1.0, 4), (0.5, 4), (0.0, 4)]
    assert "<h1>" in (enlarged / "report.html").read_text()
    transported = ["--input", str(enlarged / "work/degraded/images"), "--map", str(enlarged / "map.safetensors")]
    assert transport.main([*transported, "--restorer", "bicubic:4", "--output", str(tmp_path)]) == 0
    mine, its = _keys(tmp_path / "images"), _keys(enlarged / "work/enhanced/images/alpha=0.00")
    assert its.keys() < mine.keys()
    assert all(mine[key].read_bytes() == path.read_bytes() for key, path in its.items())


def test_the_sheet_has_a_column_for_each_step_and_shows_images_of_all_degrees_of_change(enlarged):
    with Image.open(enlarged / "before-after.png") as sheet:
        assert sheet.width > 5 * 256
        assert sheet.height > 4 * 256
    changes = {str(index): float(index) for index in range(16)}
    assert list(shown(changes)) == ["2", "6", "10", "14"]
    assert list(shown({"b": 1.0, "a": 2.0})) == ["b", "a"]


def test_a_second_run_does_the_same(photos, tmp_path, capsys):
    arguments = ["--degrade", "noise:20-40", "--restorer", RESTORER, "--max_images", "6"]
    for name in ("a", "b"):
        assert _trial(photos, tmp_path / name, *arguments) == 0
    told = capsys.readouterr().out
    assert any(verdict in told for verdict in ("images: at alpha", "Keep the restored images", "Undecided: at alpha"))
    assert "PSNR" in told
    assert "flatters" not in told
    a, b = (read_map(str(tmp_path / name / "map.safetensors")) for name in ("a", "b"))
    np.testing.assert_allclose(a.map.matrix, b.map.matrix, rtol=0, atol=1e-12)
    assert (a.origin.restorer, a.origin.degradation) == (RESTORER, "noise:20-40")
    first, second = (_keys(tmp_path / name / "work") for name in ("a", "b"))
    assert first.keys() == second.keys()
    for key, path in first.items():
        mine, other = (np.asarray(Image.open(found)).astype(int) for found in (path, second[key]))
        # The map's last digits depend on the order in which statistics arrive.
        assert np.abs(mine - other).max() <= int("enhanced" in key)


def test_a_trial_is_replaced_only_when_told_and_nothing_else_ever(photos, enlarged, tmp_path, capsys):
    report = tmp_path / "report"
    shutil.copytree(enlarged, report)
    (report / "mine.txt").write_text("mine")
    stale = report / "work/natural/images/stale.png"
    Image.new("RGB", (64, 64)).save(stale)
    capsys.readouterr()
    assert _trial(photos, report, "--degrade", "jpeg:10") == 2
    assert "holds a trial" in capsys.readouterr().err
    assert _trial(photos, report, "--degrade", "jpeg:10", "--overwrite") == 0
    assert json.loads((report / "trial.json").read_text())["degrade"] == "jpeg:10"
    assert (report / "mine.txt").read_text() == "mine"
    assert not stale.exists()
    for name in ("map.safetensors", "trial.json"):
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        (other / name).write_bytes(b"precious")
        capsys.readouterr()
        assert _trial(photos, other, "--degrade", "jpeg:10", "--overwrite") == 2
        assert f"{name} there isn't part of a trial" in capsys.readouterr().err
        assert [path.read_bytes() for path in other.iterdir()] == [b"precious"]


def test_too_few_photographs_are_told_in_one_line(photos, tmp_path, capsys):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("0 #.png", "tiny.png", "empty.png"):
        shutil.copy(photos / name, few)
    for extra in ("damaged.jpg", None):
        capsys.readouterr()
        assert _trial(few, tmp_path / "report", "--degrade", "bicubic:4", "--max_failure_fraction", "1") == 2
        told = capsys.readouterr().err
        assert told.splitlines()[-1].startswith("dot-trial: error: --natural: ")
        assert "expected 4 or more" in told
        if extra:
            assert not (tmp_path / "report/work").exists()
            shutil.copy(photos / extra, few)
    assert "--natural: 1 photographs could be used" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--degrade", "fog:3"], "fog:3"),
        (["--degrade", "bicubic:2", "--restorer", "bicubic:4"], "needs a restorer of scale 2"),
        (["--degrade", "jpeg:10", "--restorer", "nothing.safetensors"], "nothing.safetensors"),
        (["--degrade", "jpeg:10", "--max_images", "3"], "--max_images"),
        (["--degrade", "jpeg:10", "--sumary", "x"], "--sumary"),
        ([], "--degrade"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(photos, tmp_path, capsys, arguments, said):
    assert _trial(photos, tmp_path / "report", *arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("dot-trial: error: ")
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_a_report_within_the_photographs_is_refused(photos, capsys):
    assert _trial(photos, photos / "report", "--degrade", "jpeg:10") == 2
    assert "a second run would read its results" in capsys.readouterr().err


def test_images_that_the_restorer_cannot_restore_are_told_and_decide_the_exit_code(photos, tmp_path, capsys):
    restorer = ["--restorer", "tests.pipelines.restorers:only_square"]
    arguments = ["--degrade", "jpeg:10", *restorer, "--max_failure_fraction", "0.3"]
    assert _trial(photos, tmp_path / "some", *arguments) == 1
    told = capsys.readouterr()
    assert "dot-trial: error: transport: 2 of 5 images failed" in told.err
    assert "2 failures in the step transport" in told.out
    rows = pq.read_table(tmp_path / "some/work/enhanced/failures-00000-of-00001.parquet").to_pylist()
    assert [row["stage"] for row in rows] == ["restore", "restore"]


def test_a_map_that_cannot_be_fitted_ends_the_trial(photos, tmp_path, capsys):
    restorer = ["--restorer", "tests.pipelines.restorers:only_large"]
    assert _trial(photos, tmp_path / "r", "--degrade", "jpeg:10", *restorer, "--crop", "48") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("dot-trial: error: fit: no map was written")


def test_photographs_and_report_may_be_at_a_store(memory, photo):
    for index in range(4):
        encoded = io.BytesIO()
        Image.fromarray(photo(48, 40, seed=index)).save(encoded, "PNG")
        storage.write_bytes(f"{memory}/photos/{index}.png", encoded.getvalue())
    for again in ([], ["--overwrite"]):
        assert _trial(f"{memory}/photos/*.png", f"{memory}/report", "--degrade", "jpeg:20", *again) == 0
    there = storage.children(f"{memory}/report").keys()
    assert {"report.html", "totals.json", "map.safetensors", "before-after.png", "trial.json", "work"} <= there
