"""A proxy on loopback that makes some of the requests to a store fail, the same ones for the same seed and order.

`faulty_store` puts it before the emulator of a store, in this process and in those that it starts.
"""

from __future__ import annotations

import collections
import http.client
import os
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import fsspec
import pytest

#: A status, or what happens to the connection: before the store hears of the request, or after it did its work.
FAULTS = ("429", "500", "503", "reset before", "reset after", "hang up after", "truncate")


#: What happens to a request whatever chance says, from its method, path and body; None leaves it to chance.
Override = Callable[[str, str, bytes], str | None]


class FaultyProxy(ThreadingHTTPServer):
    """Forwards to `upstream`; a share of the requests fails, and others as `override` says ("none": not at all)."""

    daemon_threads = True

    def __init__(self, upstream: str, share: float = 0, seed: int = 0, override: Override | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.share, self.override = urlsplit(upstream).netloc, share, override
        self.counts: collections.Counter[str] = collections.Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def faults(self) -> int:
        return sum(self.counts.values()) - self.counts["none"]

    def fate(self, command: str, path: str, body: bytes) -> str:
        with self._lock:
            fault = self._random.choice(FAULTS) if self._random.random() < self.share else "none"
            if self.override:
                fault = self.override(command, path, body) or fault
            self.counts[fault] += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fate(self.command, self.path, body)
        if fault.isdigit():
            self._answer(int(fault), [("Content-Type", "text/plain")], b"made to fail")
            return
        if fault == "reset before":
            self._reset()
            return
        connection = http.client.HTTPConnection(self.server.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "host")}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "reset after":
            self._reset()
        elif fault == "hang up after":
            self.close_connection = True
        else:
            dropped = {"connection", "transfer-encoding", *(() if self.command == "HEAD" else ("content-length",))}
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in dropped]
            self._answer(answer.status, kept, content, truncate=fault == "truncate")

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = _serve

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, truncate: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204 and not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if truncate else content)
        if truncate:
            self.close_connection = True

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def faulty_proxy(
    upstream: str, share: float = 0, seed: int = 0, override: Override | None = None
) -> Iterator[FaultyProxy]:
    """A running proxy; `counts` says how often it did what."""
    with FaultyProxy(upstream, share, seed, override) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()


#: Where the libraries of stores are told which server to speak to, by protocol.
_ADDRESS = {"gs": "STORAGE_EMULATOR_HOST", "s3": "AWS_ENDPOINT_URL", "az": "AZURE_STORAGE_CONNECTION_STRING"}


@contextmanager
def faulty_store(
    url: str, share: float = 0, seed: int = 0, override: Override | None = None, retry_seconds: float = 30
) -> Iterator[FaultyProxy]:
    """The emulator that serves a `gs://`, `s3://` or `az://` URL, behind a proxy."""
    protocol = url.partition("://")[0]
    name = _ADDRESS[protocol]
    address = re.search(r"http://[^/;]+", os.environ[name])
    assert address is not None
    with pytest.MonkeyPatch.context() as patch, faulty_proxy(address[0], share, seed, override) as proxy:
        patch.setenv(name, os.environ[name].replace(address[0], proxy.url))
        patch.setenv("DOT_RETRY_SECONDS", str(retry_seconds))
        fsspec.filesystem(protocol).clear_instance_cache()  # instances remember where they were told to go
        try:
            yield proxy
        finally:
            fsspec.filesystem(protocol).clear_instance_cache()
