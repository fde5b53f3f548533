"""The line between processes: whose failure is told, and what happens to one that hangs. Both ends are in this one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from multiprocessing import AuthenticationError
from pathlib import Path

import pytest

from lora_train.core import events as ev
from lora_train.core.errors import JobError
from lora_train.core.jobs import JobFolder
from lora_train.core.places import Place
from lora_train.engine import team as module
from lora_train.engine.team import Address, Team

OWN = ev.Failed(error="RuntimeError", message="Connection closed by peer.")
WAIT_S = 60


class Ends:
    """The first of two processes and the other one, and the exit codes with which one would have been ended."""

    def __init__(self, folder: Path) -> None:
        self.job = JobFolder(folder)
        self.codes: list[int] = []
        self.has_ended = threading.Event()
        self.first = Team(Place(0, 2, 0, 2), self.job)
        self.other = Team(Place(1, 2, 1, 2), self.job)
        self.address = self.first.open("127.0.0.1")
        self.other.join(self.address)
        until = time.monotonic() + WAIT_S
        while not self.first._called:
            assert time.monotonic() < until, "the call does not come in"
            time.sleep(0.01)

    def exit(self, code: int) -> None:
        self.codes.append(code)
        self.has_ended.set()

    def break_line(self) -> None:
        """As when the other one is killed."""
        self.other._left.set()
        for connection in self.other._numbers:
            connection.close()


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    opened = Ends(tmp_path)
    monkeypatch.setattr(module.os, "_exit", opened.exit)
    monkeypatch.setattr(module, "_CAUSE_FIRST_S", 5.0)
    yield opened
    for team in (opened.other, opened.first):
        team.leave(None)
    opened.first.events.close()


def test_the_failure_of_another_is_told_in_its_words(ends: Ends) -> None:
    ends.other.leave(ev.Failed(error="DatasetError", message="It broke.", hint="Mend it."))
    found = ends.first.cause_of(RuntimeError(OWN.message), OWN)
    assert (found.error, found.message) == ("DatasetError", "Process 2 of 2 failed: It broke.")
    assert found.hint == "Mend it."


def test_one_that_is_gone_without_a_word(ends: Ends) -> None:
    ends.break_line()
    found = ends.first.cause_of(RuntimeError(OWN.message), OWN)
    assert found.message == "Process 2 of 2 ended without a word (killed, or out of memory)."


def test_a_failure_of_its_own_needs_no_other(ends: Ends) -> None:
    assert ends.first.cause_of(JobError("The disk is full."), OWN) is OWN


def test_one_that_hangs_is_ended_and_its_job_says_why(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for a sum that never comes, which nothing calls off."""
    monkeypatch.setattr(module, "_GRACE_S", 0.1)
    ends.break_line()
    assert ends.has_ended.wait(WAIT_S)
    assert ends.codes == [1]
    told = [event.message for event in ends.job.events() if isinstance(event, ev.Failed)]
    assert told == ["Process 2 of 2 ended without a word (killed, or out of memory)."]


def test_the_end_of_the_first_is_the_end_of_all(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE_S", 0.1)
    ends.first.leave(None)
    assert ends.has_ended.wait(WAIT_S)
    assert ends.codes == [0]


def test_another_may_be_done_before(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one still has to save."""
    monkeypatch.setattr(module, "_GRACE_S", 0.1)
    ends.other.leave(None)
    assert not ends.has_ended.wait(1)


def test_strangers_stay_outside(ends: Ends) -> None:
    stranger = Team(Place(1, 2, 1, 2), ends.job)
    with pytest.raises(AuthenticationError):
        stranger.join(Address(ends.address.host, ends.address.port, "a guess"))
    assert not ends.first._lost
