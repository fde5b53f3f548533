"""What may take longer than a click should: done by a thread of this process, told as it goes on, stopped on request.

Nothing of a task is kept on the disk: each leaves its files whole, whenever the process ends.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import msgspec

from lora_train.core.errors import JobError, TrainToolsError
from lora_train.core.progress import StopAskedForError, telling

SOON_S = 0.1
"""What is done within this time is answered at once."""
_LEFT_AFTER_S = 5.0
_MOST_AT_ONCE = 16
_MOST_ENDED = 20
"""Outcomes that nobody has taken yet."""


class TaskEntry(msgspec.Struct, frozen=True):
    """A task as it is shown."""

    id: str
    what: str
    """The button that was pressed; empty where a program asked."""
    done: int
    total: int
    """0 where nobody knows."""
    can_stop: bool
    has_ended: bool
    """Its outcome was not taken yet ..."""
    is_left: bool
    """... for so long that the page which began it is gone."""
    message: str = ""
    """Why it could not be done, and what to do."""
    hint: str = ""


class Task:
    """Something that is done, or was."""

    def __init__(self, task_id: str, what: str) -> None:
        self.id = task_id
        self._what = what
        self._outcome: Future[Any] = Future()
        self._done, self._total = 0, 0
        self._is_to_stop = False
        self._ended_s: float | None = None
        """As time.monotonic()."""

    def run(self, work: Callable[[], Any]) -> None:
        """Do `work` in this thread, to its end."""
        with telling(self._take_told):
            try:
                self._outcome.set_result(work())
            except StopAskedForError:
                self._outcome.set_exception(JobError("It was stopped, as asked for."))
            except BaseException as error:
                self._outcome.set_exception(error)
        self._ended_s = time.monotonic()

    def stop(self) -> None:
        """Ask for its end. It comes between two of the things that it counts."""
        self._is_to_stop = True

    @property
    def has_ended(self) -> bool:
        return self._outcome.done()

    def wait(self, limit_s: float) -> None:
        """For its end, so long at most."""
        wait([self._outcome], limit_s)

    def result(self) -> Any:
        """What it came to; waits for that. Raises what it raised."""
        return self._outcome.result()

    def entry(self) -> TaskEntry:
        error = self._outcome.exception() if self.has_ended else None
        told = error if isinstance(error, TrainToolsError) else None
        return TaskEntry(
            self.id,
            self._what,
            self._done,
            self._total,
            can_stop=self._total > 0 and not self._is_to_stop,
            has_ended=self.has_ended,
            is_left=self._ended_s is not None and time.monotonic() > self._ended_s + _LEFT_AFTER_S,
            message=told.message if told else str(error or ""),
            hint=told.hint if told else "",
        )

    def _take_told(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        if self._is_to_stop:
            raise StopAskedForError


class Tasks:
    """Those of this process. Safe to use from several threads."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._tasks: dict[str, Task] = {}
        """Those that go on, and those whose outcome was not taken yet."""

    def begin(self, what: str, work: Callable[[], Any]) -> Task:
        """Do `work` in a thread and come back as soon as it is done, or after SOON_S.

        Who finds that it has ended takes `result`; else `take` gives the task later. Where very many are at work
        already, comes back at the end.
        """
        task = Task(str(next(self._numbers)), what)
        with self._lock:
            is_one_too_many = sum(not other.has_ended for other in self._tasks.values()) >= _MOST_AT_ONCE
            self._tasks[task.id] = task
        if is_one_too_many:
            task.run(work)
        else:
            threading.Thread(target=task.run, args=(work,), name="train-tools-task", daemon=True).start()
            task.wait(SOON_S)
        with self._lock:
            if task.has_ended:
                del self._tasks[task.id]
            for ended in [own for own in self._tasks.values() if own.has_ended][:-_MOST_ENDED]:
                del self._tasks[ended.id]
        return task

    def entries(self) -> list[TaskEntry]:
        """Oldest first."""
        with self._lock:
            return [task.entry() for task in self._tasks.values()]

    def take(self, task_id: str) -> Task | None:
        """The task where it has ended, which is forgotten then; None while it goes on.

        Raises JobError where there is none: it was taken, or the program was started anew.
        """
        with self._lock:
            task = self._of(task_id)
            return self._tasks.pop(task_id) if task.has_ended else None

    def stop(self, task_id: str) -> None:
        """Raises as `take`."""
        with self._lock:
            self._of(task_id).stop()

    def _of(self, task_id: str) -> Task:
        task = self._tasks.get(task_id)
        if task is None:
            raise JobError("This is over already.")
        return task
