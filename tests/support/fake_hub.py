"""A Hugging Face Hub on this machine: repositories, commits, ranges, redirects, and its bad days.

It speaks the part of the Hub's HTTP API that a pull uses, over real sockets: the description of a
model at a revision, and its files, whole or from a byte on, behind a redirect as the Hub has them
for large files. What goes wrong is set per file or for the next requests.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

SMALL_BYTES = 4096  # smaller files are git's own, others LFS


@dataclass
class Refusal:
    """An answer that is none: a status, the Hub's own code for it, headers."""

    status: int
    code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    range: str
    authorization: str

    @property
    def name(self) -> str:
        """The file that it is about."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_body(self) -> bool:
        """Whether a file was asked for, from some byte to its end: no header, no redirect."""
        return self.path.startswith("/cdn/") and (not self.range or self.range.endswith("-"))


class FakeHub:
    """`with FakeHub() as hub`: hub.url is its endpoint."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refusals: dict[str, list[Refusal]] = {}  # by a piece of the path, one each time
        self.drops: dict[str, list[int]] = {}  # by file: bytes after which a connection ends
        self.bodies: dict[str, bytes] = {}  # by file: what is sent instead
        self.ranges = True
        self.slow_s = 0.0  # between pieces of a body
        self.asked: list[Asked] = []
        self.listing: Mapping[str, Any] = {}  # overrides of a description
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Nobody answers any more."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, repository: str, folder: Path, **extra: bytes) -> str:
        """A new commit with a folder's files; its name."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())} | extra
        joined = b"".join(name.encode() + data for name, data in sorted(files.items()))
        commit = hashlib.sha1(joined).hexdigest()
        self.repositories.setdefault(repository, {})[commit] = files
        return commit

    def commit(self, repository: str, revision: str) -> str | None:
        """The commit that a revision means: itself, or the newest one of main."""
        commits = self.repositories[repository]
        return revision if revision in commits else [*commits][-1] if revision == "main" else None

    def describe(self, repository: str, commit: str) -> dict[str, Any]:
        """What the API says of a commit."""
        siblings = []
        for name, data in self.repositories[repository][commit].items():
            item: dict[str, Any] = {"rfilename": name, "size": len(data)}
            if len(data) < SMALL_BYTES:
                blob = f"blob {len(data)}\0".encode() + data
                item["blobId"] = hashlib.sha1(blob).hexdigest()
            else:
                sha256 = hashlib.sha256(data).hexdigest()
                item["blobId"] = "0" * 40
                item["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 130}
            siblings.append(item)
        return {"id": repository, "sha": commit, "siblings": siblings} | dict(self.listing)

    def bodies_asked(self, name: str) -> list[str]:
        """The ranges in which a file was asked for, at its last address."""
        return [each.range for each in self.asked if each.is_body and each.name == name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *_: object) -> None:
        """Not on the tests' stderr."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(
            Asked(
                self.command, path, self.headers.get("Range", ""),
                self.headers.get("Authorization", ""),
            )
        )  # fmt: skip
        for piece, refusals in self.hub.refusals.items():
            if piece in path and refusals:
                return self._refuse(refusals.pop(0))
        for pattern, answer in (
            (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self._model),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/([^/]+)", self._redirect),
            (r"/cdn/([^/]+/[^/]+)/([^/]+)/([^/]+)", self._body),
        ):
            found = re.fullmatch(pattern, path)
            if found:
                return answer(*(group or "main" for group in found.groups()))
        return self._refuse(Refusal(404))

    def _model(self, repository: str, revision: str) -> None:
        if repository not in self.hub.repositories:
            return self._refuse(Refusal(401, "RepoNotFound"))
        commit = self.hub.commit(repository, revision)
        if commit is None:
            return self._refuse(Refusal(404, "RevisionNotFound"))
        data = json.dumps(self.hub.describe(repository, commit)).encode()
        return self._send(200, data, {"Content-Type": "application/json"})

    def _redirect(self, repository: str, commit: str, name: str) -> None:
        if name not in self.hub.repositories.get(repository, {}).get(commit, {}):
            return self._refuse(Refusal(404, "EntryNotFound"))
        return self._send(302, b"", {"Location": f"/cdn/{repository}/{commit}/{name}"})

    def _body(self, repository: str, commit: str, name: str) -> None:
        data = self.hub.repositories[repository][commit][name]
        sent = self.hub.bodies.get(name, data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or not self.hub.ranges:
            return self._send(200, sent, {}, name)
        start, stop = int(asked[1]), int(asked[2] or len(sent) - 1) + 1
        spoken = {"Content-Range": f"bytes {start}-{stop - 1}/{len(sent)}"}
        return self._send(206, sent[start:stop], spoken, name)

    def _refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Code": refusal.code} if refusal.code else {}
        self._send(refusal.status, b"{}", {**headers, **refusal.headers})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        drops = self.hub.drops.get(name)
        if drops:
            self.wfile.write(data[: drops.pop(0)])
            self.close_connection = True
        else:
            self._write(data, name)

    def _write(self, data: bytes, name: str) -> None:
        """In pieces while somebody reads; who goes away is no error of ours."""
        piece = 1 << 14 if self.hub.slow_s and name.endswith(".safetensors") else len(data) or 1
        try:
            for at in range(0, len(data), piece):
                self.wfile.write(data[at : at + piece])
                if piece < len(data):
                    threading.Event().wait(self.hub.slow_s)
        except OSError:
            self.close_connection = True
