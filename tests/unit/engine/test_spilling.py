"""A driver that moves memory of the training into main memory is noticed, where a step's usual time is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder
from lora_train.engine import devices
from lora_train.engine.reporting import Reporter

GB = 2**30


def warnings_of(tmp_path: Path, usual_s_per_step: float, s_per_step: float) -> list[str]:
    job = JobFolder(tmp_path)
    events = ev.EventWriter(job.events_path)
    report = Reporter(job, events)
    report.usual_s_per_step = usual_s_per_step
    for step in (1, 2):
        report._sent_at -= s_per_step
        report.step(step=step, epoch=1, lr=1.0, loss=torch.zeros(()))
        report.flush()
    events.close()
    return [event.message for event in job.events() if isinstance(event, ev.Note)]


@pytest.mark.parametrize(
    ("usual_s", "spills", "count"), [(2.0, True, 1), (2.0, False, 0), (4.0, True, 0), (0.0, True, 0)]
)
def test_slow_steps_on_a_full_card_are_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual_s: float, spills: bool, count: int
) -> None:
    """Steps of 10 s each: five times 2 s, and not three times 4 s."""
    monkeypatch.setattr(devices, "spills", lambda _: spills)
    assert len(warnings_of(tmp_path, usual_s, 10.0)) == count


@pytest.mark.parametrize(
    ("platform", "free_bytes", "expected"),
    [("win32", 0.05 * GB, True), ("win32", 0.5 * GB, False), ("linux", 0.0, False)],
)
def test_only_drivers_for_windows_spill(
    monkeypatch: pytest.MonkeyPatch, platform: str, free_bytes: float, expected: bool
) -> None:
    memory: Callable[[Any], tuple[float, float]] = lambda _: (free_bytes, 8 * GB)  # noqa: E731
    monkeypatch.setattr(devices.sys, "platform", platform)
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    assert devices.spills(torch.device("cuda")) is expected
    assert not devices.spills(torch.device("cpu"))
