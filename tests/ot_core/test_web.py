"""Reading from web servers of all habits."""

from __future__ import annotations

import io
import itertools
import socket
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

from ot_core import Cause, storage
from ot_core.errors import BadUrlError, StoreError, TooManyBytesError, UnavailableError, as_image_error
from ot_core.shards import members_of_tar, read_member
from tests.faults import faulty_proxy
from tests.web import WebServer, web_server

HABITS = [
    {"ranges": ranges, "head": head, "length": length}
    for ranges, head, length in itertools.product((True, False), (True, False), ("told", "chunked", "until close"))
]


@pytest.fixture(params=HABITS, ids=lambda habits: " ".join(map(str, habits.values())))
def server(request: pytest.FixtureRequest) -> Iterator[WebServer]:
    with web_server(**request.param) as server:
        yield server


def test_whatever_a_server_can_do_files_are_read(server: WebServer):
    data = bytes(range(256)) * 40_000
    server.files = {"/a b[1].bin": data, "/empty": b""}
    url = f"{server.url}/a b[1].bin"
    assert storage.read_bytes(url) == data
    assert storage.read_bytes(url, start=10, end=20) == data[10:20]
    assert storage.read_bytes(url, start=9_000_000, end=9_000_100) == data[9_000_000:9_000_100]
    assert storage.read_bytes(f"{server.url}/empty") == b""
    with storage.open_file(url) as file:
        assert file.seek(0, io.SEEK_END) == len(data)
        file.seek(5_000_000)
        assert file.read(100) == data[5_000_000:5_000_100]
        file.seek(0)
        assert file.read() == data
    with storage.open_file(f"{server.url}/empty") as file:
        assert file.read() == b""


def test_a_file_beyond_what_one_request_reads_is_whole(server: WebServer):
    data = bytes(1000) + bytes(range(250)) * 80_000
    server.files = {"/large": data}
    reserved: list[int] = []
    assert storage.read_bytes(f"{server.url}/large", reserve=reserved.append) == data
    assert len(reserved) == 1
    assert reserved[0] >= len(data)


def test_a_tar_is_read_member_by_member_and_transferred_once_where_there_are_no_ranges(server: WebServer):
    contents = {f"{i:03d}.png": bytes([i]) * 100_000 for i in range(50)}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    server.files = {"/a.tar": packed.getvalue()}
    with storage.open_file(f"{server.url}/a.tar") as file:
        parts = {member.name: member.place for member in members_of_tar(file)}
    assert {name: read_member(f"{server.url}/a.tar", part) for name, part in parts.items()} == contents
    whole = [asked for _, _, asked in server.log if not asked]
    assert len(whole) == (0 if server.ranges else 1)


def test_a_file_that_changed_is_downloaded_again():
    with web_server(ranges=False) as server:
        for content in (b"1" * 100, b"2" * 100):
            server.files = {"/a": content}
            server.changed += 1
            assert storage.read_bytes(f"{server.url}/a", start=50, end=60) == content[:10]


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize(("etag", "last_modified"), [(True, True), (True, False), (False, True)])
def test_a_changed_file_has_another_version(etag: bool, last_modified: bool, head: bool):
    with web_server(etag=etag, last_modified=last_modified, head=head) as server:
        server.files = {"/a": b"12345"}
        first = storage.details(f"{server.url}/a")
        assert first == storage.details(f"{server.url}/a")
        assert first is not None
        assert first.version
        assert first.modified == (server.changed if last_modified else None)
        server.files = {"/a": b"67890"}
        server.changed += 60
        second = storage.details(f"{server.url}/a")
        assert second is not None
        assert second.version != first.version


def test_where_a_server_tells_only_the_size_that_is_the_version():
    with web_server(last_modified=False) as server:
        server.files = {"/a": b"12345"}
        first = storage.details(f"{server.url}/a")
        server.files = {"/a": b"123456"}
        assert first != storage.details(f"{server.url}/a")


def test_an_endless_answer_ends_at_the_limit():
    with web_server() as server:
        server.endless = {"/a"}
        with pytest.raises(TooManyBytesError, match="over the limit of 3000000"):
            storage.read_bytes(f"{server.url}/a", max_bytes=3_000_000)
        with pytest.raises(TooManyBytesError, match="over the limit of 30000000"):
            storage.read_bytes(f"{server.url}/a", max_bytes=30_000_000)
        assert storage.exists(f"{server.url}/a")


def test_a_file_over_the_limit_isnt_transferred_to_its_end():
    with web_server() as server:
        server.files = {"/a": bytes(60_000_000)}
        with pytest.raises(TooManyBytesError, match="60000000 bytes, over the limit of 30000000"):
            storage.read_bytes(f"{server.url}/a", max_bytes=30_000_000)
        assert server.sent < 40_000_000


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (400, Cause.IO_ERROR),
        (401, Cause.PERMISSION_DENIED),
        (402, Cause.IO_ERROR),
        (403, Cause.PERMISSION_DENIED),
        (404, Cause.NOT_FOUND),
        (405, Cause.IO_ERROR),
        (410, Cause.NOT_FOUND),
        (418, Cause.IO_ERROR),
        (451, Cause.IO_ERROR),
        (429, Cause.UNAVAILABLE),
        (500, Cause.UNAVAILABLE),
        (503, Cause.UNAVAILABLE),
    ],
)
@pytest.mark.parametrize("read", [storage.read_bytes, storage.open_file, storage.details])
def test_every_status_has_its_cause(read: Any, status: int, cause: Cause, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOT_RETRY_SECONDS", "0.1")
    with web_server() as server:
        server.statuses = {"/a.png": status}
        if cause == Cause.NOT_FOUND and read is storage.details:
            assert storage.details(f"{server.url}/a.png") is None
            return
        with pytest.raises(OSError) as raised:  # noqa: PT011 - which one is what is asked
            read(f"{server.url}/a.png")
    error = as_image_error(raised.value)
    assert error.cause == cause
    assert str(status) in error.message


def test_a_server_that_isnt_there_is_unavailable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOT_RETRY_SECONDS", "0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(UnavailableError):
            storage.read_bytes(f"http://127.0.0.1:{closed.getsockname()[1]}/a.png")


@pytest.mark.parametrize("url", ["http://host.invalid/a.png"])
def test_a_host_that_doesnt_exist_isnt_asked_again(url: str):
    with pytest.raises(StoreError, match="no such host"):
        storage.read_bytes(url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999/a.png", "http:///a.png", "http://[::1/a.png", "nothing://a", "http://127.0.0.1:x/a"]
)
def test_what_is_no_url_is_refused_in_one_line(url: str):
    with pytest.raises(BadUrlError) as raised:
        storage.read_bytes(url)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("ranges", [True, False])
def test_requests_that_fail_now_and_then_cost_no_byte(ranges: bool):
    data = bytes(range(256)) * 80_000
    with web_server(ranges=ranges) as server, faulty_proxy(server.url, 0.3, seed=1) as proxy:
        server.files = {"/a": data}
        with storage.open_file(f"{proxy.url}/a") as file:
            read = [file.read(3_000_000) for _ in range(7)]
            assert b"".join(read) == data
            file.seek(-100, io.SEEK_END)
            assert file.read() == data[-100:]
        assert storage.read_bytes(f"{proxy.url}/a") == data
        for start in range(0, 2000, 200):
            assert storage.read_bytes(f"{proxy.url}/a", start=start, end=start + 300) == data[start : start + 300]
        assert storage.details(f"{proxy.url}/a") is not None
        assert sum(proxy.counts.values()) > proxy.counts["none"]
