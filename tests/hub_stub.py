"""A hub on this machine: as much of the Hugging Face hub's HTTP as its client needs to upload a model and to load it.

Repositories live in memory. Whoever writes needs the token; reading is free but for what is private.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_aTokenThatNobodyMaySee"
LARGE = 10_000  # bytes; larger files go the way of Git LFS


class Hub:
    """What is on it, and what was asked of it."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: list[list[str]] = []
        """The names of the files of each."""
        self.asked: list[str] = []
        """Method and path of every request."""
        self.refuses = ""
        """The name of a repository that the token may not write to."""
        self.objects: dict[str, bytes] = {}
        self.address = ""


class Handler(BaseHTTPRequestHandler):
    """Answers for `hub`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._resolve(with_body=True)

    def do_HEAD(self) -> None:
        self._resolve(with_body=False)

    def do_PUT(self) -> None:
        self.hub.asked.append(f"PUT {self.path}")
        content = self._body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.objects[oid] = content
        self._say(200, {})

    def do_POST(self) -> None:
        self.hub.asked.append(f"POST {self.path}")
        content = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say(401, {"error": "Invalid credentials in Authorization header"})
        elif self.hub.refuses and (self.hub.refuses in self.path or self.path == "/api/repos/create"):
            self._say(403, {"error": f"Forbidden: {TOKEN} may not write to {self.hub.refuses}"})
        elif self.path == "/api/repos/create":
            self._create(json.loads(content))
        elif self.path == "/api/validate-yaml":
            self._say(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(content)["files"]
            modes = [("lfs" if file["size"] > LARGE else "regular", file["path"]) for file in files]
            self._say(200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for mode, p in modes]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._say(200, {"objects": [self._place(each) for each in json.loads(content)["objects"]]})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in content.splitlines()])
        else:
            self._say(404, {"error": f"no such thing: {self.path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            self._say(409, {"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"})
            return
        self.hub.repositories[name] = {}
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(name)
        self._say(200, {"url": f"{self.hub.address}/{name}"})

    def _place(self, each: dict[str, Any]) -> dict[str, Any]:
        """Where an object is to be uploaded; nowhere if it is there."""
        told = {"oid": each["oid"], "size": each["size"]}
        if each["oid"] in self.hub.objects:
            return told
        return told | {"actions": {"upload": {"href": f"{self.hub.address}/lfs/{each['oid']}"}}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        name = "/".join(self.path.split("/")[3:5])
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        self.hub.repositories[name] |= files
        self.hub.commits.append(sorted(files))
        oid = f"{len(self.hub.commits):040x}"
        self._say(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def _resolve(self, *, with_body: bool) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        name, _, file = self.path.strip("/").partition("/resolve/")
        hidden = name in self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        content = self.hub.repositories.get(name, {}).get(file.partition("/")[2])
        if name not in self.hub.repositories or hidden:
            self._say(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif content is None:
            self._say(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        else:
            etag = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": f"{len(self.hub.commits):040x}",
            }
            self._answer(200, content, etag, with_body=with_body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _say(self, status: int, values: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        said = {"Content-Type": "application/json", **(headers or {})}
        self._answer(status, json.dumps(values).encode(), said, with_body=self.command != "HEAD")

    def _answer(self, status: int, content: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *told: object) -> None:
        """Nothing is logged."""


@contextmanager
def served() -> Iterator[Hub]:
    """A hub that answers as long as the context lasts."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("One", (Handler,), {"hub": hub})) as server:
        server.daemon_threads = True
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
