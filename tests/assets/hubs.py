"""A hub on this machine: what the real one answers to huggingface_hub, and what can go wrong on the way."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lora_train.core.captioners import CaptionerModel

_FILE = re.compile(r"/(?P<repository>[\w-]+/[\w.-]+)/resolve/(?P<revision>[0-9a-f]{40})/(?P<file>[\w./-]+)$")
_LISTING = re.compile(r"/api/models/(?P<repository>[\w-]+/[\w.-]+?)(/revision/(?P<revision>[\w.-]+))?\?blobs=[Tt]rue$")
NEWEST = "89abcdef0123456789abcdef0123456789abcdef"
"""The commit of a repository that is asked for without one."""


def git_checksum(content: bytes) -> str:
    """What the hub gives as the ETag of a small file."""
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


class Zeros:
    """A file as large as a real model's, which takes no memory."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def __len__(self) -> int:
        return self.size_bytes

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self.size_bytes)
        return bytes(stop - start)


class Hub:
    """Files by repository, revision and name. Large ones lie in a store that the hub leads to, as the real one does."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str, str], bytes | Zeros] = {}
        self.large: set[str] = set()
        self.newest = NEWEST
        self.tags: dict[str, str] = {}
        """Tag -> commit."""
        self.answers_with = ""
        """The commit that is told, whichever was asked for."""
        self.token = ""
        """What must be sent for any answer, as for a gated model."""
        self.has_ranges = True
        self.cut_after_bytes: list[int] = []
        """For each next large file that is asked for: how much of it comes before the connection ends."""
        self.pause_s = 0.0
        """Between the pieces of an answer."""
        self.status: dict[str, int] = {}
        """Another answer for files of these names, and for "listing"."""
        self.page = ""
        """Answered to everything, as by a network that wants a log-in."""
        self.told: dict[str, str] = {}
        """Another checksum for files of these names."""
        self.asked: list[tuple[str, str]] = []
        """Name and Range of each request for a file's content."""
        self.tokens: list[tuple[str, str]] = []
        """Path and Authorization of each request."""
        self.revisions: list[str] = []
        """That were asked for in listings."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._store = f"http://localhost:{self._server.server_port}/store"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def offer(self, model: CaptionerModel, contents: Mapping[str, bytes]) -> None:
        for name, content in contents.items():
            self.files[model.repository, model.revision or NEWEST, name] = content

    def offer_zeros(self, model: CaptionerModel, name: str, size_bytes: int) -> None:
        self.files[model.repository, model.revision, name] = Zeros(size_bytes)

    def contents_of(self, model: CaptionerModel) -> dict[str, bytes | Zeros]:
        return {key[2]: content for key, content in self.files.items() if key[0] == model.repository}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        token = request.headers.get("Authorization", "")
        self.tokens.append((request.path, token))
        is_store = request.path.startswith("/store/")
        if self.page:
            self._send_whole(request, "text/html", self.page.encode())
        elif self.token and not is_store and token != f"Bearer {self.token}":
            self._refuse(request, 401, "GatedRepo")
        elif listing := _LISTING.match(request.path):
            self._list(request, listing["repository"], listing["revision"] or "")
        elif found := _FILE.match(request.path.removeprefix("/store")):
            self._give(request, found["repository"], found["revision"], found["file"], is_store=is_store)
        else:
            self._refuse(request, 404, "RepoNotFound")

    def _list(self, request: BaseHTTPRequestHandler, repository: str, revision: str) -> None:
        self.revisions.append(revision)
        revision = self.tags.get(revision, revision) or self.newest
        if "listing" in self.status:
            self._refuse(request, self.status["listing"])
        elif repository not in {key[0] for key in self.files}:
            self._refuse(request, 401, "RepoNotFound")  # to those without a token it does not say which are private
        elif (repository, revision) not in {key[:2] for key in self.files}:
            self._refuse(request, 404, "RevisionNotFound")
        else:
            names = [key[2] for key in self.files if key[:2] == (repository, revision)]
            siblings = [self._sibling(name, self.files[repository, revision, name]) for name in names]
            told = {
                "id": repository,
                "sha": self.answers_with or revision,
                "private": False,
                "tags": [],
                "siblings": siblings,
            }
            self._send_whole(request, "application/json", json.dumps(told).encode())

    def _sibling(self, name: str, content: bytes | Zeros) -> dict[str, object]:
        told: dict[str, object] = {"rfilename": name, "size": len(content)}
        whole = content if isinstance(content, bytes) else b""
        told["blobId"] = self.told.get(name) or git_checksum(whole)
        if name in self.large:
            sha256 = self.told.get(name) or hashlib.sha256(whole).hexdigest()
            told["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        return told

    def _give(
        self, request: BaseHTTPRequestHandler, repository: str, revision: str, name: str, *, is_store: bool
    ) -> None:
        content = self.files.get((repository, revision, name))
        if content is None or name in self.status:
            self._refuse(request, self.status.get(name, 404))
            return
        if name in self.large and not is_store:
            request.send_response(302)
            request.send_header("Location", f"{self._store}{request.path}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request_range = request.headers.get("Range", "") if self.has_ranges else ""
        begin = int(request_range.removeprefix("bytes=").rstrip("-")) if request_range else 0
        request.send_response(206 if request_range else 200)
        request.send_header("Content-Length", str(len(content) - begin))
        if request_range:
            request.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        self.asked.append((name, request_range))
        self._send(request, content, begin, cuts=self.cut_after_bytes if name in self.large else [])

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str = "") -> None:
        request.send_response(status)
        if code:
            request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _send_whole(self, request: BaseHTTPRequestHandler, media_type: str, content: bytes) -> None:
        request.send_response(200)
        request.send_header("Content-Type", media_type)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _send(self, request: BaseHTTPRequestHandler, content: bytes | Zeros, begin: int, cuts: list[int]) -> None:
        end = min(len(content), begin + cuts.pop(0)) if cuts else len(content)
        try:
            for start in range(begin, end, 1 << 16):
                request.wfile.write(content[start : min(start + (1 << 16), end)])
                time.sleep(self.pause_s)
        except OSError:  # nobody listens any more
            pass
        if end < len(content):
            request.close_connection = True
