"""A web server of objects in memory, with ranges and tags as object stores have them, and faults on demand."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Objects:
    """What a server at `address` holds, by name; `fault(method, name)` says what goes wrong with a request.

    A fault is a status to answer with, ("cut", bytes) after which the connection ends, ("wait", seconds), or
    ("replace", content): the object becomes another one before the answer. None is none.
    """

    address: str = ""
    content: dict[str, bytes] = field(default_factory=dict)
    fault: Callable[[str, str], Any] = lambda method, name: None
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, name, and the bytes that were sent."""
    ranges: bool = True

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"

    def fetched(self, name: str) -> int:
        """How often an object was sent from its beginning to its end."""
        return sum(entry == ("GET", name, len(self.content[name])) for entry in self.requests)


class _Handler(BaseHTTPRequestHandler):
    objects: Objects

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def _answer(self, method: str) -> None:
        objects, name = self.objects, self.path.lstrip("/")
        fault = objects.fault(method, name)
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Retry-After", "0")
            self.end_headers()
            return
        kind, value = fault or (None, None)
        if kind == "wait":
            time.sleep(value)
        if kind == "replace":
            objects.content[name] = value
        if name not in objects.content:
            self.send_error(404)
            return
        content = objects.content[name]
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if (asked := self._range()) else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        sent = content[start : start + value] if kind == "cut" else content[start:]
        objects.requests.append((method, name, len(sent)))  # before a client can know of it
        if method == "GET":
            self.wfile.write(sent)

    def _range(self) -> str | None:
        return self.headers.get("Range") if self.objects.ranges else None

    def log_message(self, *given: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, *given: object) -> None:
        """A client that was killed is no news."""


@contextmanager
def served(content: dict[str, bytes] | None = None) -> Iterator[Objects]:
    """A server on loopback as long as the block runs."""
    objects = Objects(content=content or {})
    handler = type("Handler", (_Handler,), {"objects": objects})
    with _Server(("127.0.0.1", 0), handler) as server:
        objects.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield objects
        finally:
            server.shutdown()
            thread.join()
