"""The thread that hears requests and touches the heartbeat."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_train.core.events import EventWriter
from lora_train.core.jobs import JobFolder, RequestedEnd, StatusReader
from lora_train.engine import reporting
from lora_train.engine.reporting import Reporter


def wait_until(is_true: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_was_asked_before_is_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model may have trained its first step before the thread looks."""
    monkeypatch.setattr(reporting, "_LOOK_EVERY_S", 60)
    job = JobFolder(tmp_path)
    job.request("pause")
    with Reporter(job, EventWriter(job.events_path)) as report, pytest.raises(RequestedEnd):
        report.phase("reading the pictures")


def test_strange_events_keep_nobody_from_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def strange(_: StatusReader) -> None:
        read.append(1)
        raise ValueError

    monkeypatch.setattr(StatusReader, "read", strange)
    monkeypatch.setattr(reporting, "_LOOK_EVERY_S", 0.01)
    job = JobFolder(tmp_path)
    events = EventWriter(job.events_path)
    os.utime(job.events_path, (0, 0))
    with Reporter(job, events) as report:
        wait_until(lambda: job.events_path.stat().st_mtime > 0)
        assert read
        job.request("stop")
        wait_until(lambda: report.request == "stop")
    events.close()
