"""What may take longer than a click should: done by a thread of this process, told as it goes on, stopped on request.

Nothing of a task is kept on the disk. It may be cut off at any time, as everything is when the program is killed.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait
from typing import Any

import msgspec

from lora_train.core.errors import JobError, TrainToolsError
from lora_train.core.failures import refusal_of
from lora_train.core.progress import StopAskedForError, telling

MISTAKE = "Something went wrong in Train Tools."
SEE_LOG = "The log has more."

SOON_S = 0.1
"""What is done within this time is answered at once."""
_LEFT_AFTER_S = 5.0
_FORGOTTEN_AFTER_S = 600.0
_MOST_AT_ONCE = 16
_MOST_ENDED = 20
"""Outcomes that nobody has taken yet."""
_log = logging.getLogger(__name__)


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

    def __init__(self, what: str, once: Hashable = None) -> None:
        self.id = secrets.token_hex(8)
        self.what = what
        self.once = once
        self.is_answered = False
        """It was done so soon that who began it has its outcome."""
        self._outcome: Future[Any] = Future()
        self._done, self._total = 0, 0
        self._is_to_stop = False
        self.ended_s = 0.0
        """As time.monotonic()."""

    def run(self, work: Callable[[], Any]) -> None:
        """Do `work` in this thread, to its end."""
        try:
            with telling(self._take_told):
                result = work()
        except StopAskedForError:
            self._end(JobError("It was stopped, as asked for."))
        except BaseException as error:
            if not isinstance(error, (TrainToolsError, OSError)):
                _log.exception("Train Tools could not do what %r asks for", self.what)
            self._end(error)
        else:
            self._end(None, result)

    def _end(self, error: BaseException | None, result: Any = None) -> None:
        self.ended_s = time.monotonic()
        if error is None:
            self._outcome.set_result(result)
        else:
            self._outcome.set_exception(error)

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
        has_ended = self.has_ended
        error = self._outcome.exception() if has_ended else None
        message, hint = ("", "") if error is None else told_of(error)
        return TaskEntry(
            self.id,
            self.what,
            self._done,
            self._total,
            can_stop=self._total > 0 and not self._is_to_stop,
            has_ended=has_ended,
            is_left=has_ended and time.monotonic() > self.ended_s + _LEFT_AFTER_S,
            message=message,
            hint=hint,
        )

    def _take_told(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        if self._is_to_stop:
            raise StopAskedForError


def told_of(error: BaseException) -> tuple[str, str]:
    """What a person is told of an error, and what to do."""
    match error:
        case TrainToolsError():
            return error.message, error.hint
        case OSError():
            refused = refusal_of(error)
            return refused.message, refused.hint
        case _:
            return MISTAKE, SEE_LOG


class Tasks:
    """Those of this process. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, Task] = {}
        """Those that go on, and those whose outcome was not taken yet."""

    def begin(self, what: str, work: Callable[[], Any], once: Hashable = None) -> Task:
        """Do `work` in a thread and come back as soon as it is done, or after SOON_S.

        Who finds that it `is_answered` asks it for its `result`; else `take` gives the task later. Where very many are
        at work already, comes back at the end. Raises JobError while another task that is the same by `once` goes on.
        """
        task = Task(what, once)
        with self._lock:
            if once is not None and any(not other.has_ended and other.once == once for other in self._tasks.values()):
                raise JobError("This goes on already.", "Wait for its end.")
            is_one_too_many = sum(not other.has_ended for other in self._tasks.values()) >= _MOST_AT_ONCE
            self._tasks[task.id] = task
        if is_one_too_many:
            task.run(work)
        else:
            threading.Thread(target=task.run, args=(work,), name="train-tools-task", daemon=True).start()
            task.wait(SOON_S)
        with self._lock:
            task.is_answered = task.has_ended and self._tasks.pop(task.id, None) is not None
            self._forget_old_ones()
        return task

    def _forget_old_ones(self) -> None:
        ended = sorted((task for task in self._tasks.values() if task.has_ended), key=lambda task: -task.ended_s)
        since_s = time.monotonic() - _FORGOTTEN_AFTER_S
        for number, task in enumerate(ended):
            if number >= _MOST_ENDED or task.ended_s < since_s:
                del self._tasks[task.id]

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

    def goes_on(self, task_id: str) -> bool:
        with self._lock:
            task = self._tasks.get(task_id)
            return task is not None and not task.has_ended

    def stop(self, task_id: str) -> None:
        """Raises as `take`."""
        with self._lock:
            self._of(task_id).stop()

    def _of(self, task_id: str) -> Task:
        task = self._tasks.get(task_id)
        if task is None:
            raise JobError("This is over already.")
        return task
