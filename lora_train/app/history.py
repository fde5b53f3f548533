"""The history of trainings: repeated exactly, compared, their settings taken again."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lora_train import publish
from lora_train.app.datasets import Datasets
from lora_train.app.history_snapshot import Comparison, HistoryNote
from lora_train.app.in_use import InUse
from lora_train.app.made_from import file_facts, note_origin, picture_facts
from lora_train.app.planning import check_disk, check_training
from lora_train.app.version_settings import kept_settings
from lora_train.app.watching import Watch
from lora_train.core.assets import resolve_base_model
from lora_train.core.config import TrainSettings
from lora_train.core.errors import DatasetError, JobError, ModelError, WorkspaceError
from lora_train.core.history import (
    FileFacts,
    Versions,
    package_versions,
    platform_name,
    processor_name,
    read_made_from,
    read_versions,
)
from lora_train.core.history_differences import (
    SettingDifference,
    base_differences,
    memory_differences,
    picture_differences,
    setting_differences,
    told,
    version_differences,
)
from lora_train.core.host import Host
from lora_train.core.jobs import JobFolder
from lora_train.core.memory import MemoryFacts, read_memory, write_memory
from lora_train.core.original import finished_train
from lora_train.core.settings import check_settings
from lora_train.core.specs import TrainSpec
from lora_train.core.tensorfiles import file_sha256
from lora_train.core.workspace import SettingsBefore, Version, Workspace
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from lora_train.data.dataset import Dataset

_MOST_TOLD = 12


class History:
    def __init__(
        self, workspace: Workspace, host: Host, jobs: JobQueue, datasets: Datasets, in_use: InUse, watch: Watch
    ) -> None:
        self._workspace = workspace
        self._host = host
        self._jobs = jobs
        self._datasets = datasets
        self._in_use = in_use
        self._watch = watch

    def note(self, job: str, others: list[tuple[str, str]]) -> HistoryNote:
        """What can be done with a training's history. Raises WorkspaceError or JobError for what is no training."""
        folder = JobFolder(self._workspace.find_job(job))
        if finished_train(folder.path) is not None:
            return HistoryNote(others=others, is_original=True)
        before = self._version(job).info().settings_before
        return HistoryNote(
            others=others,
            is_noted=read_made_from(folder.path) is not None,
            versions=self._other_versions(folder),
            can_undo=before is not None and before.job == job,
        )

    # --- repeated ---

    def repeat(self, job: str, anyway: bool = False) -> str:
        """Queue a training with all that made this one; the new job's id. Only name and time differ.

        On a CPU its tensors are the same bytes; on CUDA with deterministic kernels in both, else nearly the same.
        Raises JobError where the training did not note what it was made from, or packages or the processor are others
        now (unless `anyway`), DatasetError where pictures or captions are, ModelError where the base model is.
        """
        from lora_train.data.repeats import with_folder_repeats

        folder, spec = self._train(job)
        version = self._version(job)
        self._require_same_files(folder, spec)
        differences = self._other_versions(folder)
        if differences and not anyway:
            raise JobError(
                "What computes is another than it was: "
                + _listed(f"{row.label} {row.before} → {row.after}" for row in differences),
                "Repeat anyway: the result will be nearly the same, but perhaps not the same bytes.",
            )
        facts = check_training(spec.settings)
        check_disk(self._workspace.root, spec.settings, facts)
        with self._workspace.changing():
            self._in_use.require_not_updating(version)
            if self._in_use.is_drawing(version):
                raise JobError("Regularisation pictures are being drawn.", "Wait for the end, or stop it.")
            dataset = with_folder_repeats(self._datasets.of_train(folder, spec), spec.folder_repeats)
            self._require_same_pictures(dataset, folder, spec)
            again = self._copy(dataset, folder, spec, version)
            self._jobs.add(again)
        return again

    def _copy(self, dataset: Dataset, folder: JobFolder, spec: TrainSpec, version: Version) -> str:
        root = self._host.lora_root()
        taken = publish.stems_in(root) if root is not None and root.is_dir() else ()
        stem = self._workspace.free_stem(version.stem(), taken)
        again = JobFolder(version.trains_dir / stem)
        again.create(msgspec.structs.replace(spec, name=stem, created=time.time()))
        if (memory := read_memory(folder.path)) is not None:  # another plan rounds otherwise
            write_memory(again.path, MemoryFacts(plan=memory.plan))
        note_origin(again, dataset)
        return self._workspace.id_of(again.path)

    def _require_same_files(self, folder: JobFolder, spec: TrainSpec) -> None:
        made = read_made_from(folder.path)
        if made is None:
            raise JobError(
                f"{spec.name} did not note what it was made from.",
                "It was trained by an earlier release: Use these settings, and begin a new training.",
            )
        check_training(spec.settings)
        versions = read_versions(folder.path) or Versions()
        settings = spec.settings
        _require_same_file(
            "base model", resolve_base_model(settings.base_model), made.base_model, versions.base_model_sha256
        )
        if settings.vae and made.vae is not None:
            _require_same_file("VAE", Path(settings.vae), made.vae, versions.vae_sha256)
        if settings.continue_from and made.continue_from is not None:
            _require_same_file("LoRA to continue from", Path(settings.continue_from), made.continue_from, "")

    def _require_same_pictures(self, dataset: Dataset, folder: JobFolder, spec: TrainSpec) -> None:
        made = read_made_from(folder.path)
        assert made is not None
        now = picture_facts(dataset, spec.held_out)
        differences = picture_differences(made.pictures, now)
        if differences:
            raise DatasetError(
                "The dataset is another than it was: " + _listed(map(told, differences)),
                "Put it back as it was, or begin a new training with the present pictures and captions.",
            )

    def _other_versions(self, folder: JobFolder) -> list[SettingDifference]:
        before = read_versions(folder.path)
        if before is None:
            return []
        now = Versions(packages=package_versions(), platform=platform_name(), processor=processor_name())
        return version_differences(before, now)

    # --- compared ---

    def compare(self, job_a: str, job_b: str) -> Comparison:
        """How the second training differs from the first. Raises WorkspaceError or JobError for what is none."""
        paths = [self._workspace.find_job(job) for job in (job_a, job_b)]
        comparison = Comparison(before=paths[0].name, after=paths[1].name)
        for path in paths:
            if finished_train(path) is not None:
                comparison.unknown.append(
                    f"{path.name} was trained by the original extension: of its pictures, captions and settings "
                    "nothing is known."
                )
        if comparison.unknown:
            return comparison
        (first, one), (second, other) = self._train(job_a), self._train(job_b)
        comparison.settings = setting_differences(one.settings, other.settings)
        made = [read_made_from(folder.path) for folder in (first, second)]
        versions = [read_versions(folder.path) for folder in (first, second)]
        comparison.unknown += [
            f"{path.name} did not note its pictures and captions: an earlier release trained it."
            for path, record in zip(paths, made, strict=True)
            if record is None
        ]
        comparison.unknown += [
            f"{path.name} did not note its versions: it has not begun, or an earlier release trained it."
            for path, record in zip(paths, versions, strict=True)
            if record is None
        ]
        if made[0] is not None and made[1] is not None:
            comparison.pictures = picture_differences(made[0].pictures, made[1].pictures)
        if versions[0] is not None and versions[1] is not None:
            comparison.versions = version_differences(versions[0], versions[1])
            comparison.base = base_differences(versions[0], versions[1])
        memory = [read_memory(folder.path) for folder in (first, second)]
        if memory[0] is not None and memory[1] is not None:
            comparison.versions += memory_differences(memory[0].plan, memory[1].plan)
        return comparison

    # --- settings ---

    def use_settings(self, job: str) -> None:
        """Make a training's settings those of its version; `undo_settings` brings the present ones back.

        The preset stays the version's only where all that it gave is still so. Raises JobError or WorkspaceError for
        what is no training of ours.
        """
        _, spec = self._train(job)
        with self._version(job).changing() as info:
            info.settings_before = SettingsBefore(job, info.train, info.preset)
            info.train = kept_settings(spec.settings, info.train)
            if info.preset is not None and not info.preset.after.items() <= info.train.items():
                info.preset = None

    def undo_settings(self, job: str) -> None:
        """Put back what `use_settings` of this training replaced. Raises WorkspaceError where that is not known."""
        with self._version(job).changing() as info:
            before = info.settings_before
            if before is None or before.job != job:
                raise WorkspaceError("There are no settings from before to put back.", "Refresh the page.")
            info.train = kept_settings(check_settings(before.train, TrainSettings())[0], info.train)
            info.preset, info.settings_before = before.preset, None

    # --- details ---

    def _train(self, job: str) -> tuple[JobFolder, TrainSpec]:
        folder = JobFolder(self._workspace.find_job(job))
        if finished_train(folder.path) is not None:
            raise JobError(
                f"{folder.path.name} was trained by the original extension, which noted neither settings nor pictures.",
                "Begin a new training.",
            )
        spec = self._watch.spec(folder)
        if not isinstance(spec, TrainSpec):
            raise JobError(f"{folder.path.name} is no training.")
        return folder, spec

    def _version(self, job: str) -> Version:
        return self._workspace.version_of(self._workspace.find_job(job))


def _require_same_file(what: str, path: Path, before: FileFacts, sha256: str) -> None:
    """Raise ModelError where a file is another than it was: by its hash where it was touched and that is known."""
    now = file_facts(path)
    if (now.size_bytes, now.mtime_ns) == (before.size_bytes, before.mtime_ns):
        return
    if now.size_bytes == before.size_bytes and sha256 and _sha256(path, now.mtime_ns, now.size_bytes) == sha256:
        return
    raise ModelError(f"The {what}, {path.name}, is another file than it was.", "Put the one back that was used.")


@lru_cache(maxsize=16)
def _sha256(path: Path, mtime_ns: int, size_bytes: int) -> str:  # noqa: ARG001
    return file_sha256(path)


def _listed(sentences: Iterable[str]) -> str:
    parts = [*sentences]
    more = [f"and {len(parts) - _MOST_TOLD} more"] if len(parts) > _MOST_TOLD else []
    return "; ".join([*parts[:_MOST_TOLD], *more]) + "."
