"""The jobs that want the card, one after the other: a list on the disk, and the thread that works it off.

`queue.json` in the workspace survives restarts. Of all programs on one workspace a single one works the list off, the
one that holds `runner.lock`; everybody may change the list. A worker that is found at work after a restart is
attached to again, never started twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from lora_train.core import events as ev
from lora_train.core.errors import JobError, TrainToolsError
from lora_train.core.files import lock
from lora_train.core.jobs import JobFolder
from lora_train.core.workspace import read_json, write_json
from lora_train.launch import launcher

_LOCK_WAIT_S = 10.0
_POLL_S = 0.25
_log = logging.getLogger(__name__)


class _Content(msgspec.Struct):
    """`queue.json`. Jobs are folders relative to the workspace, with forward slashes."""

    running: str = ""
    taken: float = 0.0
    """When the running job's turn began: what it told before belongs to earlier starts."""
    waiting: list[str] = []


class JobQueue:
    """The list on the disk. Every change is made under a lock, so several programs may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._path = root / "queue.json"

    def running(self) -> str:
        """The job whose turn it is; empty where there is none."""
        return self._read().running

    def waiting(self) -> list[str]:
        """The jobs that wait, the next one first."""
        return self._read().waiting

    def place_of(self, job: str) -> int | None:
        """0 for the running job, 1 for the next one, and so on; None for one that is not in the queue."""
        content = self._read()
        jobs = [content.running, *content.waiting]
        return jobs.index(job) if job in jobs else None

    def holds_any_below(self, folder: str) -> bool:
        """Whether a job below this folder (relative to the workspace) waits or runs."""
        content = self._read()
        return any(f"{job}/".startswith(f"{folder}/") for job in (content.running, *content.waiting))

    def add(self, job: str) -> None:
        """Put a job at the end. Raises JobError when it is in the queue already."""
        with self._changing() as content:
            if job in (content.running, *content.waiting):
                raise JobError(f"{job.rpartition('/')[2]} waits or runs already.")
            content.waiting.append(job)

    def move(self, job: str, place: int) -> None:
        """Give a waiting job another place, 1 being the first. Raises JobError for one that doesn't wait."""
        with self._changing() as content:
            _remove(content, job)
            content.waiting.insert(max(0, place - 1), job)

    def cancel(self, job: str) -> None:
        """Take a waiting job out. Raises JobError for one that doesn't wait."""
        with self._changing() as content:
            _remove(content, job)

    def take_next(self) -> tuple[str, float]:
        """The job whose turn it is, and since when: the one that runs, else the first that waits; empty for none."""
        content = self._read()
        if content.running or not content.waiting:
            return content.running, content.taken
        with self._changing() as content:
            if not content.running and content.waiting:
                content.running, content.taken = content.waiting.pop(0), time.time()
            return content.running, content.taken

    def finish(self, job: str) -> None:
        """The running job has come to its end."""
        with self._changing() as content:
            if content.running == job:
                content.running = ""

    def _read(self) -> _Content:
        return read_json(self._path, _Content, _Content())

    @contextmanager
    def _changing(self) -> Generator[_Content, None, None]:
        """The content, written back at the end if nothing was raised."""
        self.root.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + _LOCK_WAIT_S
        while (held := lock(self.root / "queue.lock")) is None:
            if time.monotonic() > until:
                raise JobError("The queue is locked by another program.", "Try again in a moment.")
            time.sleep(0.01)
        with held:
            content = self._read()
            before = msgspec.json.encode(content)
            yield content
            if msgspec.json.encode(content) != before:
                write_json(self._path, content)


def _remove(content: _Content, job: str) -> None:
    if job not in content.waiting:
        raise JobError(f"{job.rpartition('/')[2]} does not wait in the queue.")
    content.waiting.remove(job)


class Runner(threading.Thread):
    """Works the queue off, one job at a time.

    around   gives a context for a job's whole run: the host frees the card on entering and takes it back on leaving
    on_end   is told when a job has ended, however it did
    """

    def __init__(
        self,
        queue: JobQueue,
        around: Callable[[JobFolder], AbstractContextManager[Any]],
        on_end: Callable[[JobFolder], None],
    ) -> None:
        super().__init__(name="train-tools-queue", daemon=True)
        self._queue = queue
        self._around = around
        self._on_end = on_end
        self._end = threading.Event()

    def stop(self) -> None:
        """Work off nothing more; a worker that runs goes on and is found again by the next runner."""
        self._end.set()

    def run(self) -> None:
        """Wait for the lock of the workspace, then work."""
        self._queue.root.mkdir(parents=True, exist_ok=True)
        while (held := lock(self._queue.root / "runner.lock")) is None:
            if self._end.wait(_POLL_S):
                return
        with held:
            while not self._end.wait(_POLL_S):
                try:
                    self._work()
                except (OSError, TrainToolsError) as error:  # a full disk, a network drive that is gone: try again
                    _log.warning("The queue can't go on at the moment: %s", error)
                    self._end.wait(5.0)

    def _work(self) -> None:
        job_id, taken = self._queue.take_next()
        if not job_id:
            return
        job = JobFolder(self._queue.root / job_id)
        try:
            with self._around(job):
                self._run_to_its_end(job, taken)
        except Exception as error:  # the border of the thread: one broken job must not end the queue
            _log.exception("%s failed", job.path)
            _tell_failure(job, error)
        if self._end.is_set():
            return
        try:
            self._on_end(job)
        except Exception:  # as above; the job itself is done
            _log.exception("after %s", job.path)
        self._queue.finish(job_id)

    def _run_to_its_end(self, job: JobFolder, taken: float) -> None:
        """Start the job's worker, or attach to the one that is found at work, and wait."""
        process = launcher.process_of(job) if launcher.is_alive(job) else None
        if process is None and _last_word_at(job) >= taken:
            launcher.wait_for_end(job)  # it said its last word while nobody watched
            return
        process = process or launcher.start_worker(job)
        while launcher.is_running(process):
            if self._end.wait(_POLL_S):
                return
        if _last_word_at(job) < taken:
            tail = job.log_tail(5)
            raise JobError("The worker process could not start." + (f" The end of its log: {tail}" if tail else ""))


def _last_word_at(job: JobFolder) -> float:
    """When the job's worker told something last; 0 where it never did."""
    return max((event.t for event in job.events()), default=0.0)


def _tell_failure(job: JobFolder, error: Exception) -> None:
    """Leave the reason where the page looks for it."""
    if not job.path.is_dir():
        return
    message = error.message if isinstance(error, TrainToolsError) else f"It could not be started: {error}"
    hint = error.hint if isinstance(error, TrainToolsError) else ""
    events = ev.EventWriter(job.events_path)
    events.write(ev.Failed(error=type(error).__name__, message=message, hint=hint))
    events.close()
