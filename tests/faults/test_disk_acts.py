"""Whatever a person does at the page, and whichever of its writes fails: nothing is lost or half there, the reason is
told, and the same action works when the disk does.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_train.core import files
from tests.faults.damaging import Failing, half_written, lost, precious, refused, temporary
from tests.faults.shelf import ACTIONS, CAPTION_EDITS, QUEUED, Shelf, all_is_in_order, jobs_of
from tests.unit.app.conftest import Desk, updates_here  # noqa: F401  (a fixture)

MOST_WRITES = 400
"""No action has so many: one that does would never end."""
STEP = 7
"""Without `--full` every seventh write of an action, beginning elsewhere for each."""


@pytest.fixture(scope="module")
def shelf() -> Iterator[Shelf]:
    """In memory where that can be: thousands of flushes to a disk take minutes."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, ignore_cleanup_errors=True) as root:
        yield Shelf(Path(root))


@pytest.fixture(scope="module")
def failing(shelf: Shelf) -> Failing:
    return Failing(shelf.place)


@pytest.fixture(autouse=True)
def _in_no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that stays locked is waited for a second; thousands are too long."""
    monkeypatch.setattr(files, "_REPLACE_PAUSE_S", 0.0)


@pytest.mark.usefixtures("updates_here")
@pytest.mark.parametrize("name", [*ACTIONS])
def test_every_write_of_an_action_may_fail(
    shelf: Shelf, failing: Failing, share: Callable[[int], int], count: Callable[[str, int], None], name: str
) -> None:
    act, is_idle = ACTIONS[name], name not in QUEUED
    is_full = share(10) == 10
    first, step = (1, 1) if is_full else (1 + len(name) % STEP, STEP)
    edited = "/processed/" if name in CAPTION_EDITS else "//"
    writes = _count(shelf, failing, name)
    assert 0 < writes < MOST_WRITES or name == "select"
    for code in (errno.ENOSPC, errno.EACCES)[: 2 if is_full else 1]:
        for number in range(min(first, writes), writes + 1, step):
            for stays in (False, True):
                desk = shelf.put_back(is_idle=is_idle)
                before, queued = precious(shelf.place / "work space", but=edited), jobs_of(desk)
                with failing.at(number, code, stays=stays):
                    told = refused(lambda desk=desk: act(desk))
                where = f"{name}: write {number} of {writes}, {os.strerror(code)}{', and all after it' * stays}: {told}"
                assert lost(before, shelf.place) == [], where
                assert half_written(shelf.place) == [], where
                all_is_in_order(Desk(shelf.place), queued, name, told)
                _works_again(shelf, name, told, where)
                count("failed writes", 1)


def _count(shelf: Shelf, failing: Failing, name: str) -> int:
    """How many writes an action has when all is well."""
    desk = shelf.put_back(is_idle=name not in QUEUED)
    with failing.at(10**9):
        ACTIONS[name](desk)
    return failing.done


def _works_again(shelf: Shelf, name: str, told: str, where: str) -> None:
    """After the next start, with a disk that works."""
    desk = Desk(shelf.place)
    desk.app.projects.list()
    if "partly deleted" in told or "It stays in" in told:
        desk.app.projects.restore(max(desk.workspace.trash_dir.iterdir()).name)
        told = "" if name == "restore" else told
    if told or name == "update dataset":  # which puts away what the one before could not
        again = refused(lambda: ACTIONS[name](desk))
        assert again == "", f"{where}\nand then: {again}"
    assert temporary(shelf.place) == [], where
