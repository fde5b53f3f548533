"""A training of very many steps: its events are read once, by whoever reads them first."""

from __future__ import annotations

import time

import msgspec
from full_workspace import Full, Sizes

from lora_train.core.events import read_events
from lora_train.core.jobs import JobFolder, StatusReader
from tests.unit.core.folding import status_of

MOST_S = 0.2
LONG_ENOUGH_EVENTS = 20_000
"""Of which a summary is kept; fewer are soon read."""


def test_a_restart_reads_the_summary(full: Full, sizes: Sizes) -> None:
    """It says exactly what all events together say, without reading them again."""
    assert sizes.events >= LONG_ENOUGH_EVENTS
    job = JobFolder(full.root / full.train)
    before_s = time.process_time()
    reader = StatusReader(job)
    status, curve = reader.read(), reader.curve(400)
    assert time.process_time() - before_s < MOST_S
    assert msgspec.json.encode(status) == msgspec.json.encode(status_of(job.events()))
    assert (status.step, status.state) == (sizes.events, "finished")
    assert 200 <= len(curve) <= 400
    assert curve[-1].step == sizes.events
    assert abs(sum(point.loss for point in curve) / len(curve) - _mean_loss(job)) < 1e-3


def _mean_loss(job: JobFolder) -> float:
    losses = [event.loss for event in job.each_event() if hasattr(event, "s_per_step")]
    return sum(losses) / len(losses)


def test_events_are_handed_out_in_parts(full: Full) -> None:
    job = JobFolder(full.root / full.train)
    everything = len(job.events())
    found, offset_bytes, most = 0, 0, 0
    while True:
        events, end_bytes = read_events(job.events_path, offset_bytes, 2**20)
        if end_bytes == offset_bytes:
            break
        found, offset_bytes, most = found + len(events), end_bytes, max(most, end_bytes - offset_bytes)
    assert (found, offset_bytes) == (everything, job.told_bytes())
    assert most < 2**20 + 2**16
