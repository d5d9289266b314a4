"""A web server for tests, which can be told to fail: connections cut off, errors, answers without ranges."""

from __future__ import annotations

import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FlakyServer(ThreadingHTTPServer):
    """Serves a folder.

    Attributes:
        trouble: answers that go wrong, as a pattern that is gone through request by request: "" for none, a status
            such as "503", "cut" for a connection that ends half-way, "gone" for one that ends before any answer.
        ranges: whether it knows range requests.
        requests: the paths asked for, with their ranges.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.trouble: list[str] = []
        self.ranges = True
        self.requests: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def note(self, path: str, part: str) -> str:
        with self._lock:
            self.requests.append((path, part))
            return self.trouble[(len(self.requests) - 1) % len(self.trouble)] if self.trouble else ""

    def handle_error(self, *_: object) -> None:
        pass  # clients go away as they like


class _Handler(BaseHTTPRequestHandler):
    server: FlakyServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        asked = self.headers.get("Range", "")
        trouble = self.server.note(self.path, asked)
        path = self.server.folder / urllib.parse.unquote(self.path).lstrip("/")
        if trouble == "gone":
            self.connection.close()
            return
        if trouble.isdigit() or not path.is_file():
            self.send_error(int(trouble) if trouble else 404)
            return
        content = path.read_bytes()
        if asked and self.server.ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
        self.send_response(206 if asked and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if trouble == "cut" else content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[FlakyServer]:
    """Serves a folder on this machine."""
    with FlakyServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
