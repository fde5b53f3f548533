"""The health check of a version's dataset: reported from what is known, and pictures looked at in a job."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lora_train.app.datasets import Datasets
from lora_train.app.planning import check_base_model, choose_buckets, facts_or_usual
from lora_train.app.remembered import Remembered
from lora_train.app.version_settings import train_settings
from lora_train.app.watching import Watch
from lora_train.core.config import TrainSettings
from lora_train.core.errors import DatasetError, JobError, TrainToolsError, WorkspaceError
from lora_train.core.families import CheckpointFacts
from lora_train.core.files import relative_path
from lora_train.core.health import Finding, HealthReport
from lora_train.core.jobs import JobFolder, JobStatus
from lora_train.core.specs import CheckSpec
from lora_train.core.workspace import Version, Workspace
from lora_train.launch import launcher

if TYPE_CHECKING:
    from lora_train.data.buckets import Size
    from lora_train.data.dataset import Dataset

_MOST_COUNTED = 20_000
"""Captions whose tokens are remembered."""


class Health:
    """`count_tokens` gives the tokens of a caption; without it, long captions are not found."""

    def __init__(
        self,
        workspace: Workspace,
        datasets: Datasets,
        watch: Watch,
        count_tokens: Callable[[str], int] | None = None,
    ) -> None:
        self._workspace = workspace
        self._datasets = datasets
        self._watch = watch
        self._count_tokens = lru_cache(maxsize=_MOST_COUNTED)(count_tokens) if count_tokens is not None else None
        self._reports: Remembered[HealthReport] = Remembered()
        self._workers: dict[Path, launcher.Worker] = {}

    def report(self, project: str, version: str) -> HealthReport:
        """What is good and bad about the trained set, as far as its pictures were looked at; none is opened here.

        Raises WorkspaceError for an unknown version.
        """
        from lora_train.data.facts import facts_stamp, has_imagehash, read_facts
        from lora_train.data.health import Known, check
        from lora_train.data.manifest import read_manifest

        found = self._workspace.find_version(project, version)
        settings, concept = self._datasets.readable(train_settings(found)), found.project.info().name
        dataset = self._dataset(found)
        dataset_dir = found.path / "dataset"

        def make() -> HealthReport:
            buckets, problem = _buckets(dataset, settings)
            report = check(
                Known(
                    dataset=dataset,
                    buckets=buckets,
                    manifest=read_manifest(dataset_dir),
                    facts=read_facts(dataset_dir),
                    token_counts=self._token_counts(dataset, settings, concept),
                    settings=settings,
                    concept=concept,
                    has_imagehash=has_imagehash(),
                )
            )
            if problem is not None:
                report.findings.insert(0, problem)
            return report

        # The manifest is a file of the set: where it has changed, the set was read again.
        known_by = (settings, concept, facts_or_usual(settings), facts_stamp(dataset_dir))
        report = self._reports.of(dataset, known_by, make)
        return msgspec.structs.replace(report, check=self._status(found))

    def start(self, project: str, version: str) -> str:
        """Begin to look at the pictures that are not known yet, in a process of its own; the job's id.

        Raises WorkspaceError for an unknown version, DatasetError where there are no pictures, JobError while the
        pictures are being looked at or made anew.
        """
        found = self._workspace.find_version(project, version)
        self._datasets.scan(found)
        with self._workspace.changing():
            if self._datasets.is_updating(found):
                raise JobError("The dataset is being updated: wait a moment.")
            if self._is_checking(found):
                raise JobError("The pictures are being looked at already.")
            job = JobFolder(self._workspace.new_job_dir("check"))
            job.create(CheckSpec(dataset=relative_path(found.path / "dataset", job.path)))
            for ended in self._workers.values():
                ended.poll()  # lets the system forget it
            self._workers[job.path] = launcher.start_worker(job)
            job_id = self._workspace.id_of(job.path)
            with found.changing() as info:
                info.check_job = job_id
        return job_id

    def _dataset(self, version: Version) -> Dataset:
        """The trained set; an empty one with what is wrong where no picture can be used."""
        from lora_train.data.dataset import Dataset

        try:
            return self._datasets.scan(version)
        except DatasetError as error:
            told = error.message.splitlines()[1:] if version.dataset_dir.is_dir() else []
            return Dataset(version.dataset_dir, (), tuple(told))

    def _token_counts(self, dataset: Dataset, settings: TrainSettings, concept: str) -> dict[str, int]:
        """Of the captions as they are trained, trigger word included and common tags left out."""
        from lora_train.data.trained_text import plain_texts

        if self._count_tokens is None:
            return {}
        texts = plain_texts(dataset, settings, concept)
        return {
            picture.path: self._count_tokens(text)
            for picture, text in zip(dataset.pictures, texts, strict=True)
            if not picture.is_regularisation
        }

    def _is_checking(self, version: Version) -> bool:
        job = self._job(version)
        if job is None:
            return False
        worker = self._workers.get(job.path)
        state = self._watch.status(job, worker).state
        return state == "running" or (state == "waiting" and launcher.is_coming_up(job, worker))

    def _status(self, version: Version) -> JobStatus | None:
        job = self._job(version)
        return None if job is None else self._watch.status(job, self._workers.get(job.path))

    def _job(self, version: Version) -> JobFolder | None:
        job_id = version.info().check_job
        try:
            return JobFolder(self._workspace.find_job(job_id)) if job_id else None
        except WorkspaceError:
            return None


def _buckets(dataset: Dataset, settings: TrainSettings) -> tuple[list[Size], Finding | None]:
    """The size that each picture is trained at; its own and a finding where the settings give none."""
    try:
        facts = check_base_model(settings)
    except TrainToolsError:  # told beside the base model; most are like this one
        facts = CheckpointFacts("sd1")
    try:
        return choose_buckets(dataset, settings, facts), None
    except DatasetError as error:
        finding = Finding(
            kind="no_buckets",
            level="error",
            title="The pictures can't be trained at this resolution.",
            remedy="Choose another one under Train; nought is the base model's own.",
            sentences=(error.message,),
        )
        return [(picture.width_px, picture.height_px) for picture in dataset.pictures], finding
