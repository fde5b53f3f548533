"""What must not be moved away, because a job waits or runs that needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from lora_train.app.watching import Watch
from lora_train.core.errors import JobError, WorkspaceError
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import GridSpec, JobSpec, JudgeSpec, ProofSpec, RegularisationSpec, SamplesSpec
from lora_train.core.workspace import Version, Workspace
from lora_train.launch.job_thread import has_job_thread
from lora_train.launch.queue import JobQueue


class InUse:
    """`is_updating` tells whether *Update Dataset* works on a version."""

    def __init__(
        self, workspace: Workspace, jobs: JobQueue, watch: Watch, is_updating: Callable[[Version], bool]
    ) -> None:
        self._workspace = workspace
        self._jobs = jobs
        self._watch = watch
        self._is_updating = is_updating

    def require_idle(self, folder: Path, what: str) -> None:
        """Raise JobError while something needs this folder: a project's, a version's or a training's."""
        versions = [version for version in self._versions() if version.path.is_relative_to(folder)]
        started_elsewhere = (path for version in versions for path in self._running_trains(version))
        if any(train.is_relative_to(folder) for train in (*self._queued_trains(), *started_elsewhere)):
            raise JobError(f"A training of {what} waits or runs.", "Stop it, or wait for its end.")
        for version in versions:
            self.require_not_updating(version)
            self.require_not_drawing(version)
        if any(lora.is_relative_to(folder.resolve()) for lora in self._drawn_loras()):
            raise JobError(
                f"Previews of {what} are being drawn, or wait for the card.", "Stop it, or wait for its end."
            )

    def require_not_updating(self, version: Version) -> None:
        """Raise JobError while *Update Dataset* makes the version's pictures."""
        if self._is_updating(version):
            raise JobError(
                f"The dataset of {version.info().name} is being updated.", "Wait for its end, or stop the update."
            )

    def require_not_drawing(self, version: Version) -> None:
        """Raise JobError while regularisation pictures of the version are drawn, or wait for the card."""
        if self.is_drawing(version):
            raise JobError(
                f"Regularisation pictures of {version.info().name} are being drawn, or wait for the card.",
                "Stop it, or wait for its end.",
            )

    def is_drawing(self, version: Version) -> bool:
        """Whether a job that draws regularisation pictures of the version waits or runs."""
        return any(needed.is_relative_to(version.regularisation_dir) for _, needed in self._queued())

    def is_drawn_for(self, train: Path) -> bool:
        """Whether a job that draws previews of this training waits or runs."""
        return any(isinstance(spec, SamplesSpec) and drawn == train for spec, drawn in self._queued())

    def is_judged(self, train: Path) -> bool:
        """Whether a job that judges this training waits or runs."""
        return any(isinstance(spec, JudgeSpec) and needed == train for spec, needed in self._queued())

    def being_proven(self, train: Path) -> set[str]:
        """The LoRAs of this training of which a job waits or runs that proves the copy."""
        return {spec.lora for spec, needed in self._queued() if isinstance(spec, ProofSpec) and needed == train}

    def is_grid_drawn(self, job: str) -> bool:
        """Whether a job that draws grids waits or runs, in the queue or beside it."""
        if self._jobs.place_of(job) is not None:
            return True
        with suppress(WorkspaceError):  # it is deleted
            folder = JobFolder(self._workspace.find_job(job))
            return has_job_thread(folder) or self._watch.status(folder).state == "running"
        return False

    def _drawn_loras(self) -> Iterator[Path]:
        """The LoRAs of which grids are drawn, or wait for the card."""
        for job_id in (job for version in self._versions() for job in version.info().grid_jobs):
            if self.is_grid_drawn(job_id):
                with suppress(JobError):  # its folder is gone, or damaged
                    job = JobFolder(self._workspace.root / job_id)
                    spec = job.read_spec()
                    assert isinstance(spec, GridSpec)
                    yield from ((job.path / lora).resolve() for lora in spec.loras)

    def _queued_trains(self) -> list[Path]:
        """Those that the queue has work on; a proof that waits is nothing that a person would wait for."""
        return [
            needed
            for spec, needed in self._queued()
            if needed.parent.name == "trains" and not isinstance(spec, ProofSpec)
        ]

    def _queued(self) -> Iterator[tuple[JobSpec | None, Path]]:
        """The jobs of the queue, each with the folder of the training or class that it is, or draws for. A job whose
        folder is gone or damaged is None.
        """
        for job_id in (*self._jobs.all_running(), *self._jobs.waiting()):
            job = JobFolder(self._workspace.root / job_id)
            needed = job.path
            spec: JobSpec | None = None
            with suppress(JobError):
                spec = job.read_spec()
                if isinstance(spec, SamplesSpec | JudgeSpec | ProofSpec):
                    needed = (job.path / spec.train).resolve()
                if isinstance(spec, RegularisationSpec):
                    needed = (job.path / spec.folder).resolve()
            yield spec, needed

    def _versions(self) -> Iterator[Version]:
        for project in self._workspace.projects():
            yield from project.versions()

    def _running_trains(self, version: Version) -> Iterator[Path]:
        for path in version.trains_dir.iterdir() if version.trains_dir.is_dir() else ():
            if (path / "job.json").is_file() and self._watch.status(JobFolder(path)).state == "running":
                yield path
