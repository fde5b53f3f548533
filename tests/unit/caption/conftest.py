"""A hub on this machine: what the real one answers for the files of a model, and what can go wrong on the way."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lora_train.core.captioners import CaptionerFile, CaptionerModel

_PATH = re.compile(r"/(?P<repository>[\w-]+/[\w.-]+)/resolve/(?P<revision>[0-9a-f]{40})/(?P<file>[\w.]+)$")


def git_checksum(content: bytes) -> str:
    """What the hub gives as the ETag of a small file."""
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


CONTENTS = {"model.onnx": bytes(range(256)) * 4096, "selected_tags.csv": b"tag_id,name\n1,cat\n", "config.json": b"{}"}
"""Of a model that is small enough for tests: 1 MiB of weights."""


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

    contents = CONTENTS

    def __init__(self) -> None:
        self.files: dict[tuple[str, str, str], bytes | Zeros] = {}
        self.large: set[str] = set()
        self.cut_after_bytes: list[int] = []
        """For each next answer: how much of it comes before the connection ends."""
        self.pause_s = 0.0
        """Between the pieces of an answer."""
        self.status: dict[str, int] = {}
        """Another answer for files of these names."""
        self.etag: dict[str, str] = {}
        """Another checksum for files of these names."""
        self.asked: list[tuple[str, str]] = []
        """Name and Range of each request for a file's content."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self, with_content=False)

            def do_GET(self) -> None:
                hub.answer(self, with_content=True)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def offer(self, model: CaptionerModel, contents: Mapping[str, bytes]) -> None:
        for name, content in contents.items():
            self.files[model.repository, model.revision, name] = content

    def offer_zeros(self, model: CaptionerModel, name: str, size_bytes: int) -> None:
        self.files[model.repository, model.revision, name] = Zeros(size_bytes)

    def answer(self, request: BaseHTTPRequestHandler, *, with_content: bool) -> None:
        is_store = request.path.startswith("/store/")
        found = _PATH.match(request.path.removeprefix("/store"))
        name = found["file"] if found else ""
        content = self.files.get((found["repository"], found["revision"], name)) if found else None
        if content is None or name in self.status:
            self._refuse(request, self.status.get(name, 404))
            return
        checksum = self.etag.get(name, "")
        if isinstance(content, bytes) and not checksum:
            checksum = hashlib.sha256(content).hexdigest() if name in self.large else git_checksum(content)
        request_range = request.headers.get("Range", "")
        if name in self.large and not is_store:
            request.send_response(302)
            request.send_header("Location", f"/store{request.path}")
            request.send_header("X-Linked-Size", str(len(content)))
            request.send_header("X-Linked-ETag", f'"{checksum}"')
            request.send_header("X-Repo-Commit", found["revision"] if found else "")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        begin = int(request_range.removeprefix("bytes=").rstrip("-")) if request_range else 0
        request.send_response(206 if request_range else 200)
        request.send_header("Content-Length", str(len(content) - begin))
        request.send_header("ETag", '"of the store"' if is_store else f'W/"{checksum}"')
        if request_range:
            request.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        if with_content:
            self.asked.append((name, request_range))
            self._send(request, content, begin)

    def _refuse(self, request: BaseHTTPRequestHandler, status: int) -> None:
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _send(self, request: BaseHTTPRequestHandler, content: bytes | Zeros, begin: int) -> None:
        end = min(len(content), begin + self.cut_after_bytes.pop(0)) if self.cut_after_bytes else len(content)
        try:
            for start in range(begin, end, 1 << 16):
                request.wfile.write(content[start : min(start + (1 << 16), end)])
                time.sleep(self.pause_s)
        except OSError:  # nobody listens any more
            pass
        if end < len(content):
            request.close_connection = True


@pytest.fixture
def hub() -> Iterator[Hub]:
    running = Hub()
    yield running
    running.close()


@pytest.fixture
def small_model(hub: Hub) -> CaptionerModel:
    """Offered by the hub. Of config.json we know no checksum."""
    files = tuple(
        CaptionerFile(name, len(content), "" if name == "config.json" else hashlib.sha256(content).hexdigest())
        for name, content in CONTENTS.items()
    )
    model = CaptionerModel(
        name="small-tagger",
        kind="wd14",
        label="Small tagger",
        good_for="tests",
        repository="somebody/small-tagger",
        revision="0123456789abcdef0123456789abcdef01234567",
        files=files,
    )
    hub.offer(model, CONTENTS)
    hub.large = {"model.onnx"}
    return model
