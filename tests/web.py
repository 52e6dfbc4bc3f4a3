"""A web server on loopback whose habits can be chosen: what it tells of its files, and in which ways it answers."""

from __future__ import annotations

import email.utils
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


class WebServer(ThreadingHTTPServer):
    """Serves `files` (path to content); `log` holds (method, path, Range) of each request.

    Args:
        ranges: whether it gives parts of files.
        head: whether it answers HEAD.
        etag, last_modified: whether it tells them; `changed` is the time of the last change, in seconds since 1970.
        length: "told" by Content-Length, "chunked", or "until close".
    """

    daemon_threads = True

    def __init__(
        self,
        ranges: bool = True,
        head: bool = True,
        etag: bool = False,
        last_modified: bool = True,
        length: str = "told",
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ranges, self.head, self.etag, self.last_modified, self.length = ranges, head, etag, last_modified, length
        self.files: dict[str, bytes] = {}
        self.statuses: dict[str, int] = {}
        self.endless: set[str] = set()
        self.changed = 1_700_000_000.0
        self.log: list[tuple[str, str, str]] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up when they have read enough."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_HEAD(self) -> None:
        self._serve(self.server.head)

    def do_GET(self) -> None:
        self._serve(True)

    def _serve(self, allowed: bool) -> None:
        server, path = self.server, unquote(self.path)
        asked = self.headers.get("Range", "")
        server.log.append((self.command, path, asked))
        if not allowed:
            return self._answer(405)
        if path in server.statuses:
            return self._answer(server.statuses[path])
        if path in server.endless:
            return self._send_for_ever()
        if path not in server.files:
            return self._answer(404)
        data = server.files[path]
        headers = {"Content-Type": "application/octet-stream"}
        if server.etag:
            headers["ETag"] = f'"{hash((data, server.changed))}"'
        if server.last_modified:
            headers["Last-Modified"] = email.utils.formatdate(server.changed, usegmt=True)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        if not (server.ranges and found):
            return self._answer(200, data, headers)
        start, end = int(found[1]), min(int(found[2] or len(data)) + 1, len(data))
        if start >= len(data):
            return self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return self._answer(206, data[start:end], headers)

    def _answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        length = self.server.length if status == 200 else "told"
        if length == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + b"0\r\n\r\n"
        elif length == "told":
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.server.sent += len(data)

    def _send_for_ever(self) -> None:
        self.close_connection = True
        self.send_response_only(200)
        self.send_header("Connection", "close")
        self.end_headers()
        while self.command != "HEAD":
            self.wfile.write(bytes(1 << 16))
            self.server.sent += 1 << 16

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def web_server(**habits: Any) -> Iterator[WebServer]:
    """A running server."""
    with WebServer(**habits) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
