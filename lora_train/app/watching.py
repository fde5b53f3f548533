"""Reads jobs again and again, each time only what is new."""

from __future__ import annotations

import threading
from pathlib import Path

from lora_train.core.curves import CurveReader, Point
from lora_train.core.jobs import JobFolder, JobStatus, StatusReader
from lora_train.launch import launcher

_Key = tuple[Path, int]


class Watch:
    """The readers of all jobs that were asked for. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._statuses: dict[_Key, StatusReader] = {}
        self._curves: dict[_Key, CurveReader] = {}

    def status(self, job: JobFolder, worker: launcher.Worker | None = None) -> JobStatus:
        """What the job does or did; `worker` is its process, if it was started here."""
        with self._lock:
            reader = self._statuses.setdefault(_key(job), StatusReader(job))
            return launcher.read_status(job, worker, reader)

    def curve(self, job: JobFolder, most: int) -> list[Point]:
        with self._lock:
            return self._curves.setdefault(_key(job), CurveReader(job)).read(most)


def _key(job: JobFolder) -> _Key:
    """Another job that comes under the name of a deleted one is another job."""
    try:
        return job.path, job.spec_path.stat().st_mtime_ns
    except FileNotFoundError:
        return job.path, 0
