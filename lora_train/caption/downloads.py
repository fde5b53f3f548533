"""Fetches a captioner from the Hugging Face hub: only when a person asks for it, and only the revision that we know; of
a model that we don't know the one that the person named or else the newest one, whose commit is noted.

Half a download lies in `.<name>.part` beside the model's folder, where the next one goes on. The folder itself
appears by a rename, when everything is there and every checksum is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
import time
from pathlib import Path

import msgspec

from lora_train.caption import hub
from lora_train.core.captioners import CaptionerModel, find_model, is_commit, is_whole
from lora_train.core.errors import JobError, ModelError
from lora_train.core.events import EventWriter, Phase
from lora_train.core.files import lock, replace, write_bytes
from lora_train.core.jobs import JobFolder, RequestedEnd
from lora_train.core.specs import DOWNLOADING, DownloadSpec

_CHUNK_BYTES = 256 * 1024
_POLL_S = 0.2
_TOLD_EVERY_S = 0.5
_TRIES = 3
"""Connections in a row that may break without having brought a single byte."""
_TRY_PAUSE_S = 1.0
_SPARE_BYTES = 64 * 1024 * 1024
"""Room that is left on the disk."""


class _Origin(msgspec.Struct):
    """`.hub.json` in the model's folder."""

    repository: str
    revision: str


def download(spec: DownloadSpec, job: JobFolder, events: EventWriter) -> dict[str, object]:
    """Fetch the model into its folder, or find it there.

    Raises ModelError when the hub can't be reached, lacks a file or gives another one than we know, JobError when the
    disk is too full or another download of the same model runs, RequestedEnd when the person asked to stop.
    """
    model, folder = find_model(spec.model, spec.captioner), Path(spec.folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    held = lock(folder.with_name(f".{folder.name}.lock"))
    if held is None:
        raise JobError(f"{model.label} is being downloaded already.", "Wait for its end.")
    with held:
        part = folder.with_name(f".{folder.name}.part")
        transfer = _Transfer(model, part)
        if not is_whole(model, folder):
            _run(transfer, job, events)
            _put_in_place(part, folder)
            events.write(Phase(name=DOWNLOADING, done=transfer.total_bytes, total=transfer.total_bytes))
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
    told, told_at = (-1, -1), 0.0
    while thread.is_alive():
        if (request := job.requested()) is not None:
            raise RequestedEnd(request)
        if time.monotonic() - told_at >= _TOLD_EVERY_S:
            told_at = time.monotonic()
            if (now := (transfer.done_bytes(), transfer.total_bytes)) == told:
                events.beat()
            else:
                told = now
                events.write(Phase(name=DOWNLOADING, done=now[0], total=now[1]))
        thread.join(_POLL_S)
    if failures:
        raise failures[0]


class _Transfer:
    """Brings the files of a model into `part`, one after the other, going on where an earlier transfer ended."""

    def __init__(self, model: CaptionerModel, part: Path) -> None:
        self._model = model
        self._part = part
        self._files: list[hub.HubFile] = []
        self.total_bytes = model.size_bytes
        self.received_bytes = 0
        """Over the network, this time."""

    def done_bytes(self) -> int:
        """Of the files, those of earlier transfers included."""
        return sum(_size(self._part / file.name) for file in self._files)

    def run(self) -> None:
        """Raises ModelError, JobError, OSError where the disk is full."""
        self._part.mkdir(parents=True, exist_ok=True)
        try:
            commit = self._find_files()
            had_bytes = self.done_bytes()
            _check_disk(self._model.label, self.total_bytes - had_bytes, self._part)
            for file in self._files:
                self._fetch(commit, file)
            self.received_bytes = self.total_bytes - had_bytes
        finally:
            with contextlib.suppress(OSError):
                self._part.rmdir()  # an empty one tells nothing

    def _find_files(self) -> str:
        """The commit whose files they are: an earlier transfer's, which left halves of them."""
        note = self._part / ".hub.json"
        try:
            begun_with = "" if is_commit(self._model.revision) else _noted(note)
            commit, self._files = hub.list_files(self._model, begun_with or self._model.revision)
        except hub.Broken as error:
            raise self._failure(error) from None
        except ModelError:
            note.unlink(missing_ok=True)  # a commit that is gone must not be asked for again
            raise
        self.total_bytes = sum(file.size_bytes for file in self._files)
        write_bytes(note, msgspec.json.encode(_Origin(self._model.repository, commit)))
        return commit

    def _fetch(self, commit: str, file: hub.HubFile) -> None:
        """One whole file with the right checksum."""
        path, broken = self._part / file.name, 0
        path.touch()
        while (had_bytes := _size(path)) < file.size_bytes:
            try:
                hub.fetch(self._model, commit, file.name, file.size_bytes, path)
            except hub.Broken as error:
                broken = 0 if _size(path) > had_bytes else broken + 1
                if _size(path) > file.size_bytes:  # the server began anew, which older libraries don't notice
                    path.unlink()
                if broken >= _TRIES:
                    raise self._failure(error) from None
                time.sleep(_TRY_PAUSE_S)
        if not _is_right(path, file.checksum):
            path.unlink()
            raise ModelError(
                f"{file.name} of {self._model.label} came from {hub.endpoint()} with a wrong checksum, and was "
                "deleted.",
                "Try again. If it happens once more, the server or something on the way gives another file.",
            )

    def _failure(self, error: hub.Broken) -> ModelError:
        return ModelError(
            f"{self._model.label} can't be downloaded from {hub.endpoint()}: {error}.",
            "Check the connection and try again: it goes on where it ended. " + hub.OWN_FOLDER,
        )


def _noted(note: Path) -> str:
    try:
        return msgspec.json.decode(note.read_bytes(), type=_Origin).revision
    except (OSError, msgspec.MsgspecError):
        return ""


def _is_right(path: Path, checksum: str) -> bool:
    """By the SHA-256, or by git's checksum of a small file."""
    header = b"blob %d\x00" % _size(path)
    digest = {64: hashlib.sha256(), 40: hashlib.sha1(header, usedforsecurity=False)}.get(len(checksum))
    if digest is None:
        return False
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == checksum


def _size(path: Path) -> int:
    """0 for a file that is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _check_disk(label: str, missing_bytes: int, part: Path) -> None:
    """Raise JobError where there is no room for what is still to come."""
    needed_bytes, free_bytes = missing_bytes + _SPARE_BYTES, shutil.disk_usage(part.parent).free
    if free_bytes < needed_bytes:
        raise JobError(
            f"{label} needs {needed_bytes / 1e6:.0f} MB, and {part.parent} has {free_bytes / 1e6:.0f} MB left.",
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
