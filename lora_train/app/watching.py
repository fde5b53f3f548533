"""Reads jobs again and again, each time only what is new."""

from __future__ import annotations

import threading
from pathlib import Path

from lora_train.core.curves import CurveReader, Point
from lora_train.core.jobs import JobFolder, JobStatus, StatusReader
from lora_train.launch import launcher


class Watch:
    """The readers of all jobs that were asked for. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._statuses: dict[Path, StatusReader] = {}
        self._curves: dict[Path, CurveReader] = {}

    def status(self, job: JobFolder, worker: launcher.Worker | None = None) -> JobStatus:
        """What the job does or did; `worker` is its process, if it was started here."""
        with self._lock:
            reader = self._statuses.setdefault(job.path, StatusReader(job))
            return launcher.read_status(job, worker, reader)

    def curve(self, job: JobFolder, most: int) -> list[Point]:
        with self._lock:
            return self._curves.setdefault(job.path, CurveReader(job)).read(most)

    def forget(self, job: JobFolder) -> None:
        """The job's folder is gone; another may come under its name."""
        with self._lock:
            self._statuses.pop(job.path, None)
            self._curves.pop(job.path, None)
