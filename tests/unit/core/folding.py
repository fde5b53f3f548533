"""A status folded from events in one go: what the readers must come to, however they read."""

from __future__ import annotations

from collections.abc import Iterable

from lora_train.core.events import Event
from lora_train.core.jobs import JobStatus, update_status


def status_of(events: Iterable[Event]) -> JobStatus:
    status = JobStatus()
    for event in events:
        update_status(status, event)
    return status
