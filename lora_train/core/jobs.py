"""A job is a folder: `job.json` says what to do, `events.jsonl` what happened, `stop` and `pause` are requests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import msgspec

from lora_train.core import events as ev
from lora_train.core.caches import digest_of, read_cache, write_cache
from lora_train.core.curves import Curve, Point, ValidationPoint
from lora_train.core.errors import MOST_OF_REASON, JobError, shown
from lora_train.core.files import DAMAGED_JSON, lock, write_bytes
from lora_train.core.path_limits import require_openable
from lora_train.core.sealed import sealed_json, unsealed
from lora_train.core.specs import JobSpec

Request = Literal["stop", "pause"]
State = Literal["waiting", "running", "finished", "stopped", "paused", "failed"]


class RequestedEnd(Exception):  # noqa: N818  (no error: the person asked for it)
    """Raised outside the loop when `stop` or `pause` is asked for."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.request: Request = request


_DECODER = msgspec.json.Decoder(JobSpec)

_ROOM_BESIDE_NAME = 70
"""Characters that a file of a job has below its folder beside a LoRA's name: `samples`, step, prompt, `.tmp` name."""

_PATHS_IN_SPECS = ("dataset", "trash", "cache", "train", "folder")

_LOG_TAIL_BYTES = 64 * 1024
"""More than any tail has; a whole log may be long, and is asked for every second."""


class JobStatus(msgspec.Struct, kw_only=True):
    """What a job's folder tells, for the page, the API and the command line."""

    state: State = "waiting"
    job_dir: str = ""
    pid: int = 0
    device: str = ""
    phase: str = ""
    phase_done: int = 0
    phase_total: int = 0
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    """Smoothed (exponential mean over about 50 steps)."""
    validation_loss: float | None = None
    """On the held-out pictures, at the last validation."""
    base_validation_loss: float | None = None
    """Of the base model alone, likewise."""
    lr: float | None = None
    s_per_step: float | None = None
    peak_memory_mb: int = 0
    """The most memory that training took so far: of the card, on a CPU of the process. 0 is unknown."""
    eta_s: float | None = None
    saved: list[str] = []
    sampled: list[str] = []
    step_of_file: dict[str, int] = {}
    """The step after which each of the files in `saved` and `sampled` was made."""
    epoch_of_file: dict[str, int] = {}
    """The epoch in which each of the files in `saved` was made."""
    notes: list[str] = []
    error: str = ""
    """The class of what made it fail; `events.KILLED` for a job that was ended at once on request."""
    message: str = ""
    hint: str = ""
    result: dict[str, object] = {}
    last_event_t: float = 0.0
    silent_s: float = 0.0
    """How long a running worker has given no sign of life; it does every two seconds."""


class JobFolder:
    """One job's folder. Knows the names of its files; holds nothing in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path = path.resolve()  # one spelling: a running worker is known by it
        self.spec_path = path / "job.json"
        self.events_path = path / "events.jsonl"
        self.log_path = path / "worker.log"
        self.state_dir = path / "state"
        self.samples_dir = path / "samples"

    def create(self, spec: JobSpec) -> None:
        """Write `job.json`. Raises JobError where there is one already, WorkspaceError where this Windows could not
        open all that such a job writes.
        """
        if self.spec_path.exists():
            raise JobError(f"{self.path} already holds a job.")
        require_openable(self.path, len(self.path.name) + _ROOM_BESIDE_NAME)
        self.replace_spec(spec)

    def replace_spec(self, spec: JobSpec) -> None:
        """Write `job.json` anew: only where what it points to was moved, and while no worker has it."""
        write_bytes(self.spec_path, sealed_json(spec))

    def read_spec(self) -> JobSpec:
        """Raises JobError when the folder is not a job or `job.json` is damaged."""
        try:
            return _with_slashes(_DECODER.decode(unsealed(self.spec_path.read_bytes())))
        except (FileNotFoundError, NotADirectoryError):
            raise JobError(
                f"{self.path} is not a job: it has no job.json.",
                "Give the folder that `lora-train train` printed first.",
            ) from None
        except DAMAGED_JSON as error:
            raise JobError(
                f"{self.spec_path} can't be used: {shown(error, MOST_OF_REASON)}.",
                "It is damaged, or a newer release of Train Tools wrote it: put it back as it was, update Train Tools, "
                "or begin anew. Pictures and finished LoRAs are untouched.",
            ) from None

    def lock(self) -> IO[bytes] | None:
        """Hold this while working on the job; None when another process does (`files.lock`)."""
        return lock(self.path / "lock")

    def request(self, what: Request) -> None:
        """Ask the worker to stop (save LoRA and state) or to pause (save the state, free the device)."""
        self.path.joinpath(what).touch()

    def requested(self) -> Request | None:
        """The request that waits, if any; stopping wins over pausing."""
        for what in ("stop", "pause"):
            if self.path.joinpath(what).exists():
                return what
        return None

    def clear_requests(self) -> None:
        for what in ("stop", "pause"):
            with contextlib.suppress(FileNotFoundError):
                self.path.joinpath(what).unlink()

    def events(self) -> list[ev.Event]:
        return ev.read_events(self.events_path)[0]

    def each_event(self) -> Iterator[ev.Event]:
        """`events` one after the other, for jobs that may have told very much."""
        for events, _ in ev.each_event(self.events_path):
            yield from events

    def told_bytes(self) -> int:
        """How much the job's workers have told so far, for `has_told_since`."""
        try:
            return self.events_path.stat().st_size
        except FileNotFoundError:
            return 0

    def has_told_since(self, told_bytes: int) -> bool:
        """Whether events were added. (A line end alone closes the half line of a killed worker.)"""
        return self.told_bytes() > told_bytes + 1

    def silent_s(self) -> float:
        """Seconds since the worker last touched its events; 0 before the first."""
        try:
            return max(0.0, time.time() - self.events_path.stat().st_mtime)
        except FileNotFoundError:
            return 0.0

    def log_tail(self, lines: int = 20) -> str:
        try:
            with self.log_path.open("rb") as stream:
                stream.seek(max(0, self.log_path.stat().st_size - _LOG_TAIL_BYTES))
                content = stream.read()
        except FileNotFoundError:
            return ""
        return "\n".join(content.decode("utf-8", errors="replace").splitlines()[-lines:])


_SMOOTHING = 0.02
_KEEP_EVERY_BYTES = 2**20
_TAIL_BYTES = 256


def _with_slashes(spec: JobSpec) -> JobSpec:
    """Earlier releases wrote relative paths with backslashes on Windows; the workspace may have moved since."""
    written = {name: getattr(spec, name, "") for name in _PATHS_IN_SPECS}
    changed = {name: path.replace("\\", "/") for name, path in written.items() if path.startswith("..\\")}
    return msgspec.structs.replace(spec, **changed) if changed else spec


class _Summary(msgspec.Struct):
    """`events.summary.json`: what the first `offset_bytes` of the events come to, so that nobody reads them again."""

    offset_bytes: int = 0
    tail: str = ""
    """A digest of the last bytes of them: another file of this name is not taken for it."""
    status: JobStatus = msgspec.field(default_factory=JobStatus)
    curve: Curve = msgspec.field(default_factory=Curve)


class StatusReader:
    """Reads what a job's events come to again and again, each time only those that are new.

    Of a long training a summary is kept beside the events, by whoever reads them: a new reader goes on from there.
    """

    def __init__(self, job: JobFolder) -> None:
        self._path = job.events_path
        self._summary_path = job.path / "events.summary.json"
        self._summary: _Summary | None = None
        self._kept_bytes = 0

    def read(self) -> JobStatus:
        """A copy, which the caller may change."""
        status = self._read_on().status
        return msgspec.structs.replace(status, notes=list(status.notes))

    def curve(self, most: int) -> list[Point]:
        """Loss and learning rate over the steps (see `Curve.thinned`)."""
        return self._read_on().curve.thinned(most)

    def validations(self) -> list[ValidationPoint]:
        """Every validation, in the order of steps."""
        return list(self._read_on().curve.validations)

    def _read_on(self) -> _Summary:
        summary = self._summary or self._read_kept()
        if self._size_bytes() < summary.offset_bytes:  # cut off, or another file
            summary = _Summary()
        self._summary = summary
        for events, end_bytes in ev.each_event(self._path, summary.offset_bytes):
            for event in events:
                update_status(summary.status, event)
                summary.curve.add(event)
            summary.offset_bytes = end_bytes
        if summary.offset_bytes - self._kept_bytes >= _KEEP_EVERY_BYTES:
            self._keep(summary)
        return summary

    def _size_bytes(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def _read_kept(self) -> _Summary:
        """The summary on the disk; a new one where there is none of these events."""
        kept = read_cache(self._summary_path, _Summary)
        if kept is None or not kept.tail or kept.tail != self._tail(kept.offset_bytes):
            return _Summary()
        self._kept_bytes = kept.offset_bytes
        return kept

    def _keep(self, summary: _Summary) -> None:
        self._kept_bytes = summary.offset_bytes
        summary.tail = self._tail(summary.offset_bytes)
        write_cache(self._summary_path, summary)

    def _tail(self, offset_bytes: int) -> str:
        """Empty where the events can't be read."""
        start_bytes = max(0, offset_bytes - _TAIL_BYTES)
        try:
            with self._path.open("rb") as stream:
                stream.seek(start_bytes)
                return digest_of(stream.read(offset_bytes - start_bytes))
        except OSError:
            return ""


def update_status(status: JobStatus, event: ev.Event) -> None:
    """Take one more event into `status`. Whether a "running" worker is really alive is for the launcher to say."""
    status.last_event_t = event.t
    match event:
        case ev.Started():
            status.state, status.pid = "running", event.pid
            status.error, status.message, status.hint = "", "", ""
            if event.step is None:  # a worker has just come up: what an earlier one did last is over
                status.phase, status.phase_done, status.phase_total = "", 0, 0
            else:
                status.total_steps, status.epochs = event.total_steps, event.epochs
                status.step, status.device = event.step, event.device
                status.validation_loss = status.base_validation_loss = None  # the last one in force is told again
                _forget_files_after(status, event.step)
        case ev.Phase():
            status.phase, status.phase_done, status.phase_total = event.name, event.done, event.total
        case ev.Step():
            _update_step(status, event)
        case ev.Saved():
            status.saved = [path for path in status.saved if path != event.path] + [event.path]
            status.step_of_file[event.path] = event.step
            status.epoch_of_file[event.path] = event.epoch
        case ev.Sampled():
            status.sampled = [path for path in status.sampled if path != event.path] + [event.path]
            status.step_of_file[event.path] = event.step
        case ev.Validated():
            status.validation_loss, status.base_validation_loss = event.loss, event.base_loss
        case ev.Note():
            status.notes.append(event.message)
        case ev.Finished():
            status.state, status.result, status.eta_s = "finished", event.result, 0.0
        case ev.Stopped() | ev.Paused():
            status.state = "stopped" if isinstance(event, ev.Stopped) else "paused"
            status.step, status.eta_s = event.step, None
        case ev.Failed():
            status.state = "stopped" if event.error == ev.KILLED else "failed"
            status.error, status.message, status.hint = event.error, event.message, event.hint
            status.eta_s = None


def _forget_files_after(status: JobStatus, step: int) -> None:
    """A start from an earlier state sends what was made after it to the trash."""
    later = {path for path, made_at in status.step_of_file.items() if made_at > step}
    status.saved = [path for path in status.saved if path not in later]
    status.sampled = [path for path in status.sampled if path not in later]


def _update_step(status: JobStatus, event: ev.Step) -> None:
    status.step, status.epoch, status.lr = event.step, event.epoch, event.lr
    if event.loss == event.loss:  # a NaN is told by a note, it must not spoil the curve
        before = event.loss if status.loss is None else status.loss
        status.loss = before + max(_SMOOTHING, 1 / max(event.step, 1)) * (event.loss - before)
    pace = event.s_per_step if status.s_per_step is None else status.s_per_step
    status.s_per_step = pace + 0.1 * (event.s_per_step - pace)
    status.peak_memory_mb = max(status.peak_memory_mb, event.peak_memory_mb)
    status.eta_s = max(0, status.total_steps - event.step) * status.s_per_step
