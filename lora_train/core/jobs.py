"""A job is a folder: `job.json` says what to do, `events.jsonl` what happened, `stop` and `pause` are requests."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import IO, Literal

import msgspec

from lora_train.core import events as ev
from lora_train.core.errors import JobError
from lora_train.core.files import lock, write_bytes
from lora_train.core.specs import JobSpec

Request = Literal["stop", "pause"]
State = Literal["waiting", "running", "finished", "stopped", "paused", "failed"]


class RequestedEnd(Exception):  # noqa: N818  (no error: the person asked for it)
    """Raised outside the loop when `stop` or `pause` is asked for."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.request: Request = request


_DECODER = msgspec.json.Decoder(JobSpec)

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
        """Write `job.json`. Raises JobError where there is one already."""
        if self.spec_path.exists():
            raise JobError(f"{self.path} already holds a job.")
        self.replace_spec(spec)

    def replace_spec(self, spec: JobSpec) -> None:
        """Write `job.json` anew: only where what it points to was moved, and while no worker has it."""
        write_bytes(self.spec_path, msgspec.json.format(msgspec.json.encode(spec), indent=2))

    def read_spec(self) -> JobSpec:
        """Raises JobError when the folder is not a job or `job.json` is damaged."""
        try:
            return _DECODER.decode(self.spec_path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise JobError(
                f"{self.path} is not a job: it has no job.json.",
                "Give the folder that `lora-train train` printed first.",
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise JobError(f"{self.spec_path} can't be read: {error}.") from None

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


class StatusReader:
    """Reads a job's status again and again, each time only the events that are new."""

    def __init__(self, job: JobFolder) -> None:
        self._path = job.events_path
        self._offset_bytes = 0
        self._status = JobStatus()

    def read(self) -> JobStatus:
        """A copy, which the caller may change."""
        events, self._offset_bytes = ev.read_events(self._path, self._offset_bytes)
        for event in events:
            update_status(self._status, event)
        return msgspec.structs.replace(self._status, notes=list(self._status.notes))


def status_from_events(events: list[ev.Event]) -> JobStatus:
    """Fold events into a status. Whether a "running" worker is really alive is for the launcher to say."""
    status = JobStatus()
    for event in events:
        update_status(status, event)
    return status


def update_status(status: JobStatus, event: ev.Event) -> None:
    """Take one more event into `status`."""
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
