"""The events a worker appends to its job's `events.jsonl`: one JSON object a line, `t` in unix seconds.

Only ever added to: readers skip kinds and fields they don't know, and a half-written last line waits for the
next read.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from lora_train.core.files import DAMAGED_JSON


class Started(msgspec.Struct, tag="started", tag_field="kind"):
    """The worker runs. `step` is the step it goes on from, None as long as it doesn't know."""

    pid: int
    total_steps: int = 0
    epochs: int = 0
    device: str = ""
    step: int | None = None
    t: float = 0.0


class Phase(msgspec.Struct, tag="phase", tag_field="kind"):
    """What is going on now; `done` of `total` (0 = length unknown)."""

    name: str
    done: int = 0
    total: int = 0
    t: float = 0.0


class Step(msgspec.Struct, tag="step", tag_field="kind"):
    """One optimizer step: mean loss, rate of the first parameter group, seconds it took.

    `peak_memory_mb` is the most that the process took so far: of the card, on a CPU of the main memory; 0 is unknown.
    """

    step: int
    epoch: int
    loss: float
    lr: float
    s_per_step: float
    peak_memory_mb: int = 0
    t: float = 0.0


class Saved(msgspec.Struct, tag="saved", tag_field="kind"):
    """A LoRA file stands in the job's folder (`path` is relative to it)."""

    path: str
    step: int
    epoch: int
    t: float = 0.0


class Sampled(msgspec.Struct, tag="sampled", tag_field="kind"):
    """A preview picture or grid stands in the job's folder (`path` is relative to it)."""

    path: str
    step: int
    prompt: str = ""
    weight: float | None = None
    t: float = 0.0


class Validated(msgspec.Struct, tag="validated", tag_field="kind"):
    """The mean loss on the held-out pictures, with the LoRA as it is now and of the base model alone."""

    step: int
    loss: float
    base_loss: float
    t: float = 0.0


class Note(msgspec.Struct, tag="note", tag_field="kind"):
    """Something a person should know while the job goes on."""

    level: Literal["info", "warning"]
    message: str
    t: float = 0.0


class Finished(msgspec.Struct, tag="finished", tag_field="kind"):
    """All is done; `result` holds what this kind of job measured or made."""

    step: int = 0
    result: dict[str, Any] = {}
    t: float = 0.0


class Stopped(msgspec.Struct, tag="stopped", tag_field="kind"):
    """Ended early on request, with LoRA and state saved."""

    step: int
    t: float = 0.0


class Paused(msgspec.Struct, tag="paused", tag_field="kind"):
    """Ended early on request, with the state saved and the device free."""

    step: int
    t: float = 0.0


KILLED = "Killed"
"""`Failed.error` of a worker that was ended at once because its person asked for it: it could save nothing."""


class Failed(msgspec.Struct, tag="failed", tag_field="kind"):
    """Ended by an error. `traceback` is for the log, never for the page."""

    error: str
    message: str
    hint: str = ""
    traceback: str = ""
    t: float = 0.0


Event = Started | Phase | Step | Saved | Sampled | Validated | Note | Finished | Stopped | Paused | Failed

_AT_ONCE_BYTES = 2**20
_DECODER = msgspec.json.Decoder(Event)
_ENCODER = msgspec.json.Encoder()


class EventWriter:
    """Appends events to one file, and puts it back where somebody deletes it meanwhile. Safe to use from several
    threads of the worker.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._path = path
        self._end_half_line()
        self._stream = path.open("a+b")

    def write(self, *events: Event) -> None:
        """Append and flush. An event without a time gets the present one."""
        now = time.time()
        lines = bytearray()
        for event in events:
            event.t = event.t or now
            lines += _ENCODER.encode(event) + b"\n"
        with self._lock:
            self._stream.write(lines)
            self._stream.flush()
            self._put_back_where_deleted()

    def beat(self) -> None:
        """Say "still alive" by touching the file; readers look at its modification time."""
        with self._lock:
            self._put_back_where_deleted()
        os.utime(self._path)

    def close(self) -> None:
        with self._lock:
            self._stream.close()

    def _put_back_where_deleted(self) -> None:
        """All that was told is still in the open file. Where its folder is gone too, `beat` tells of it."""
        if self._path.exists() or not self._path.parent.is_dir():
            return
        stream = self._path.open("a+b")
        self._stream.seek(0)
        shutil.copyfileobj(self._stream, stream)
        stream.flush()
        self._stream.close()
        self._stream = stream

    def _end_half_line(self) -> None:
        """A killed worker may have left half a line; without this the next event would be lost with it."""
        if not self._path.exists():
            return
        with self._path.open("rb+") as stream:
            if stream.seek(0, os.SEEK_END) == 0:
                return
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


def read_events(path: Path, offset_bytes: int = 0, most_bytes: int = -1) -> tuple[list[Event], int]:
    """Events from `offset_bytes` on, and the offset to go on from. A missing file has no events.

    With `most_bytes` about so much is read at once; the last line of it is read to its end.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(offset_bytes)
            content = stream.read(most_bytes)
            if most_bytes >= 0:
                content += stream.readline()
    except FileNotFoundError:
        return [], 0
    end = content.rfind(b"\n") + 1
    return _decoded(content[:end]), offset_bytes + end


def _decoded(content: bytes) -> list[Event]:
    """The events of whole lines; what is none is left out."""
    try:
        return _DECODER.decode_lines(content)
    except DAMAGED_JSON:
        pass  # line by line then, which takes three times as long
    events: list[Event] = []
    for line in content.splitlines():
        try:
            events.append(_DECODER.decode(line))
        except DAMAGED_JSON:
            continue  # a kind of a later version, or the half line of a killed worker
    return events


def each_event(path: Path, offset_bytes: int = 0) -> Iterator[tuple[list[Event], int]]:
    """`read_events` up to the end of the file, some thousand at a time: a file of a million takes no more memory."""
    while True:
        events, end_bytes = read_events(path, offset_bytes, _AT_ONCE_BYTES)
        if end_bytes <= offset_bytes:
            return
        offset_bytes = end_bytes
        yield events, offset_bytes
