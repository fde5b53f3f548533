"""The queue as a person sees and changes it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import PurePosixPath
from typing import Literal

from lora_train.app.projects import title_of
from lora_train.app.snapshot import QueueEntry
from lora_train.core.errors import TrainToolsError
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import GridSpec, JudgeSpec, ProofSpec, RegularisationSpec, SamplesSpec, TrainSpec
from lora_train.core.workspace import Version, Workspace
from lora_train.launch.queue import JobQueue


class Queue:
    def __init__(self, workspace: Workspace, jobs: JobQueue) -> None:
        self._workspace = workspace
        self._jobs = jobs

    def entries(self) -> list[QueueEntry]:
        """The running jobs, that of the first card in front, and those that wait, in their order."""
        running = [self._entry(job, is_running=True) for job in self._jobs.all_running()]
        return [*running, *(self._entry(job, is_running=False) for job in self._jobs.waiting())]

    def move(self, job: str, place: int) -> None:
        """Give a waiting job another place, 1 being the first. Raises JobError for one that doesn't wait."""
        self._jobs.move(job, place)

    def cancel(self, job: str) -> None:
        """Take a waiting job out. Raises JobError for one that doesn't wait."""
        self._jobs.cancel(job)

    def foreign(self, version: Version) -> str:
        """A sentence where a job that is not of this version has the card; else empty."""
        running = self._jobs.running()
        if not running or f"{running}/".startswith(f"{self._workspace.id_of(version.path)}/"):
            return ""
        return f"{self._entry(running, is_running=True).title} is using the card."

    def _entry(self, job: str, *, is_running: bool) -> QueueEntry:
        kind: Literal["train", "preview", "regularisation", "judge", "proof"] = "train"
        title = job.rpartition("/")[2]
        with suppress(TrainToolsError):  # a job whose folder is gone is listed all the same, so it can be cancelled
            folder = JobFolder(self._workspace.find_job(job))
            spec = folder.read_spec()
            if isinstance(spec, SamplesSpec | JudgeSpec | ProofSpec):
                kind = (
                    "preview" if isinstance(spec, SamplesSpec) else "judge" if isinstance(spec, JudgeSpec) else "proof"
                )
                folder = JobFolder(folder.path / spec.train)
                spec = folder.read_spec()
            if isinstance(spec, GridSpec):
                kind = "preview"
                train_dir = (folder.path / spec.loras[0]).parent.resolve()
                version = self._workspace.version_of(train_dir)
                stem = PurePosixPath(spec.loras[0]).name.removesuffix(".safetensors")
                title = f"{title_of(version)}: {stem if len(spec.loras) == 1 else f'{len(spec.loras)} LoRAs'}"
            if isinstance(spec, RegularisationSpec):
                kind = "regularisation"
                class_dir = (folder.path / spec.folder).resolve()
                version = self._workspace.find_version(class_dir.parents[4].name, class_dir.parents[2].name)
                title = f"{title_of(version)}: {class_dir.name.partition('_')[2] or class_dir.name}"
            if isinstance(spec, TrainSpec):
                version = self._workspace.version_of(folder.path)
                title = f"{title_of(version)}: {spec.name}"
        return QueueEntry(job, title, kind, "running" if is_running else "waiting")
