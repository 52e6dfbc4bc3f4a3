from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ot_core import ImageError, names, storage

parts = st.lists(st.sampled_from(["a", "b.c", ".", "..", "", "..x", " "]), max_size=6)


class TestKeys:
    @given(parts)
    def test_lead_where_they_led_before_without_detours(self, found: list[str]):
        key = "/".join(found)
        normal = names.normal_key(key)
        assert posixpath.normpath(f"/top/{normal}") == posixpath.normpath(f"/top/{key}")
        assert names.normal_key(normal) == normal

    @given(parts)
    def test_that_leave_their_root_are_refused(self, found: list[str]):
        key = "/".join(found)
        depth = 0
        for part in found:
            depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
            if depth < 0 or key.startswith("/"):
                with pytest.raises(ImageError):
                    storage.check_key(names.normal_key(key))
                return
        if depth > 0:
            storage.check_key(names.normal_key(key))

    @pytest.mark.parametrize(
        ("path", "key"),
        [
            ("a%20b/c.png", "a b/c"),
            ("a.png?sig=x/y.z", "a"),
            ("a.PNG#top", "a"),
            ("image?id=7", "image?id=7"),
            ("%e6%bc%a2.png", "漢"),
        ],
    )
    def test_of_web_addresses_are_decoded_and_without_the_query_of_an_image(self, path: str, key: str):
        assert names.key_of(path, web=True) == key

    @pytest.mark.parametrize("path", ["a%20b", "a?x=1", "#1"])
    def test_of_others_are_taken_literally(self, path: str):
        assert names.key_of(path + ".png") == path


class TestEntriesOfLists:
    @pytest.mark.parametrize(
        ("folder", "entry", "uri", "key"),
        [
            (".", "./a.png", "./a.png", "a"),
            ("/l", "./a.png", "/l/a.png", "a"),
            ("/l", "x/./y/../a.png", "/l/x/y/../a.png", "x/a"),
            ("gs://b/l", "./x//a.png", "gs://b/l/x//a.png", "x/a"),
            ("gs://b/l", "x/../a.png", "gs://b/l/a.png", "a"),
            ("gs://b/l", "../o/a.png", "gs://b/o/a.png", "../o/a"),
            ("gs://b/l", "../../../o/a.png", "gs://b/../../o/a.png", "../../../o/a"),
            ("/l", "/l/./x//a.png", "/l/./x//a.png", "x/a"),
            ("/l", "/l/../o/a.png", "/l/../o/a.png", "o/a"),
            ("/l", "file:///l/a.png", "file:///l/a.png", "a"),
            ("/l", "file:/l/a.png", "/l/a.png", "a"),
            ("http://h/l", "a%20b.png?x=1", "http://h/l/a%20b.png?x=1", "a b"),
            ("http://h/l", "http://h/l/x/a.png?s=../..//", "http://h/l/x/a.png?s=../..//", "x/a"),
            ("/l", "https://h/a%2fb.png", "https://h/a%2fb.png", "h/a/b"),
            ("/l", "s3://b//a.png", "s3://b//a.png", "b/a"),
        ],
    )
    def test_are_found_below_the_list_and_have_normal_keys(self, folder: str, entry: str, uri: str, key: str):
        assert names.resolved(folder, entry) == (uri, key)


class TestIgnored:
    def test_counts_every_file_under_few_kinds(self):
        ignored = names.Ignored()
        for index in range(1000):
            ignored.add(f"x/a.e{index}")
        ignored.add("a." + "x" * 100)
        assert sum(ignored.counts.values()) == 1001
        assert len(ignored.counts) <= 11

    def test_is_told_most_first(self):
        counts = {"others": 99, "without_extension": 3, ".avif": 9}
        assert names.told_ignored(counts) == "111 files ignored: 9 .avif, 3 without extension, 99 others"
        assert names.told_ignored({".gif": 1}) == "1 file ignored: 1 .gif"
