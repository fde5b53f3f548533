"""Reads jobs again and again, each time only what is new."""

from __future__ import annotations

import threading
from pathlib import Path

from lora_train.core.curves import Point, ValidationPoint
from lora_train.core.jobs import JobFolder, JobStatus, StatusReader
from lora_train.core.original import finished_train
from lora_train.core.specs import JobSpec
from lora_train.launch import launcher


class _Readers:
    """Of one job. `made` tells it from an earlier one in a folder of the same name."""

    def __init__(self, job: JobFolder, made: int) -> None:
        self.made = made
        self.status = StatusReader(job)
        self.spec: JobSpec | None = None


class Watch:
    """The readers of all jobs that were asked for. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[Path, _Readers] = {}

    def spec(self, job: JobFolder) -> JobSpec:
        """What is to be done: written once, so read once. Raises JobError as `JobFolder.read_spec`."""
        with self._lock:
            readers = self._of(job)
            if readers.spec is None:
                readers.spec = job.read_spec()
            return readers.spec

    def status(self, job: JobFolder, worker: launcher.Worker | None = None) -> JobStatus:
        """What the job does or did; `worker` is its process, if it was started here."""
        if (status := finished_train(job.path)) is not None:
            return status
        with self._lock:
            return launcher.read_status(job, worker, self._of(job).status)

    def curve(self, job: JobFolder, most: int) -> list[Point]:
        """Loss and learning rate over the steps, in at most so many points."""
        with self._lock:
            return self._of(job).status.curve(most)

    def validations(self, job: JobFolder) -> list[ValidationPoint]:
        """The losses on the held-out pictures, in the order of steps."""
        with self._lock:
            return self._of(job).status.validations()

    def _of(self, job: JobFolder) -> _Readers:
        """The job's readers; new ones where a project was renamed or deleted, and another made under its name."""
        try:
            made = job.spec_path.stat().st_mtime_ns
        except OSError:
            made = 0
        readers = self._readers.get(job.path)
        if readers is None or readers.made != made:
            readers = self._readers[job.path] = _Readers(job, made)
        return readers
