"""The jobs that want the card, one after the other: a list on the disk, and the threads that work it off.

Where there are several cards, some jobs (the runs of sweeps) also run on the others, one on each: a lane for each card.

`queue.json` in the workspace survives restarts. Of all programs on one workspace a single one works the list off, the
one that holds `runner.lock`; everybody may change the list. A worker that is found at work after a restart is
attached to again, never started twice.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec

from lora_train.core import events as ev
from lora_train.core.errors import JobError, TrainToolsError
from lora_train.core.files import lock, wait_for_lock
from lora_train.core.jobs import JobFolder, Request, StatusReader
from lora_train.core.records import read_json, write_json
from lora_train.launch import launcher

if TYPE_CHECKING:
    import psutil

_LOCK_WAIT_S = 10.0
_POLL_S = 0.25
_RETRY_S = 5.0
_log = logging.getLogger(__name__)

_cards: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""A host whose person chose another workspace has two runners in one process: on each card they take turns."""
_FIRST = ""
"""The card that a worker takes by itself, and that the host may have to free."""


class Turn(NamedTuple):
    """A job's time with the card."""

    job: str
    told_before_bytes: int
    """What the job had told when its turn began belongs to earlier starts."""


class _Content(msgspec.Struct):
    """`queue.json`. Jobs are folders relative to the workspace, with forward slashes."""

    running: str = ""
    told_before_bytes: int = 0
    """Of the running job (see `Turn`)."""
    beside: dict[str, Turn] = {}
    """What runs on other cards than the first, by card."""
    waiting: list[str] = []


class JobQueue:
    """The list on the disk. Every change is made under a lock, so several programs may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._path = root / "queue.json"

    def running(self) -> str:
        """The job whose turn with the first card it is; empty where there is none."""
        return self._read().running

    def all_running(self) -> list[str]:
        """Those of all cards, the first one's in front."""
        return [turn.job for turn in _turns(self._read())]

    def cards_in_use(self) -> list[str]:
        """Those beside the first on which jobs have their turn."""
        return list(self._read().beside)

    def is_starting(self, job: str) -> bool:
        """Whether it is the job's turn, but its worker has not told anything yet."""
        return self._is_starting(self._read(), job)

    def waiting(self) -> list[str]:
        """The jobs that wait, the next one first."""
        return self._read().waiting

    def place_of(self, job: str) -> int | None:
        """0 for a running job, 1 for the next one, and so on; None for one that is not in the queue."""
        content = self._read()
        if job in (turn.job for turn in _turns(content)):
            return 0
        return content.waiting.index(job) + 1 if job in content.waiting else None

    def add(self, job: str) -> None:
        """Put a job at the end, also one that has just ended and is about to leave. Raises JobError when it waits."""
        with self._changing() as content:
            if job in content.waiting or self._is_starting(content, job):
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

    def take_next(self) -> Turn | None:
        """The running job's turn, or that of the first one that waits; None where there is none."""
        content = self._read()
        if not content.running and content.waiting:
            with self._changing() as content:
                if not content.running and content.waiting:
                    content.running = content.waiting.pop(0)
                    content.told_before_bytes = self._folder(content.running).told_bytes()
        return Turn(content.running, content.told_before_bytes) if content.running else None

    def take_beside(self, card: str, may: Callable[[JobFolder], bool]) -> Turn | None:
        """The turn of the job on another card, or of the first one that waits and may run there; None for none."""
        content = self._read()
        if card not in content.beside and any(may(self._folder(job)) for job in content.waiting):
            with self._changing() as content:
                job = next((job for job in content.waiting if may(self._folder(job))), None)
                if card not in content.beside and job is not None:
                    content.waiting.remove(job)
                    content.beside[card] = Turn(job, self._folder(job).told_bytes())
        return content.beside.get(card)

    def finish(self, job: str) -> None:
        """A running job has come to its end."""
        with self._changing() as content:
            if content.running == job:
                content.running = ""
            content.beside = {card: turn for card, turn in content.beside.items() if turn.job != job}

    def _is_starting(self, content: _Content, job: str) -> bool:
        own = (turn for turn in _turns(content) if turn.job == job)
        return any(not self._folder(job).has_told_since(turn.told_before_bytes) for turn in own)

    def _folder(self, job: str) -> JobFolder:
        return JobFolder(self.root / job)

    def _read(self) -> _Content:
        return read_json(self._path, _Content, _Content())

    @contextmanager
    def _changing(self) -> Generator[_Content, None, None]:
        """The content, written back at the end if nothing was raised."""
        self.root.mkdir(parents=True, exist_ok=True)
        held = wait_for_lock(self.root / "queue.lock", _LOCK_WAIT_S)
        if held is None:
            raise JobError("The queue is locked by another program.", "Try again in a moment.")
        with held:
            content = self._read()
            before = msgspec.json.encode(content)
            yield content
            if msgspec.json.encode(content) != before:
                write_json(self._path, content, keeps_before=True)


def _turns(content: _Content) -> list[Turn]:
    first = [Turn(content.running, content.told_before_bytes)] if content.running else []
    return [*first, *content.beside.values()]


def _remove(content: _Content, job: str) -> None:
    if job not in content.waiting:
        raise JobError(f"{job.rpartition('/')[2]} does not wait in the queue.")
    content.waiting.remove(job)


class Runner(threading.Thread):
    """Works the queue off, one job at a time on each card.

    around   gives a context for a job's whole run on the first card: the host frees it on entering, and takes it back
             on leaving
    on_end   is told when a job has ended, however it did; of one at a time
    cards    tells all that there are, the first one in front (see `cards.cards`); asked once
    may_run_beside   whether a job may run on another card than the first
    """

    def __init__(
        self,
        queue: JobQueue,
        around: Callable[[JobFolder], AbstractContextManager[Any]],
        on_end: Callable[[JobFolder], None],
        *,
        cards: Callable[[], Sequence[str]] = tuple,
        may_run_beside: Callable[[JobFolder], bool] = lambda _: False,
    ) -> None:
        super().__init__(name="train-tools-queue", daemon=True)
        self._queue = queue
        self._around = around
        self._on_end = on_end
        self._find_cards = cards
        self._others: list[str] = []
        self._lanes: dict[str, threading.Thread] = {}
        self._may_run_beside = may_run_beside
        self._ending = threading.Lock()
        self._end = threading.Event()

    def stop(self) -> None:
        """Work off nothing more; a worker that runs goes on and is found again by the next runner."""
        self._end.set()

    def run(self) -> None:
        """Wait for the lock of the workspace, then work."""
        while (held := self._try_lock()) is None:
            if self._end.wait(_POLL_S):
                return
        with held:
            self._others = list(self._find_cards()[1:])
            self._work_on(_FIRST)
            for lane in self._lanes.values():
                lane.join()

    def _attend(self) -> None:
        """To the other cards too, those included that had a job at an earlier start."""
        for card in (*self._others, *self._queue.cards_in_use()):
            if card not in self._lanes:
                self._lanes[card] = threading.Thread(target=self._work_on, args=(card,), daemon=True)
                self._lanes[card].start()

    def _work_on(self, card: str) -> None:
        while not self._end.wait(_POLL_S):
            try:
                if card == _FIRST:
                    self._attend()
                with _cards[card]:
                    self._work(card)
            except Exception as error:  # the border of the thread: a full disk, a drive that is gone; try again
                _log.warning("The queue can't go on at the moment: %s", error)
                self._end.wait(_RETRY_S)

    def _take(self, card: str) -> Turn | None:
        if card == _FIRST:
            return self._queue.take_next()
        may = self._may_run_beside if card in self._others else (lambda _: False)  # it was there at an earlier start
        return self._queue.take_beside(card, may)

    def _try_lock(self) -> IO[bytes] | None:
        try:
            self._queue.root.mkdir(parents=True, exist_ok=True)
            return lock(self._queue.root / "runner.lock")
        except OSError as error:
            _log.warning("The queue can't begin at the moment: %s", error)
            self._end.wait(_RETRY_S)
            return None

    def _work(self, card: str) -> None:
        turn = self._take(card)
        if turn is None:
            return
        job = JobFolder(self._queue.root / turn.job)
        if not _is_over(job, turn):
            has_run = False
            try:
                with self._around(job) if card == _FIRST else nullcontext():
                    self._run_to_its_end(job, turn, card)
                    has_run = True
            except Exception as error:  # the border of the thread: one broken job must not end the queue
                _log.exception("%s failed", job.path)
                if not has_run and not _is_over(job, turn):
                    if launcher.is_alive(job):  # only what is around it failed: the card is still taken
                        self._end.wait(_RETRY_S)
                        return
                    _tell_failure(job, error)
        with self._ending:
            self._end_turn(job, turn)

    def _end_turn(self, job: JobFolder, turn: Turn) -> None:
        if self._end.is_set():
            return
        try:
            self._on_end(job)
        except Exception:  # as above; the job itself is done
            _log.exception("after %s", job.path)
        self._queue.finish(turn.job)

    def _run_to_its_end(self, job: JobFolder, turn: Turn, card: str) -> None:
        """Start the job's worker, or attach to the one that is found at work, and wait."""
        if launcher.process_of(job) is None and not job.has_told_since(turn.told_before_bytes):
            if (request := job.requested()) is not None:  # came while the card was not free yet
                _tell_early_end(job, request)
                return
            worker = launcher.start_worker(job) if card == _FIRST else launcher.start_worker(job, card=card)
            if not self._wait(worker):
                return
        # Found at work; or ours gave way to one that an earlier runner started just before it died.
        while (process := launcher.process_of(job)) is not None:
            if not self._wait(process):
                return
        if not job.has_told_since(turn.told_before_bytes):
            tail = job.log_tail(5)
            raise JobError("The worker process could not start." + (f"\nThe end of its log: {tail}" if tail else ""))

    def _wait(self, process: psutil.Process | launcher.Worker) -> bool:
        """Wait for a worker's end; False when the runner was stopped before."""
        while launcher.is_running(process):
            if self._end.wait(_POLL_S):
                return False
        return True


def _is_over(job: JobFolder, turn: Turn) -> bool:
    """Whether the job's worker said its last word in this turn, or died after its first, while nobody watched."""
    return job.has_told_since(turn.told_before_bytes) and launcher.process_of(job) is None


def _tell_early_end(job: JobFolder, request: Request) -> None:
    step = StatusReader(job).read().step
    _tell(job, ev.Stopped(step=step) if request == "stop" else ev.Paused(step=step))


def _tell_failure(job: JobFolder, error: Exception) -> None:
    """Leave the reason where the page looks for it."""
    message = error.message if isinstance(error, TrainToolsError) else f"It could not be started: {error}"
    hint = error.hint if isinstance(error, TrainToolsError) else ""
    _tell(job, ev.Failed(error=type(error).__name__, message=message, hint=hint))


def _tell(job: JobFolder, event: ev.Event) -> None:
    if job.path.is_dir():
        events = ev.EventWriter(job.events_path)
        events.write(event)
        events.close()
