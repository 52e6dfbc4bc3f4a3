"""Links are followed, and what can't be listed is told."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ot_core import Cause, UserError, listing, storage
from ot_core.errors import NotAFileError
from ot_core.listing import Listed
from ot_core.names import Ignored


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user whom permissions stop, which nothing does to root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder that every user can list; pytest's own are for their owner alone."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    for current, _, _ in os.walk(path):
        os.chmod(current, 0o755)
    shutil.rmtree(path)


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def keys(spec: str | Path) -> list[str]:
    found = list(listing.list_images(str(spec)))
    assert not [image.problem for image in found if image.problem]
    return sorted(image.key for image in found)


def problems(images: list[Listed]) -> list[tuple[str, Cause]]:
    return [(image.uri, image.problem.cause) for image in images if image.problem]


class TestWhatCantBeListed:
    @pytest.mark.parametrize("spec", ["", "/**", "/*/*.png", "/**/*.png"])
    def test_a_folder_without_permission_is_a_problem_and_all_else_is_given(self, folder: Path, spec: str):
        put(folder, "a/1.png", "b/2.png", "c/3.png", "b/deep/4.png")
        (folder / "b").chmod(0)
        with without_rights():
            found = list(listing.list_images(f"{folder}{spec}"))
        assert problems(found) == [(f"{folder}/b", Cause.PERMISSION_DENIED)]
        assert [image.key for image in found if not image.problem] == ["a/1", "c/3"]

    def test_a_folder_that_a_glob_doesnt_lead_to_isnt_listed(self, folder: Path):
        put(folder, "a/x/1.png", "a/y/2.png", "b/x/3.png", "a/x/deep/4.png")
        for name in ("a/y", "b", "a/x/deep"):
            (folder / name).chmod(0)
        with without_rights():
            found = list(listing.list_images(f"{folder}/a/[x]/*.png"))
        assert [(image.key, image.problem) for image in found] == [("x/1", None)]

    def test_an_input_without_permission_is_the_users_mistake(self, folder: Path):
        put(folder, "a/1.png")
        (folder / "a").chmod(0)
        for spec in ("a", "a/*", "a/1.png"):
            with without_rights(), pytest.raises(UserError, match=r"can't be (listed|read)"):
                list(listing.list_images(f"{folder}/{spec}"))

    def test_an_output_that_cant_be_listed_whole_is_an_error(self, folder: Path):
        put(folder, "a/1.png", "b/2.png")
        (folder / "b").chmod(0)
        with without_rights(), pytest.raises(PermissionError):
            list(listing.list_folder(str(folder)))

    def test_any_store_may_refuse_a_folder(self):
        class Refusing(MemoryFileSystem):
            protocol = "refusing"
            store: dict[str, Any] = {}  # noqa: RUF012 - as its parent's, one for all of them
            pseudo_dirs = [""]  # noqa: RUF012

            def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
                if path.rstrip("/").endswith("/b"):
                    raise PermissionError("not yours")
                return super().ls(path, detail=detail, **kwargs)

        fsspec.register_implementation("refusing", Refusing, clobber=True)
        for name in ("a/1.png", "b/2.png", "c/3.png"):
            storage.write_bytes(f"refusing://in/{name}", b"x")
        for spec in ("refusing://in", "refusing://in/**", "refusing://in/*/*.png"):
            found = list(listing.list_images(spec))
            assert [(uri.rpartition("/")[2], cause) for uri, cause in problems(found)] == [
                ("b", Cause.PERMISSION_DENIED)
            ]
            assert [image.key for image in found if not image.problem] == ["a/1", "c/3"]


class TestLinks:
    @pytest.mark.parametrize("spec", ["", "/**", "/*/*"])
    def test_to_folders_are_followed(self, folder: Path, spec: str):
        put(folder, "in/a/1.png", "elsewhere/2.png")
        (folder / "in/b").symlink_to(folder / "elsewhere")
        assert keys(f"{folder}/in{spec}") == ["a/1", "b/2"]

    def test_that_lead_back_are_followed_once(self, folder: Path):
        put(folder, "in/a/1.png", "2.png")
        (folder / "in/a/self").symlink_to(".")
        (folder / "in/a/up").symlink_to("..")
        (folder / "in/above").symlink_to(folder)
        assert keys(folder / "in") == ["a/1", "above/2"]
        assert keys(f"{folder}/in/**") == ["a/1", "above/2"]

    def test_to_one_folder_are_each_followed(self, folder: Path):
        put(folder, "elsewhere/1.png")
        (folder / "in").mkdir()
        for name in ("a", "b"):
            (folder / "in" / name).symlink_to(folder / "elsewhere")
        assert keys(folder / "in") == ["a/1", "b/1"]

    def test_carry_the_date_and_size_of_their_target(self, folder: Path):
        put(folder, "target.png", "in/plain.png")
        (folder / "in/link.png").symlink_to(folder / "target.png")
        (folder / "in/deep").symlink_to(folder / "other")
        put(folder, "other/x.png")
        before = {image.key: image.details for image in listing.list_images(str(folder / "in"))}
        assert before["link"] == storage.details(str(folder / "target.png"))
        assert before["deep/x"] == storage.details(str(folder / "other/x.png"))
        (folder / "target.png").write_bytes(b"more")
        os.utime(folder / "target.png", (1, 1))
        after = {image.key: image.details for image in listing.list_images(str(folder / "in"))}
        assert after["link"].modified == 1
        assert after["link"].version != before["link"].version

    def test_that_are_broken_are_given_where_they_are_named_like_images_and_else_counted(self, folder: Path):
        (folder / "a.png").symlink_to("gone.png")
        (folder / "b.psd").symlink_to("gone.psd")
        (folder / "loop.png").symlink_to("loop.png")
        ignored = Ignored()
        found = list(listing.list_images(str(folder), ignored=ignored))
        assert [image.key for image in found] == ["a", "loop"]
        assert ignored.counts == {".psd": 1}
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(found[0].uri)
        with pytest.raises(OSError, match="Too many levels"):
            storage.read_bytes(found[1].uri)


def test_what_is_no_regular_file_is_given_by_its_name_or_counted_and_never_opened(folder: Path):
    os.mkfifo(folder / "a.png")
    os.mkfifo(folder / "b.tar")
    os.mkfifo(folder / "c")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "d.png"))
        ignored = Ignored()
        assert [image.key for image in listing.list_images(str(folder), ignored=ignored)] == ["a", "d"]
        assert ignored.counts == {".tar": 1, "without_extension": 1}
        (shard,) = listing.list_images(f"{folder}/*.tar")
        assert shard.problem
        for name in ("a.png", "d.png"):
            with pytest.raises(NotAFileError):
                storage.read_bytes(f"{folder}/{name}")
