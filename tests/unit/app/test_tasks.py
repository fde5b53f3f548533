"""What takes longer than a click: answered soon, told while it goes on, stopped, and taken at its end."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator

import pytest

from lora_train.app import tasks as tasks_module
from lora_train.app.tasks import MISTAKE, SEE_LOG, Task, Tasks
from lora_train.core.errors import JobError, WorkspaceError
from lora_train.core.progress import tell

WAIT_S = 60.0


class Slow:
    """Work that goes on until it is let go; it tells two of five things."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.has_told = threading.Event()

    def __call__(self) -> str:
        tell(2, 5)
        self.has_told.set()
        assert self.may_end.wait(WAIT_S)
        tell(3, 5)
        return "done"


@pytest.fixture
def slow() -> Iterator[Slow]:
    work = Slow()
    yield work
    work.may_end.set()


def ended(task: Task) -> Task:
    task.wait(WAIT_S)
    assert task.has_ended
    return task


def test_what_is_quick_is_answered_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "SOON_S", WAIT_S)
    tasks = Tasks()
    task = tasks.begin("Apply", lambda: 3)
    assert (task.is_answered, task.result(), tasks.entries()) == (True, 3, [])
    with pytest.raises(JobError, match="over already"):
        tasks.take(task.id)


def test_what_is_quick_raises_what_it_raised() -> None:
    def fail() -> None:
        raise WorkspaceError("no", "try")

    with pytest.raises(WorkspaceError, match="no"):
        Tasks().begin("Apply", fail).result()


def test_what_is_slow_is_told_and_taken_once(slow: Slow) -> None:
    tasks = Tasks()
    began = time.monotonic()
    task = tasks.begin("Apply", slow)
    assert time.monotonic() - began < WAIT_S / 2, "it was not waited for"
    assert not task.is_answered
    assert tasks.take(task.id) is None
    assert slow.has_told.wait(WAIT_S)
    (entry,) = tasks.entries()
    assert (entry.what, entry.done, entry.total, entry.can_stop, entry.has_ended) == ("Apply", 2, 5, True, False)
    slow.may_end.set()
    ended(task)
    (entry,) = tasks.entries()
    assert (entry.has_ended, entry.is_left, entry.message) == (True, False, "")
    taken = tasks.take(task.id)
    assert taken is task
    assert task.result() == "done"
    assert tasks.entries() == []
    with pytest.raises(JobError, match="over already"):
        tasks.stop(task.id)


def test_what_is_stopped_says_so(slow: Slow) -> None:
    tasks = Tasks()
    task = tasks.begin("Apply", slow)
    assert slow.has_told.wait(WAIT_S)
    tasks.stop(task.id)
    assert not tasks.entries()[0].can_stop, "once is enough"
    slow.may_end.set()
    with pytest.raises(JobError, match="stopped, as asked for"):
        ended(task).result()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (WorkspaceError("The disk is full.", "Make room."), ("The disk is full.", "Make room.")),
        (OSError(errno.ENOSPC, "No space left", "/home/anna/x.txt"), ("x.txt", "")),
        (MemoryError(), (MISTAKE, SEE_LOG)),
    ],
)
def test_an_outcome_that_nobody_takes_is_shown(
    slow: Slow, monkeypatch: pytest.MonkeyPatch, error: Exception, told: tuple[str, str]
) -> None:
    monkeypatch.setattr(tasks_module, "_LEFT_AFTER_S", 0.0)
    tasks = Tasks()

    def fail() -> None:
        slow()
        raise error

    task = tasks.begin("Duplicate Version", fail)
    slow.may_end.set()
    ended(task)
    while not tasks.entries()[0].is_left:
        time.sleep(0.01)
    (entry,) = tasks.entries()
    assert told[0] in entry.message
    assert told[1] in entry.hint


def test_outcomes_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go; one that ends late stays, however early it was begun."""
    monkeypatch.setattr(tasks_module, "SOON_S", 0.0)
    monkeypatch.setattr(tasks_module, "_MOST_ENDED", 3)
    tasks = Tasks()
    late = Slow()
    first = tasks.begin("", late)
    for work in [Slow() for _ in range(5)]:
        task = tasks.begin("", work)
        work.may_end.set()
        ended(task)
    late.may_end.set()
    ended(first)
    tasks.begin("", lambda: None)
    assert len([entry for entry in tasks.entries() if entry.has_ended]) <= 4, "three, and perhaps the last one"
    assert tasks.take(first.id) is first
    monkeypatch.setattr(tasks_module, "_FORGOTTEN_AFTER_S", 0.0)
    tasks.begin("", lambda: None)
    assert len(tasks.entries()) <= 1


def test_what_goes_on_is_not_begun_again(slow: Slow) -> None:
    tasks = Tasks()
    task = tasks.begin("Apply", slow, ("Apply", "v1"))
    with pytest.raises(JobError, match="goes on already"):
        tasks.begin("Apply", slow, ("Apply", "v1"))
    assert tasks.begin("Apply", lambda: 1, ("Apply", "v2")).result() == 1
    slow.may_end.set()
    ended(task)
    assert tasks.begin("Apply", lambda: 2, ("Apply", "v1")).result() == 2, "it has ended, taken or not"


def test_too_many_at_once_are_waited_for(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "_MOST_AT_ONCE", 1)
    tasks = Tasks()
    tasks.begin("", slow)
    other = tasks.begin("", threading.current_thread)
    assert other.result() is threading.current_thread()


def test_without_a_listener_nobody_is_told() -> None:
    tell(1, 2)
