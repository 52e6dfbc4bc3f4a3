"""Whose an output is: whatever is in a folder, a job takes, replaces and removes its own files and no others."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ot_core import storage
from ot_core.layout import OutputLayout
from ot_core.results import read_job
from pipelines import evaluate, fit, transport
from transforms import starting

IMAGES = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory, photo):
    """Maps `px` and `other` of pixels, and a folder `in` of images."""
    root = tmp_path_factory.mktemp("made")
    for index in range(IMAGES):
        for folder, seed in (("natural", index), ("restored", 9 - index), ("in", 20 + index)):
            path = root / folder / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(photo(20, 24, seed=seed)).save(path)
    for name, sides in (("px", ("natural", "restored")), ("other", ("restored", "natural"))):
        target, source = (str(root / side) for side in sides)
        flags = ["--vae", "pixels", "--paired", "--map", str(root / f"{name}.safetensors")]
        assert fit.main(["--target", target, "--source", source, *flags]) == 0
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A working folder with the maps and the images."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(output: str, *flags: str, given: str = "in", map: str = "px") -> int:
    return transport.main(["--input", given, "--map", f"{map}.safetensors", "--output", output, *flags])


def _files(root: Path) -> dict[str, bytes]:
    """Every file below a folder, and folders with nothing in them."""
    return {
        os.fsencode(path.relative_to(root)): path.read_bytes() if path.is_file() else b""
        for path in root.rglob("*")
        if path.is_file() or (path.is_dir() and not any(path.iterdir()))
    }


def _rows(output: str | Path, name: str = "manifest") -> list[dict]:
    return [row for path in sorted(Path(output).iterdir()) if path.name.startswith(f"{name}-")
            for row in pq.read_table(path).to_pylist()]  # fmt: skip


def _judged(candidate: str, report: str = "report") -> set[tuple[str, str]]:
    """Candidate's name and URL of each image that was judged."""
    assert evaluate.main(
        ["--reference", "in", "--candidate", f"c={candidate}", "--report", report, "--features", "pixel"]
    ) == 0  # fmt: skip
    return {(row["candidate"], row["candidate_uri"]) for row in _rows(report, "images")}


@pytest.mark.parametrize("name", ["run[12]", "*", "r#n1 %41&+~?{1}", "run1\udcff"])
def test_an_output_of_any_name_leaves_its_neighbours_alone(name, here):
    assert _run("run1", "--manifest_shards", "2") == 0
    shutil.copytree("run1", "run1/inner")
    shutil.copytree("run1", "run2")
    before = _files(here)
    code = _run(name, "--output_format", "webdataset", "--output_shards", "2")
    assert code == (2 if "\udcff" in name else 0)
    if code == 0:
        assert _run(name, "--overwrite") == 0
        assert len(_rows(name)) == IMAGES
        assert _judged(name) == {("c", f"{name}/images/{index}.png") for index in range(IMAGES)}
        shutil.rmtree("report")
    after = _files(here)
    assert {path: data for path, data in after.items() if not path.startswith(os.fsencode(name + "/"))} == before


def test_a_second_run_is_refused_and_touches_nothing(here, capsys):
    assert _run("out", "--alpha", "0", "0.5") == 0
    before, folder = _files(here), os.stat("out").st_mtime_ns
    for flags in ([], ["--format", "jpeg"], ["--output_format", "parquet"]):
        capsys.readouterr()
        assert _run("out", *flags) == 2
        told = capsys.readouterr().err.strip()
        assert "\n" not in told
        assert "--output out: holds the results of a job" in told
        assert "--resume" in told
        assert "--overwrite" in told
    assert _run("out", "--resume", "--overwrite", "--alpha", "0", "0.5") == 2
    assert _files(here) == before
    assert os.stat("out").st_mtime_ns == folder


@pytest.mark.parametrize(
    "first",
    [
        ["--output_format", "webdataset", "--output_shards", "2"],
        ["--output_format", "parquet", "--output_shards", "2"],
        ["--alpha", "0.5", "0.9"],
        ["--format", "jpeg"],
        ["--manifest_shards", "3"],
    ],
)
def test_overwriting_leaves_nothing_of_the_earlier_job_and_all_that_is_not_its(first, here, capsys):
    mine = {b"notes.txt": b"1", b"images/mine.png": b"2", b"images/shard-mine.tar": b"3", b"drift/mine.txt": b"4"}
    assert _run("out", *first) == 0
    for name, data in mine.items():
        path = here / "out" / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    assert _run("fresh", map="other") == 0
    capsys.readouterr()
    assert _run("out", "--overwrite", map="other") == 0
    assert "files of an earlier job removed" in capsys.readouterr().out
    found, fresh = _files(here / "out"), _files(here / "fresh")
    assert {name: found.pop(name) for name in mine} == mine
    assert {name for name, data in found.items() if data} == set(fresh)
    assert {name: found[name] for name in fresh if name.endswith(b".png")} == {
        name: fresh[name] for name in fresh if name.endswith(b".png")
    }
    assert read_job("out") == read_job("fresh")
    assert {uri for _, uri in _judged("out")} == {f"out/images/{index}.png" for index in range(IMAGES)}


def test_overwriting_an_output_of_fewer_images_leaves_no_orphans(here):
    assert _run("out") == 0
    assert _run("out", "--overwrite", given="in/0.png") == 0
    assert [path.name for path in (here / "out/images").iterdir()] == ["0.png"]
    assert [row["key"] for row in _rows("out")] == ["0"]


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["files", "webdataset"])
@pytest.mark.parametrize("then", ["--overwrite", "--resume"])
def test_overwriting_can_be_killed_at_any_moment(kind, then, here, monkeypatch, capsys):
    assert _run("whole", map="other") == 0
    expected = _files(here / "whole")
    first = ["--output_format", kind, "--output_shards", "2", "--alpha", "0", "0.5"]
    assert _run("first", *first) == 0
    remove, write = storage.remove, storage.write_bytes
    for moment in range(40):
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree("first", "out")
        left = moment

        def count_down(call, *arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise _Killed
            return call(*arguments)

        monkeypatch.setattr(starting, "_remove", lambda urls: sum(count_down(remove, url) is None for url in urls))
        monkeypatch.setattr(storage, "write_bytes", lambda *arguments: count_down(write, *arguments))
        killed = False
        try:
            starting.start_job(
                starting.plan_start(OutputLayout.of("out", [0.0]), _settings_of("whole"), overwrite=True)
            )
        except _Killed:
            killed = True
        monkeypatch.undo()
        monkeypatch.chdir(here)
        if not killed:
            break
        # Whatever is left isn't judged, and isn't gone on with by a job of the old settings.
        if moment:
            capsys.readouterr()
            assert evaluate.main(["--reference", "in", "--candidate", "c=out", "--report", "r"]) == 2
            assert "its job hasn't ended" in capsys.readouterr().err
            assert _run("out", map="other") == 2
            assert _run("out", *first, "--resume") == 2
        if moment % 5 and moment != 1:
            continue  # a whole run takes a second
        assert _run("out", "--overwrite" if moment == 0 else then, map="other") == 0
        found = _files(here / "out")
        assert {name: data for name, data in found.items() if name.endswith(b".png")} == {
            name: data for name, data in expected.items() if name.endswith(b".png")
        }
        assert {name for name, data in found.items() if data} == set(expected)
    assert moment > 5


def _settings_of(output: str) -> dict:
    job = read_job(output)
    return {name: value for name, value in job.items() if name not in ("alpha", "folders")}


def test_what_a_killed_job_wrote_without_a_manifest_is_removed(here):
    assert _run("out", "--format", "jpeg") == 0
    for path in (here / "out").glob("*-of-*.parquet"):
        path.unlink()
    old = here / "out/images/old.jpg"
    old.write_bytes(b"there before")
    os.utime(old, (1, 1))
    (here / "out/images/mine.txt").write_text("mine")
    assert _run("out") == 2
    assert _run("out", "--overwrite") == 0
    names = {path.name for path in (here / "out/images").iterdir()}
    assert names == {"0.png", "1.png", "2.png", "old.jpg", "mine.txt"}


@pytest.mark.parametrize(
    "theirs", ["images/a.png", "manifest-00000-of-00001.parquet", "failures-00000-of-00002.parquet", "job.json",
               "drift.json", ".staging/a", "images-alpha=0.50/a.png"]
)  # fmt: skip
@pytest.mark.parametrize("flag", [None, "--resume", "--overwrite"])
def test_a_folder_that_holds_others_files_under_our_names_is_refused(theirs, flag, here, capsys):
    path = here / "out" / theirs
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    before = _files(here)
    assert _run("out", *([flag] if flag else [])) == 2
    assert "isn't of a job that we know" in capsys.readouterr().err
    assert _files(here) == before


def test_a_folder_that_holds_other_things_may_be_an_output(here):
    (here / "out/images").mkdir(parents=True)
    (here / "out/readme.txt").write_text("mine")
    assert _run("out") == 0
    assert (here / "out/readme.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["files", "webdataset"])
def test_resuming_may_add_alphas_and_does_these_alone(kind, here, capsys):
    options = ["--output_format", kind, "--output_shards", "2"]
    assert _run("whole", "--alpha", "0", "0.5", *options) == 0
    assert _run("out", *options) == 0
    before = {path: path.stat().st_mtime_ns for path in (here / "out/images").iterdir()}
    capsys.readouterr()
    assert _run("out", "--alpha", "0.5", "--resume", *options) == 2
    assert "--alpha 0.0 0.5" in capsys.readouterr().err
    assert _run("out", "--alpha", "0.5", "0", "--resume", *options) == 0
    assert f"{IMAGES} images transported" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    told = [{(row["key"], row["alpha"]): row["sha256"] for row in _rows(output)} for output in ("out", "whole")]
    assert told[0] == told[1]
    assert len(told[0]) == 2 * IMAGES
    assert {name for name, _ in _judged("out")} == {"c alpha=0.50", "c alpha=0.00"}
    for alpha in (0.0, 0.5):
        layout = OutputLayout.of_job("out", read_job("out"))
        assert len(_judged(layout.folder(alpha))) == IMAGES
    # Once they are there, they belong to the settings; and a third may follow.
    assert _run("out", "--resume", *options) == 2
    assert _run("out", "--alpha", "0", "0.5", "--resume", *options) == 0
    assert "0 images transported" in capsys.readouterr().out
    assert _run("out", "--alpha", "0", "0.5", "1", "--resume", *options) == 0
    assert len(_rows("out")) == 3 * IMAGES


def test_keys_that_look_like_our_folders_stay_apart(here):
    for alpha in ("0.50", "0.00"):
        (here / f"in/alpha={alpha}").mkdir()
        shutil.copy(here / "in/0.png", here / f"in/alpha={alpha}/1.png")
    assert _run("out") == 0
    assert {uri for _, uri in _judged("out")} == {row["output_uri"] for row in _rows("out")}
    assert _run("out", "--resume", "--alpha", "0", "0.5") == 0
    rows = _rows("out")
    assert len({row["output_uri"] for row in rows}) == len(rows) == 2 * (IMAGES + 2)
    assert len(_judged("out")) == len(rows)


def test_what_lies_in_an_output_besides_its_results_is_not_judged(here):
    assert _run("out", "--alpha", "0.5", "0.9") == 0
    shutil.copy("in/0.png", "out/images/alpha=0.50/mine.png")
    shutil.copytree("out/images/alpha=0.50", "out/images/alpha=0.10")
    assert {name for name, _ in _judged("out")} == {"c alpha=0.50", "c alpha=0.90"}
    assert len(_rows("report", "images")) == 2 * IMAGES
    assert not _rows("report", "failures")


def test_an_output_is_judged_wherever_it_is_by_now(here, monkeypatch):
    assert _run("out") == 0
    shutil.copytree("out", "elsewhere/copied", copy_function=shutil.copy)
    shutil.rmtree("out")
    assert {uri for _, uri in _judged("elsewhere/copied")} == {
        f"elsewhere/copied/images/{index}.png" for index in range(IMAGES)
    }
    monkeypatch.chdir("elsewhere")
    assert len(evaluate.parse_candidates(["c=copied", "d=copied/", "e=copied/images"])) == 3
    shutil.copytree("../in", "in")
    assert len(_judged("copied/")) == IMAGES


@pytest.mark.parametrize("kind", ["files", "webdataset", "parquet"])
def test_an_output_as_input_gives_its_results_under_their_keys(kind, here, capsys):
    assert _run("out", "--output_format", kind, "--output_shards", "2") == 0
    (here / "out/mine.png").write_bytes((here / "in/0.png").read_bytes())
    assert _run("twice", given="out/") == 0
    assert {row["key"] for row in _rows("twice")} == {str(index) for index in range(IMAGES)}
    sides = ["--source", "out", "--target", "natural", "--paired", "--vae", "pixels", "--map", "again.safetensors"]
    assert fit.main(sides) == 0
    assert "0 images left out, whose keys the other side lacks" in capsys.readouterr().out
    assert _run("several", "--alpha", "0", "1") == 0
    assert _run("never", given="several") == 2
    assert "several/images/alpha=1.00" in capsys.readouterr().err


def test_an_output_of_an_earlier_version_is_gone_on_with_and_judged(here):
    assert _run("out", "--alpha", "0", "0.5") == 0
    job = json.loads((here / "out/job.json").read_text())
    times = os.stat(here / "out/job.json")
    (here / "out/job.json").write_text(json.dumps({name: job[name] for name in job if name != "folders"}))
    os.utime(here / "out/job.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(_judged("out")) == 2 * IMAGES
    assert _run("out", "--alpha", "0", "0.5", "--resume") == 0
    assert len(_rows("out")) == 2 * IMAGES
    assert _run("out", "--alpha", "0", "0.5", "1", "--resume") == 0
    assert len(_rows("out")) == 3 * IMAGES


def test_a_report_does_not_go_into_an_output_nor_an_output_into_a_report(here, capsys):
    assert _run("out") == 0
    assert _judged("out")
    before = _files(here)
    assert evaluate.main(["--reference", "in", "--candidate", "c=out", "--report", "out"]) == 2
    assert "is an output of dot-transport" in capsys.readouterr().err
    assert _run("report") == 2
    assert _files(here) == before


@pytest.mark.parametrize("kind", ["files", "webdataset"])
@pytest.mark.parametrize("flags", [[], ["--alpha", "0", "0.5"]])
def test_a_copy_that_lost_its_times_keeps_every_row(kind, flags, here, capsys):
    options = ["--output_format", kind, "--output_shards", "2"]
    assert _run("out", *options) == 0
    before = {row["key"]: row["sha256"] for row in _rows("out")}
    for order in (
        ["images", "manifest", "job.json"],
        ["job.json", "manifest", "images"],
        ["manifest", "images", "job"],
    ):
        shutil.rmtree("copy", ignore_errors=True)
        shutil.copytree("out", "copy")
        for index, start in enumerate(order):
            for path in (here / "copy").rglob("*"):
                if path.is_file() and str(path.relative_to(here / "copy")).startswith(start):
                    os.utime(path, (2_000_000_000 + 10 * index,) * 2)
        capsys.readouterr()
        assert _run("copy", "--resume", *options, *flags, given="in/0.png") == 0
        assert f"{1 if flags else 0} images transported" in capsys.readouterr().out
        rows = {row["key"]: row["sha256"] for row in _rows("copy") if row["alpha"] == 0}
        assert rows == before
        assert {row["key"] for row in _rows("copy") if row["alpha"] != 0} == ({"0"} if flags else set())


def test_overwriting_tells_of_images_that_it_leaves(here, capsys):
    assert _run("out") == 0
    shutil.copy("out/images/0.png", "out/images/of-a-killed-run.png")
    capsys.readouterr()
    assert _run("out", "--overwrite") == 0
    assert "1 images left there that no manifest names" in capsys.readouterr().out
    assert (here / "out/images/of-a-killed-run.png").exists()
    assert len(_judged("out")) == IMAGES
    capsys.readouterr()
    assert _run("other", "--overwrite") == 0
    assert "left where" not in capsys.readouterr().out


_NOT_SUMMARIES = ["out/job.json", "out/manifest-00000-of-00001.parquet", "out/drift.safetensors", "out/images/0.png",
            "px.safetensors", "in/0.png", "list.txt"]  # fmt: skip


@pytest.mark.parametrize("summary", _NOT_SUMMARIES)
def test_a_summary_replaces_nothing_but_a_summary(summary, here, capsys):
    (here / "list.txt").write_text("in/0.png\n")
    assert _run("out", "--summary", "summary.json") == 0
    before = _files(here)
    for command, flags in (
        (transport, ["--input", "in", "--map", "px.safetensors", "--output", "out", "--overwrite"]),
        (fit, ["--target", "natural", "--source", "restored", "--vae", "pixels", "--map", "new.safetensors"]),
        (evaluate, ["--reference", "natural", "--candidate", "c=restored", "--report", "report"]),
    ):
        capsys.readouterr()
        assert command.main([*flags, "--summary", summary]) == 2
        told = capsys.readouterr().err.strip()
        assert f"--summary {summary}: is a file that isn't a summary" in told
        assert "\n" not in told
    assert _files(here) == before
    (here / "summary.json").write_bytes(b"")  # as mktemp leaves it
    for _ in range(2):
        assert _run("out", "--resume", "--summary", "summary.json") == 0
        assert json.loads((here / "summary.json").read_bytes())["images"]["skipped"] == IMAGES


def test_a_summary_does_not_replace_what_the_job_itself_wrote(here, capsys):
    assert _run("out", "--summary", "out/job.json") == 0
    assert "--summary out/job.json: not written" in capsys.readouterr().err
    assert read_job("out")
    sides = ["--target", "natural", "--source", "restored", "--vae", "pixels", "--paired"]
    assert fit.main([*sides, "--map", "new.safetensors", "--summary", "new.safetensors"]) == 0
    assert "--summary new.safetensors: not written" in capsys.readouterr().err
    assert (here / "new.safetensors").stat().st_size == (here / "px.safetensors").stat().st_size


def test_a_map_replaces_nothing_but_a_map(here, capsys):
    assert _run("out") == 0
    (here / "weights.safetensors").write_bytes((here / "out/drift.safetensors").read_bytes()[:100])
    before = _files(here)
    sides = ["--target", "natural", "--source", "restored", "--vae", "pixels", "--paired"]
    for name in ("out/drift.safetensors", "weights.safetensors"):
        capsys.readouterr()
        assert fit.main([*sides, "--map", name]) == 2
        assert f"--map {name}: is a file that isn't a map" in capsys.readouterr().err
    assert _files(here) == before
    (here / "new.safetensors").write_bytes(b"")
    for name in ("new.safetensors", "other.safetensors"):
        assert fit.main([*sides, "--map", name]) == 0


@pytest.mark.parametrize("name", ["images-00001-of-00002.parquet", "failures-00000-of-00001.parquet"])
def test_a_report_replaces_nothing_but_a_report(name, here, capsys):
    (here / "data").mkdir()
    pq.write_table(pa.table({"image": [(here / "in/0.png").read_bytes()]}), here / "data" / name)
    before = _files(here)
    flags = ["--reference", "natural", "--candidate", "c=restored", "--features", "pixel", "--report"]
    assert evaluate.main([*flags, "data"]) == 2
    assert f"--report data: {name} there isn't part of a report" in capsys.readouterr().err
    assert _files(here) == before
    for _ in range(2):
        assert evaluate.main([*flags, "report"]) == 0


def test_pairs_of_which_none_has_one_size_are_no_comparison(here, capsys):
    for path in (here / "restored").iterdir():
        with Image.open(path) as image:
            image.resize((12, 10)).save(path)
    flags = ["--reference", "natural", "--features", "pixel", "--report", "report", "--max_failure_fraction", "1"]
    assert evaluate.main([*flags, "--candidate", "c=restored"]) == 1
    told = capsys.readouterr().err
    assert f"none of {IMAGES} pairs could be compared: candidate and reference differ in size" in told
    assert evaluate.main([*flags, "--candidate", "same=natural", "c=restored"]) == 0


def test_nothing_is_written_to_a_web_server(here, capsys):
    sides = ["--target", "natural", "--source", "restored", "--vae", "pixels"]
    for command, arguments in (
        (fit, [*sides, "--map", "http://127.0.0.1:9/m.safetensors"]),
        (fit, [*sides, "--map", "m.safetensors", "--summary", "https://127.0.0.1:9/s.json"]),
    ):
        assert command.main(arguments) == 2
        assert "not writable (a web server's files can only be read)" in capsys.readouterr().err


def test_all_that_is_wrong_at_the_end_is_told_in_one_line(here, capsys):
    (here / "text.png").write_text("no image")
    assert fit.main(["--target", "natural", "--source", "text.png", "--vae", "pixels", "--map", "m.safetensors"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "no map was written" in errors[0]
