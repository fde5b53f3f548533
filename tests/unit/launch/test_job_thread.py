"""Jobs that a thread of this process does: their folders tell what a worker's would."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from lora_train.core.errors import ModelError
from lora_train.core.events import EventWriter, Phase
from lora_train.core.jobs import JobFolder, RequestedEnd
from lora_train.core.specs import CaptionPlan, CaptionSpec
from lora_train.launch import job_thread, launcher


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    job = JobFolder(tmp_path / "job")
    job.create(CaptionSpec(dataset="../dataset", trash="../trash", plan=CaptionPlan()))
    return job


def until_stopped(job: JobFolder, events: EventWriter) -> dict[str, object]:
    events.write(Phase(name="waiting"))
    while (request := job.requested()) is None:
        time.sleep(0.01)
    raise RequestedEnd(request)


def test_from_start_to_end(job: JobFolder) -> None:
    go_on = threading.Event()

    def work(events: EventWriter) -> dict[str, object]:
        events.write(Phase(name="half", done=1, total=2))
        assert go_on.wait(10)
        return {"captions": 3}

    thread = job_thread.start_job_thread(job, work)
    while launcher.read_status(job).phase != "half":
        time.sleep(0.01)
    assert launcher.read_status(job).state == "running"
    assert launcher.is_alive(job)
    go_on.set()
    thread.join(10)
    status = launcher.read_status(job)
    assert (status.state, status.result) == ("finished", {"captions": 3})
    assert not launcher.is_alive(job)


def test_a_sign_of_life(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_thread, "_BEAT_S", 0.02)
    thread = job_thread.start_job_thread(job, lambda events: until_stopped(job, events))
    while not job.has_told_since(0) or launcher.read_status(job).phase != "waiting":
        time.sleep(0.01)
    before = job.events_path.stat().st_mtime_ns
    time.sleep(0.2)
    assert job.events_path.stat().st_mtime_ns > before
    job.request("stop")
    thread.join(10)
    assert launcher.read_status(job).state == "stopped"


def test_a_kill_asks_it_to_stop(job: JobFolder) -> None:
    job_thread.start_job_thread(job, lambda events: until_stopped(job, events))
    launcher.kill_worker(job)
    assert launcher.read_status(job).state == "stopped"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModelError("It is broken.", "Mend it."), ("ModelError", "It is broken.", "Mend it.")),
        (ZeroDivisionError("division by zero"), ("ZeroDivisionError", "Unexpected: division by zero", None)),
    ],
)
def test_a_failure(job: JobFolder, error: Exception, told: tuple[str, str, str | None]) -> None:
    def work(_: EventWriter) -> dict[str, object]:
        raise error

    job_thread.start_job_thread(job, work).join(10)
    status = launcher.read_status(job)
    assert (status.state, status.error, status.message) == ("failed", *told[:2])
    assert told[2] is None or status.hint == told[2]
    assert "in work" in job.log_path.read_text(encoding="utf-8")


def test_one_that_ended_with_its_process(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    thread = job_thread.start_job_thread(job, lambda events: until_stopped(job, events))
    while launcher.read_status(job).phase != "waiting":
        time.sleep(0.01)
    with monkeypatch.context() as another_process:
        another_process.setattr(job_thread, "_at_work", {})
        assert launcher.read_status(job).state == "failed"
    job.request("stop")
    thread.join(10)
