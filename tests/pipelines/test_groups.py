"""Groups: one pass fits a map for each, and one job transports each image with the map of its group."""

import argparse
import contextlib
import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ot_core import read_map
from ot_core.groups import find_maps
from ot_core.layout import OutputLayout
from pipelines import fit, transport
from transforms.starting import Start

GROUPS = [f"g{index:02d}" for index in range(20)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory, photo):
    """Two natural images of each group, and two that are restored as its cameras do it."""
    root = tmp_path_factory.mktemp("archive")
    for index, group in enumerate(GROUPS):
        for image in range(2):
            pixels = Image.fromarray(photo(48, 64, seed=2 * index + image))
            for side in ("natural", "restored"):
                (root / side / group).mkdir(parents=True, exist_ok=True)
            pixels.save(root / f"natural/{group}/{image}.png")
            dull = pixels.reduce(2).resize(pixels.size).point(lambda value, index=index: int(value * (1 - index / 40)))
            dull.save(root / f"restored/{group}/{image}.png")
    return root


@pytest.fixture(scope="module")
def fitted(archive, vae) -> tuple[str, str]:
    """The pattern of the maps, fitted in one pass, and what that printed."""
    pattern = f"{archive}/maps/{{group}}.safetensors"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert _fit(archive, vae, "--map", pattern, "--group_by", "folder:1", "--verbose") == 0
    return pattern, printed.getvalue()


@pytest.fixture(scope="module")
def maps(fitted) -> str:
    return fitted[0]


def _fit(archive: Path, vae: str, *flags: str, target: str = "natural", source: str = "restored") -> int:
    return fit.main(["--target", f"{archive}/{target}", "--source", f"{archive}/{source}", "--vae", vae, *flags])


def _rows(pattern: Path) -> list[dict]:
    return [row for path in sorted(pattern.parent.glob(pattern.name)) for row in pq.read_table(path).to_pylist()]


def _assert_equal(found: str, expected: str) -> None:
    """Both maps, within 1e-12 of their size."""
    one, other = read_map(found), read_map(expected)
    for side in ("source", "target"):
        mine, theirs = getattr(one, side), getattr(other, side)
        assert mine.count == theirs.count
        for part in ("mean", "scatter"):
            _assert_near(getattr(mine, part), getattr(theirs, part))
    for part in ("matrix", "source_mean", "target_mean"):
        _assert_near(getattr(one.map, part), getattr(other.map, part))
    assert (one.map.noise_covariance is None) == (other.map.noise_covariance is None)
    assert one.statistics.keys() == other.statistics.keys()
    assert one.space == other.space


def _assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.linalg.norm(found - expected) <= 1e-12 * np.linalg.norm(expected)


def test_twenty_groups_are_fitted_in_one_pass_each_as_it_is_alone(archive, fitted, vae, tmp_path):
    pattern, printed = fitted
    assert f"20 maps {pattern}" in printed
    assert "80 listed, 80 read, 80 encoded" in printed
    assert re.search(r"^  load model +1 ", printed, re.MULTILINE)
    written = sorted(path.name for path in Path(pattern).parent.iterdir())
    assert written == [*(f"{group}.safetensors" for group in GROUPS), "groups.failures-00000-of-00001.parquet"]
    for group in GROUPS:
        alone = str(tmp_path / f"{group}.safetensors")
        sides = {"target": f"natural/{group}*/*.png", "source": f"restored/{group}*/*.png"}  # a glob keeps the keys
        assert _fit(archive, vae, "--map", alone, **sides) == 0
        _assert_equal(pattern.replace("{group}", group), alone)


def test_a_common_target_and_a_column_give_the_map_of_the_group_against_all_of_it(archive, vae, tmp_path):
    rows = [
        {"uri": f"{archive}/restored/{group}/{image}.png", "key": f"{group}/{image}", "quality": quality}
        for quality, group in ((30, "g00"), (85, "g19"))
        for image in range(2)
    ]
    rows.append({"uri": f"{archive}/restored/g05/0.png", "key": "g05/0", "quality": None})
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["uri", "key", "quality"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    for quality, group in (("30", "g00"), ("85", "g19")):
        alone = str(tmp_path / f"alone-{quality}.safetensors")
        assert _fit(archive, vae, "--map", alone, source=f"restored/{group}*/*.png") == 0
    for kind in ("csv", "jsonl", "parquet"):
        folder = tmp_path / kind
        flags = ["--map", f"{folder}/q{{group}}/map.safetensors", "--group_by", "column:quality", "--common_target"]
        inputs = ["--target", f"{archive}/natural", "--source", str(tmp_path / f"list.{kind}")]
        assert fit.main([*inputs, "--vae", vae, *flags]) == 0
        for quality in ("30", "85"):
            _assert_equal(f"{folder}/q{quality}/map.safetensors", str(tmp_path / f"alone-{quality}.safetensors"))
        (failure,) = _rows(folder / "qgroups/map.failures-*.parquet")
        assert (failure["key"], failure["error_type"]) == ("g05/0", "no_group")


def _transport(archive: Path, output: Path, *flags: str, given: str = "restored") -> int:
    return transport.main(["--input", f"{archive}/{given}", "--output", str(output), *flags])


def test_each_image_is_transported_with_the_map_of_its_group(archive, maps, tmp_path, capsys):
    assert _transport(archive, tmp_path / "out", "--map", maps, "--group_by", "folder:1", "--verbose") == 0
    printed = capsys.readouterr().out
    assert "40 images transported" in printed
    assert re.search(r"^  load model +1 ", printed, re.MULTILINE)
    manifest = _rows(tmp_path / "out/manifest-*.parquet")
    assert {row["key"]: row["group"] for row in manifest} == {f"{g}/{image}": g for g in GROUPS for image in range(2)}
    for group in ("g00", "g07", "g19"):
        alone = tmp_path / group
        own = ["--map", maps.replace("{group}", group)]
        assert _transport(archive, alone, *own, given=f"restored/{group}*/*.png") == 0
        for image in range(2):
            name = f"images/{group}/{image}.png"
            assert (tmp_path / "out" / name).read_bytes() == (alone / name).read_bytes()
    # The maps differ, so that a wrong one would have been noticed.
    assert _transport(archive, tmp_path / "other", *own, given="restored/g00*/*.png") == 0
    wrong, right = (tmp_path / folder / "images/g00/0.png" for folder in ("other", "out"))
    assert wrong.read_bytes() != right.read_bytes()


def test_drift_is_told_for_each_map_and_the_furthest_group_is_named(archive, maps, tmp_path, capsys):
    shutil.copytree(archive / "restored", tmp_path / "in", ignore=lambda _, names: [n for n in names if n[:2] == "g1"])
    for image in range(2):  # another camera
        shutil.copy(archive / f"natural/g15/{image}.png", tmp_path / f"in/g03/{image}.png")
    flags = ["--map", maps, "--group_by", "folder:1", "--precision", "float32"]
    assert _transport(tmp_path, tmp_path / "out", *flags, "--max_drift", "0.5", given="in") == 0
    printed = capsys.readouterr().out
    assert "drift of inputs of group g03, the furthest: can't be judged from 2 images" in printed
    drift = json.loads((tmp_path / "out/drift.json").read_text())
    judged = [one["inputs"] for one in drift["groups"].values() if one["inputs"]]
    assert f"drift can't be judged for {len(judged)} of {len(judged)} groups: too few images" in printed
    # With as many images as a judgement takes, the group that is unlike its map is named, however far others are.
    drift["groups"]["g03"]["inputs"] |= {"verdict": "unlike", "relative": 0.9}
    drift["groups"]["g02"]["inputs"]["relative"] = 7.0
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged/drift.json").write_text(json.dumps(drift))
    args = argparse.Namespace(output=str(tmp_path / "judged"), max_drift=0.5, plan=False)
    layout = OutputLayout.of(args.output, [0.0])
    plan = transport.Plan(args, find_maps(maps), Start(layout, {}, replaces=None, goes_on=False))
    error = transport.objection(plan)
    statistics, map_url = tmp_path / "judged/drift/g03.safetensors", maps.replace("{group}", "g03")
    assert error.startswith("the inputs of group g03 drifted by 0.900 of the map's distance, over --max_drift 0.5")
    assert f"dot-fit --source {statistics} --target {map_url}" in error
    drift = json.loads((tmp_path / "out/drift.json").read_text())
    assert sorted(drift) == ["groups", "limit"]
    assert sorted(drift["groups"]) == GROUPS
    assert drift["groups"]["g12"]["inputs"] is None
    alone = ["--map", map_url, "--precision", "float32"]
    assert _transport(tmp_path, tmp_path / "alone", *alone, given="in/g03*/*.png") == 0
    expected = json.loads((tmp_path / "alone/drift.json").read_text())
    for side in ("inputs", "results"):
        found = drift["groups"]["g03"][side]
        for name in ("from", "verdict"):
            assert found.pop(name) == expected[side].pop(name)
        assert found == pytest.approx(expected[side], rel=1e-3)  # sums in float32
    new = str(tmp_path / "new.safetensors")
    statistics = tmp_path / "out/drift/g03.safetensors"
    assert fit.main(["--source", str(statistics), "--target", map_url, "--map", new, "--method", "pixels"]) == 0


def test_a_group_without_a_map_is_a_failure_or_takes_the_default_map(archive, maps, tmp_path, photo):
    few = tmp_path / "maps"
    few.mkdir()
    for group in ("g00", "g01"):
        shutil.copy(maps.replace("{group}", group), few)
    for group in ("g00", "g01", "g02"):
        shutil.copytree(archive / "restored" / group, tmp_path / "in" / group)
    Image.fromarray(photo(48, 64)).save(tmp_path / "in/loose.png")
    flags = ["--map", f"{few}/{{group}}.safetensors", "--group_by", "folder:1"]
    assert _transport(tmp_path, tmp_path / "out", *flags, given="in") == 0
    failures = {row["key"]: row for row in _rows(tmp_path / "out/failures-*.parquet")}
    assert sorted(failures) == ["g02/0", "g02/1", "loose"]
    assert {(row["stage"], row["error_type"]) for row in failures.values()} == {("transport", "no_map")}
    assert "its group 'g02' has no map" in failures["g02/0"]["message"]
    assert "it has no group" in failures["loose"]["message"]
    assert "--default_map" in failures["loose"]["message"]

    default = maps.replace("{group}", "g19")
    assert _transport(tmp_path, tmp_path / "default", *flags, "--default_map", default, given="in") == 0
    assert _rows(tmp_path / "default/failures-*.parquet") == []
    assert len(_rows(tmp_path / "default/manifest-*.parquet")) == 7
    assert _transport(tmp_path, tmp_path / "alone", "--map", default, given="in") == 0
    for key in [*failures, "g00/0"]:
        name = f"images/{key}.png"
        same = (tmp_path / "default" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
        assert same == (key in failures)


def test_what_cannot_name_a_map_is_a_failure_and_nothing_is_written_elsewhere(archive, vae, tmp_path):
    hostile = ["..", "../up", "/abs", "a/b", "a\\b", "memory::x", ".", "", "x\u0000y", "\ud800", "n" * 500, None, ["l"]]
    odd = ["a b", "ü", "[x]*?", ".dot", "{group}"]
    lines = [
        {"uri": f"{archive}/restored/g00/{index % 2}.png", "key": f"{row}-{index}", "camera": group}
        for row, group in enumerate([*hostile, *odd])
        for index in range(2)
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--group_by", "column:camera", "--common_target", "--map", f"{tmp_path}/maps/below/{{group}}.safetensors"]
    inputs = ["--target", f"{archive}/natural/g0*/*.png", "--source", f"{tmp_path}/list.jsonl"]
    assert fit.main([*inputs, "--vae", vae, *flags]) == 0
    failures = _rows(tmp_path / "maps/below/groups.failures-*.parquet")
    assert sorted(row["key"] for row in failures) == sorted(line["key"] for line in lines if line["camera"] in hostile)
    assert {row["error_type"] for row in failures} == {"no_group", "bad_key"}
    written = {path.relative_to(tmp_path / "maps/below").as_posix() for path in tmp_path.rglob("*.safetensors")}
    assert written == {f"{group}.safetensors" for group in odd}

    output = tmp_path / "out"
    inputs = ["--input", f"{tmp_path}/list.jsonl", "--map", flags[-1], "--group_by", "column:camera"]
    assert transport.main([*inputs, "--output", str(output), "--max_failure_fraction", "1"]) == 0
    manifest = _rows(output / "manifest-*.parquet")
    assert sorted({row["group"] for row in manifest}) == sorted(odd)
    assert len(_rows(output / "failures-*.parquet")) == 2 * len(hostile)


def test_a_group_that_cannot_be_fitted_is_a_failure_and_the_others_are_written(archive, vae, tmp_path):
    for side in ("natural", "restored"):
        for group in ("g00", "g01"):
            shutil.copytree(archive / side / group, tmp_path / side / group)
    shutil.rmtree(tmp_path / "natural/g01")
    assert _fit(tmp_path, vae, "--map", f"{tmp_path}/{{group}}.safetensors", "--group_by", "folder:1") == 0
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["g00.safetensors"]
    (failure,) = _rows(tmp_path / "groups.failures-*.parquet")
    assert (failure["stage"], failure["error_type"]) == ("fit", "no_statistics")
    assert failure["message"] == "no usable image in the target of group g01: nothing to fit"


def test_max_images_takes_so_many_of_each_group_of_each_side(archive, vae, tmp_path, capsys):
    flags = ["--map", f"{tmp_path}/{{group}}.safetensors", "--group_by", "folder:1", "--max_images", "1"]
    assert _fit(archive, vae, *flags, source="restored/g0*/*.png", target="natural/g0*/*.png") == 0
    assert "20 encoded" in capsys.readouterr().out
    assert _fit(archive, vae, *flags, "--common_target", source="restored/g0*/*.png") == 0
    assert "11 encoded" in capsys.readouterr().out


def test_resume_goes_on_with_the_same_maps_and_refuses_others(archive, maps, tmp_path, capsys):
    own = tmp_path / "maps"
    shutil.copytree(Path(maps).parent, own)
    flags = ["--map", f"{own}/{{group}}.safetensors", "--group_by", "folder:1", "--resume"]
    assert _transport(archive, tmp_path / "out", *flags, given="restored/g0*/*.png") == 0
    assert _transport(archive, tmp_path / "out", *flags) == 0
    assert "20 images were there already" in capsys.readouterr().out
    assert len(_rows(tmp_path / "out/manifest-*.parquet")) == 40
    shutil.copy(own / "g01.safetensors", own / "g00.safetensors")
    assert _transport(archive, tmp_path / "out", *flags) == 2
    assert "was made with map_sha256" in capsys.readouterr().err


MISTAKES = {
    "fit": [
        ({"--group_by": "camera"}, "--group_by camera: expected column:NAME"),
        ({"--group_by": "folder:0"}, "--group_by folder:0: expected column:NAME"),
        ({"--group_by": "column:"}, "--group_by column:: expected column:NAME"),
        ({"--group_by": None}, "{group}.safetensors: expected --group_by"),
        ({"--map": "m.safetensors"}, "--map m.safetensors: expected {group}"),
        ({"--map": "{group}/{group}.safetensors"}, "expected {group} only once"),
        ({"--map": "{group}"}, "expected a name ending in .safetensors"),
        ({"--group_by": "folder:2"}, "none of the first images of --"),
        ({"--group_by": "column:camera"}, "none of the first images of --"),
        ({"--add_to": "{maps}/g00.safetensors"}, "the source statistics of"),
        ({"--source": "{maps}/g00.safetensors"}, "have no group"),
        ({"--target": "{maps}/g00.safetensors"}, "the target statistics of"),
        ({"--common_target": [], "--paired": []}, "--common_target"),
        ({"--common_target": [], "--group_by": None, "--map": "m.safetensors"}, "--common_target: expected groups"),
    ],
    "transport": [
        ({"--group_by": None}, "expected --group_by"),
        ({"--map": "{maps}/g00.safetensors"}, "expected {group}"),
        ({"--map": "{maps}/none-{group}.safetensors"}, "no such map is there"),
        ({"--default_map": "gone.safetensors"}, "gone.safetensors: not found"),
        ({"--group_by": None, "--map": "{maps}/g00.safetensors", "--default_map": "m"}, "--default_map"),
        ({"--vae": "pixels"}, "was fitted with the autoencoder"),
        ({"--kernel_size": "5"}, "--kernel_size 5"),
    ],
}


@pytest.mark.parametrize(
    ("job", "changes", "message"), [(job, *mistake) for job, mistakes in MISTAKES.items() for mistake in mistakes]
)
def test_a_mistake_is_one_line_before_any_work(archive, maps, vae, tmp_path, capsys, job, changes, message):
    folder = Path(maps).parent
    usual = {
        "fit": {
            "--target": f"{archive}/natural",
            "--source": f"{archive}/restored",
            "--map": "{group}.safetensors",
            "--group_by": "folder:1",
            "--vae": vae,
        },
        "transport": {
            "--input": f"{archive}/restored",
            "--map": maps,
            "--group_by": "folder:1",
            "--output": str(tmp_path),
        },
    }[job]
    flags: list[str] = []
    for name, value in {**usual, **changes}.items():
        if value is not None:
            words = [value] if isinstance(value, str) else value
            flags += [name, *(word.replace("{maps}", str(folder)) for word in words)]
    capsys.readouterr()
    assert {"fit": fit, "transport": transport}[job].main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_maps_of_two_autoencoders_are_refused(archive, maps, tmp_path, capsys):
    folder = tmp_path / "maps"
    shutil.copytree(Path(maps).parent, folder)
    sides = ["--target", f"{archive}/natural/g00", "--source", f"{archive}/restored/g00", "--vae", "pixels"]
    assert fit.main([*sides, "--map", f"{folder}/g20.safetensors"]) == 0
    capsys.readouterr()
    flags = ["--map", f"{folder}/{{group}}.safetensors", "--group_by", "folder:1"]
    assert _transport(archive, tmp_path / "out", *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "g20.safetensors" in line
    assert "was fitted with the autoencoder pixels" in line
