"""Trains in the queue: stopped, paused, killed at every moment, resumed; and the death of the program around them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import lora_train
from lora_train.core import events as ev
from lora_train.core.errors import JobError
from lora_train.launch import launcher

if TYPE_CHECKING:
    from tests.integration.app.conftest import House

LONG = {"epochs": 400, "state_every_s": 1}


def test_stop_pause_and_resume_through_the_queue(house: House) -> None:
    """One train while the other waits; each ends in its own way, and goes on from where it was."""
    house.set_up(2, **LONG)
    first, second = (house.app.training.begin("cat", "v1") for _ in range(2))
    house.app.start_background()
    house.wait(lambda: len(house.steps(first)) > 3)
    assert (house.train(first).place, house.train(second).place) == (0, 1)
    house.app.training.pause(first)
    house.wait_for(first, "paused")
    at = house.train(first).status.step
    assert house.train(first).loras == []
    house.wait(lambda: len(house.steps(second)) > 3)
    house.app.training.resume(first)
    with pytest.raises(JobError, match="waits or runs already"):
        house.app.training.resume(first)
    assert house.train(first).place == 1
    house.app.training.stop(second)
    house.wait_for(second, "stopped")
    (lora,) = house.train(second).loras
    assert lora.stem == f"cat-v1-r2-step{house.train(second).status.step:06}"
    assert lora.published == lora.stem, "what was stopped and saved is a result"

    house.wait_for(first, "running")
    house.wait(lambda: house.steps(first)[-1] > at + 3)
    starts = [event.step for event in house.folder(first).events() if isinstance(event, ev.Started)]
    assert starts == [None, 0, None, at]
    house.app.training.kill(first)
    house.wait_for(first, "stopped")
    status = house.train(first).status
    assert (status.message, "Resume" in status.hint) == ("Ended at once, as asked for.", True)
    assert house.train(first).loras == []

    house.app.training.resume(first)
    house.wait(lambda: house.train(first).status.phase == "loading the base model")
    house.app.training.stop(first)
    house.wait_for(first, "stopped")
    (lora,) = house.train(first).loras
    assert lora.step > at, "what was learned before is saved, also when its steps have not begun again"
    assert house.host.parked_for == ["in auto", "out"] * 4
    house.app.training.resume(first)
    house.wait_for(first, "running")
    house.app.training.stop(first)
    house.wait_for(first, "stopped")
    assert house.train(first).status.step >= at


@pytest.mark.parametrize(
    ("ask", "phase", "state"),
    [
        ("stop", "", "stopped"),
        ("pause", "encoding the pictures", "paused"),
        ("kill", "encoding the pictures", "stopped"),
    ],
)
def test_asked_while_it_comes_up(house: House, ask: str, phase: str, state: str) -> None:
    """Before its worker has told anything, or while it encodes: nothing is left behind."""
    house.set_up(30 if phase else 1, flip=True, **LONG)
    job = house.app.training.begin("cat", "v1")
    house.app.start_background()
    house.wait(lambda: house.train(job).place == 0 and house.train(job).status.phase == phase)
    getattr(house.app.training, ask)(job)
    house.wait_for(job, state)
    assert len(house.steps(job)) <= 3, "it may have begun just then"
    assert house.train(job).loras == []
    assert house.host.parked_for == ["in auto", "out"]


def test_pictures_may_change_when_they_are_read(house: House) -> None:
    house.set_up(2, **LONG)
    job = house.app.training.begin("cat", "v1")
    with pytest.raises(JobError, match="needs the pictures as they are"):
        house.app.datasets.start_update("cat", "v1")
    house.app.start_background()
    house.wait(lambda: house.steps(job))
    house.app.datasets.set_caption("cat", "v1", "1_cat/0.png", "new")
    with pytest.raises(JobError, match="waits or runs"):
        house.app.projects.rename("cat", "dog")
    house.app.training.kill(job)
    house.wait_for(job, "stopped")
    house.app.projects.rename("cat", "dog")


_PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from conftest import ParkingHost
from lora_train.app import App
from lora_train.core.workspace import Workspace

root = Path(sys.argv[1])
app = App(Workspace(root / "work space"), ParkingHost(root))
app.start_background()
app._background._runner.join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_the_program_is_killed(house: House) -> None:
    """The worker goes on. The next program finds it, publishes at its end, and takes the next train."""
    house.set_up(2, epochs=40)
    first, second = (house.app.training.begin("cat", "v1") for _ in range(2))
    package_root = str(Path(lora_train.__file__).parents[1])
    program = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(house.root), str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": package_root},
    )
    house.wait(lambda: len(house.steps(first)) > 3)
    program.send_signal(signal.SIGKILL)
    program.wait()
    pid = house.train(first).status.pid
    told = len(house.steps(first))
    house.wait(lambda: len(house.steps(first)) > told)
    assert house.state(first) == "running"
    assert house.train(second).place == 1
    assert not house.host.loras.exists()

    house.app.start_background()
    house.wait(lambda: house.host.parked_for == ["in auto"] or house.train(first).place is None)
    house.wait_for(first, "finished")
    starts = [event.pid for event in house.folder(first).events() if isinstance(event, ev.Started)]
    assert set(starts) == {pid}, "one worker from the beginning to the end"
    house.wait_for(second, "finished")
    assert {path.stem for path in house.host.loras.iterdir()} == {"cat-v1", "cat-v1-r2"}


def test_a_train_that_ends_while_no_program_runs_is_published(house: House) -> None:
    house.set_up(1)
    job = house.app.training.begin("cat", "v1")
    house.app.start_background()
    house.wait_for(job, "running")
    house.app.stop_background()
    folder = house.folder(job)
    house.wait(lambda: launcher.read_status(folder).state == "finished")
    assert (house.train(job).place, house.state(job)) == (0, "finished")
    assert house.train(job).loras[0].published == ""
    house.app.start_background()
    house.wait_for(job, "finished")
    assert house.train(job).loras[0].published == "cat-v1"


def test_a_python_that_is_broken(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds: none that can be started, and one that can't import us."""
    house.set_up(1)
    first, second = (house.app.training.begin("cat", "v1") for _ in range(2))
    monkeypatch.setattr(sys, "executable", str(house.root / "no python"))
    house.app.start_background()
    house.wait_for(first, "failed")
    house.app.stop_background()
    broken = house.root / "python"
    broken.write_text("#!/bin/sh\necho No module named lora_train >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    house.app.training.resume(second) if house.train(second).place is None else None
    house.app.start_background()
    house.wait_for(second, "failed")
    assert "could not start" in house.train(first).status.message
    assert "No module named lora_train" in house.train(second).status.message
    monkeypatch.undo()
    house.app.training.resume(first)
    house.wait_for(first, "finished")


def test_a_lora_folder_that_can_not_be_written_is_told(house: House) -> None:
    house.set_up(1)
    job = house.app.training.begin("cat", "v1")
    house.host.loras.parent.mkdir(parents=True)
    house.host.loras.write_bytes(b"a file")
    house.app.start_background()
    house.wait_for(job, "finished")
    house.wait(lambda: any("can't be written" in note for note in house.train(job).status.notes))
    assert house.train(job).loras[0].published == ""


def test_two_apps_on_one_workspace_run_one_job(house: House) -> None:
    """A WebUI and a standalone page: either may add, one works the queue off."""
    from lora_train.app import App

    house.set_up(1)
    other = App(house.app.workspace, house.host)
    other.start_background()
    house.app.start_background()
    try:
        jobs = [app.training.begin("cat", "v1") for app in (house.app, other)]
        house.wait(lambda: all(house.train(job).place is None for job in jobs))
        assert [house.state(job) for job in jobs] == ["finished"] * 2
        times = [[event.t for event in house.folder(job).events()] for job in jobs]
        assert max(times[0]) <= min(times[1]), "one after the other"
        assert len(house.host.parked_for) == 4
    finally:
        other.stop_background()
