"""A proxy on loopback that makes some of the requests to a store fail, the same ones for the same seed and order."""

from __future__ import annotations

import collections
import http.client
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

#: A status, or what happens to the connection: before the store hears of the request, or after it did its work.
FAULTS = ("429", "500", "503", "reset before", "reset after", "hang up after", "truncate")


class FaultyProxy(ThreadingHTTPServer):
    """Forwards to `upstream`; a share of the requests fails, and all whose path holds `always_503`."""

    daemon_threads = True

    def __init__(self, upstream: str, share: float, seed: int, always_503: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.share, self.always_503 = urlsplit(upstream).netloc, share, always_503
        self.counts: collections.Counter[str] = collections.Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fate(self, path: str) -> str:
        with self._lock:
            fault = self._random.choice(FAULTS) if self._random.random() < self.share else "none"
            if self.always_503 and self.always_503 in path:
                fault = "503"
            self.counts[fault] += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fate(self.path)
        if fault.isdigit():
            self._answer(int(fault), [("Content-Type", "text/plain")], b"made to fail")
            return
        if fault == "reset before":
            self._reset()
            return
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
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
            dropped = {"connection", "transfer-encoding", "content-length"}
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in dropped]
            self._answer(answer.status, kept, content, truncate=fault == "truncate")

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = _serve

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, truncate: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
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
def faulty_proxy(upstream: str, share: float, seed: int, always_503: str = "") -> Iterator[FaultyProxy]:
    """A running proxy; `counts` says how often it did what."""
    with FaultyProxy(upstream, share, seed, always_503) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()
