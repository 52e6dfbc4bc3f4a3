"""Groups: what tells them, which names they may have, and where their maps are."""

import os

import pytest

from ot_core import Cause, ImageError, UserError, listing, storage
from ot_core.groups import Grouping, check_group, find_maps, map_of_group


@pytest.mark.parametrize(
    ("spec", "group"),
    [
        ("folder:1", "canon"),
        ("folder:2", "q10"),
        ("folder:3", ""),
        ("column:camera", "column's"),
        ("column:a:b", "column's"),
    ],
)
def test_a_folder_of_the_key_or_a_column_tells_the_group(spec, group):
    assert Grouping.parse(spec).group_of("canon/q10/a", "column's") == group


@pytest.mark.parametrize(
    "spec", ["", "camera", "column", "column:", "folder:", "folder:0", "folder:-1", "folder:²", "path:1"]
)
def test_anything_else_is_refused(spec):
    with pytest.raises(UserError, match="expected column:NAME"):
        Grouping.parse(spec)


@pytest.mark.parametrize(
    ("group", "cause"),
    [("", Cause.NO_GROUP), *((group, Cause.BAD_KEY) for group in ("..", "a/b", "a\\b", "a::b", "a\n", "ü" * 61))],
)
def test_a_group_that_leads_elsewhere_or_is_too_long_has_no_map(group, cause):
    with pytest.raises(ImageError) as error:
        check_group(group)
    assert error.value.cause == cause


@pytest.mark.parametrize(
    "name", ["maps/{group}.safetensors", "maps/run-{group}-7.safetensors", "m[1]/{group}/map.safetensors"]
)
def test_maps_are_found_on_every_store_by_the_names_that_they_were_written_under(store, name):
    pattern = storage.join(store, name)
    with pytest.raises(UserError, match="no such map is there"):
        find_maps(pattern)
    groups = ["a b", "q85", "x.y", "[z]*", "ü"]
    for group in groups:
        check_group(group)
        storage.write_bytes(map_of_group(pattern, group), b"")
    storage.write_bytes(storage.join(store, "maps/other.txt"), b"")
    assert find_maps(pattern) == {group: map_of_group(pattern, group) for group in sorted(groups)}


def test_a_relative_pattern_is_found_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("{group}.safetensors".replace("{group}", "a"), b"")
    assert find_maps("{group}.safetensors") == {"a": "a.safetensors"}
    assert os.listdir() == ["a.safetensors"]


def test_a_list_without_grouping_has_no_groups_even_with_a_nameless_column(tmp_path):
    (tmp_path / "list.csv").write_text(",uri,camera\n0,a.png,x\n1,b.png,\n")
    spec = str(tmp_path / "list.csv")
    assert [listed.group for listed in listing.list_images(spec)] == ["", ""]
    assert [listed.group for listed in listing.list_images(spec, Grouping.parse("column:camera"))] == ["x", ""]
