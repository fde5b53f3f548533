"""Fetches a captioner from the Hugging Face hub: only when a person asks for it, and only the revision that we know.

The files are read over plain HTTP and not by huggingface_hub: between its releases 0.25 and 2 the progress, the
protocol and the way to interrupt it have changed several times, while `/<repository>/resolve/<revision>/<file>` has
not. So HF_HUB_OFFLINE, which a worker sets for itself, does not matter here. HF_ENDPOINT and proxies are honoured.

Half a download lies in `.<name>.part` beside the model's folder, where the next one goes on. The folder itself
appears by a rename, when everything is there and every checksum is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_train.core.captioners import CaptionerFile, CaptionerModel, find_model
from lora_train.core.errors import JobError, ModelError
from lora_train.core.events import EventWriter, Phase
from lora_train.core.files import lock, replace
from lora_train.core.jobs import DOWNLOADING, DownloadSpec, JobFolder, RequestedEnd

_CHUNK_BYTES = 256 * 1024
_POLL_S = 0.2
_TOLD_EVERY_S = 0.5
_SILENCE_LIMIT_S = 30.0
"""A connection that brings nothing for so long is given up."""
_TRIES = 3
"""Connections in a row that may break without having brought a single byte."""
_TRY_PAUSE_S = 1.0
_SPARE_BYTES = 64 * 1024 * 1024
"""Room that is left on the disk."""
_OWN_FOLDER = "Or put the model's files into a folder and give that in the settings."


class _Broken(Exception):  # noqa: N818  (never leaves this module)
    """The connection ended too early, or there was none; another try may help."""


class _Abandoned(Exception):  # noqa: N818  (as above)
    """Nobody waits for the transfer any more."""


def download(spec: DownloadSpec, job: JobFolder, events: EventWriter) -> dict[str, object]:
    """Fetch the model into its folder, or find it there.

    Raises ModelError when the hub can't be reached, lacks a file or gives another one than we know, JobError when the
    disk is too full or another download of the same model runs, RequestedEnd when the person asked to stop.
    """
    model, folder = find_model(spec.model), Path(spec.folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    held = lock(folder.with_name(f".{folder.name}.lock"))
    if held is None:
        raise JobError(f"{model.label} is being downloaded already.", "Wait for its end.")
    with held:
        part = folder.with_name(f".{folder.name}.part")
        transfer = _Transfer(model, part)
        if not all(_size(folder / file.name) == file.size_bytes for file in model.files):
            _check_disk(model, part)
            _run(transfer, job, events)
            _put_in_place(part, folder)
        events.write(Phase(name=DOWNLOADING, done=model.size_bytes, total=model.size_bytes))
    return {"folder": str(folder), "bytes": transfer.received_bytes}


def _run(transfer: _Transfer, job: JobFolder, events: EventWriter) -> None:
    """Let the transfer go on in a thread of its own: a connection that hangs must not keep a person waiting.

    The thread is a daemon, so that it ends with the process at the latest.
    """
    failures: list[Exception] = []

    def work() -> None:
        try:
            transfer.run()
        except Exception as error:  # handed over to the thread that waits
            failures.append(error)

    thread = threading.Thread(target=work, name="train-tools-download", daemon=True)
    thread.start()
    told_bytes, told_at = -1, 0.0
    while thread.is_alive():
        if (request := job.requested()) is not None:
            transfer.is_abandoned = True
            thread.join(_POLL_S)
            raise RequestedEnd(request)
        if time.monotonic() - told_at >= _TOLD_EVERY_S:
            told_at = time.monotonic()
            if transfer.done_bytes == told_bytes:
                events.beat()
            else:
                told_bytes = transfer.done_bytes
                events.write(Phase(name=DOWNLOADING, done=told_bytes, total=transfer.total_bytes))
        thread.join(_POLL_S)
    if failures:
        raise failures[0]


class _Transfer:
    """Brings the files of a model into `part`, one after the other, going on where an earlier transfer ended."""

    def __init__(self, model: CaptionerModel, part: Path) -> None:
        self._model = model
        self._part = part
        self.total_bytes = model.size_bytes
        self.done_bytes = 0
        """Of the files, those of earlier transfers included."""
        self.received_bytes = 0
        """Over the network, this time."""
        self.is_abandoned = False

    def run(self) -> None:
        """Raises ModelError, OSError where the disk is full."""
        self._part.mkdir(parents=True, exist_ok=True)
        try:
            for file in self._model.files:
                self._fetch(file)
        finally:
            with contextlib.suppress(OSError):
                self._part.rmdir()  # an empty one tells nothing

    def _fetch(self, file: CaptionerFile) -> None:
        """One whole file with the right checksum."""
        path = self._part / file.name
        if not file.sha256:  # the hub tells the checksum of what it sends; these are small
            path.unlink(missing_ok=True)
        before, etag, broken = self.done_bytes, "", 0
        while (offset_bytes := _size(path)) < file.size_bytes:
            self.done_bytes = before + offset_bytes
            try:
                etag = self._receive(file, path, offset_bytes)
            except _Broken as error:
                broken = 0 if _size(path) > offset_bytes else broken + 1
                if broken >= _TRIES:
                    raise ModelError(
                        f"{self._model.label} can't be downloaded from {_endpoint()}: {error}.",
                        "Check the connection and try again: it goes on where it ended. " + _OWN_FOLDER,
                    ) from None
                time.sleep(_TRY_PAUSE_S)
        self.done_bytes = before + file.size_bytes
        if not self._is_right(path, file.sha256 or etag):
            path.unlink()
            raise ModelError(
                f"{file.name} of {self._model.label} came from {_endpoint()} with a wrong checksum, and was deleted.",
                "Try again. If it happens once more, the server or something on the way gives another file.",
            )

    def _receive(self, file: CaptionerFile, path: Path, offset_bytes: int) -> str:
        """Append what comes to the file; returns the checksum that the hub tells. Raises ModelError, _Broken."""
        address = f"{_endpoint()}/{self._model.repository}/resolve/{self._model.revision}/{file.name}"
        headers = {"User-Agent": "train-tools", "Accept-Encoding": "identity"}
        if offset_bytes:
            headers["Range"] = f"bytes={offset_bytes}-"
        redirects = _Redirects()
        opener = urllib.request.build_opener(redirects, urllib.request.HTTPSHandler(context=_certificates()))
        try:
            answer = opener.open(urllib.request.Request(address, headers=headers), timeout=_SILENCE_LIMIT_S)
        except urllib.error.HTTPError as error:
            raise self._refusal(file, address, error.code) from None
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(_reason(error)) from None
        with answer:
            if answer.status != http.HTTPStatus.PARTIAL_CONTENT:  # this server begins anew
                self.done_bytes -= offset_bytes
                offset_bytes = 0
            with path.open("ab" if offset_bytes else "wb") as stream:
                self._copy(answer.read1, stream.write, file.size_bytes - offset_bytes)
            return redirects.etag or _checksum(answer.headers.get("ETag"))

    def _copy(self, read: Callable[[int], bytes], write: Callable[[bytes], object], expected_bytes: int) -> None:
        """`expected_bytes` and no more. Raises _Broken where the connection ends before."""
        while expected_bytes:
            self._require_interest()
            try:
                chunk = read(min(_CHUNK_BYTES, expected_bytes))
            except (OSError, http.client.HTTPException) as error:
                raise _Broken(_reason(error)) from None
            if not chunk:
                raise _Broken("the connection broke off")
            write(chunk)
            expected_bytes -= len(chunk)
            self.done_bytes += len(chunk)
            self.received_bytes += len(chunk)

    def _refusal(self, file: CaptionerFile, address: str, code: int) -> Exception:
        if code >= http.HTTPStatus.INTERNAL_SERVER_ERROR or code == http.HTTPStatus.TOO_MANY_REQUESTS:
            return _Broken(f"the server answers {code}")
        what = "does not exist" if code == http.HTTPStatus.NOT_FOUND else "is refused"
        return ModelError(
            f"{file.name} of {self._model.label} can't be downloaded: {address} {what} ({code}).",
            "Check HF_ENDPOINT, if you use a mirror. " + _OWN_FOLDER,
        )

    def _is_right(self, path: Path, checksum: str) -> bool:
        """The hub tells the SHA-256 of a large file, and of a small one git's: SHA-1 over a header and the file."""
        kinds = {64: hashlib.sha256(), 40: hashlib.sha1(b"blob %d\x00" % _size(path), usedforsecurity=False)}
        digest = kinds.get(len(checksum))
        if digest is None:
            return False
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                self._require_interest()
                digest.update(chunk)
        return digest.hexdigest() == checksum

    def _require_interest(self) -> None:
        if self.is_abandoned:
            raise _Abandoned


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows them, and remembers the checksum that the hub told on the way to the store that has the file."""

    etag = ""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        self.etag = self.etag or _checksum(headers.get("X-Linked-ETag"))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def _certificates() -> ssl.SSLContext:
    """The system's; Python from python.org on a Mac has none, but every host brings the package of Mozilla's."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:
        with contextlib.suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context


def _checksum(etag: str | None) -> str:
    return (etag or "").removeprefix("W/").strip('"')


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__).rstrip(".")


def _size(path: Path) -> int:
    """0 for a file that is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _check_disk(model: CaptionerModel, part: Path) -> None:
    """Raise JobError where there is no room for what is still to come."""
    needed_bytes = model.size_bytes - sum(_size(part / file.name) for file in model.files) + _SPARE_BYTES
    free_bytes = shutil.disk_usage(part.parent).free
    if free_bytes < needed_bytes:
        raise JobError(
            f"{model.label} needs {needed_bytes / 1e6:.0f} MB, and {part.parent} has {free_bytes / 1e6:.0f} MB left.",
            "Make room on that drive.",
        )


def _put_in_place(part: Path, folder: Path) -> None:
    """What stands there incomplete may be a person's: it is set aside."""
    if folder.exists():
        number = 1
        while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
            number += 1
        replace(folder, aside)
    replace(part, folder)
