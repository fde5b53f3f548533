"""The regularisation pictures of a version: listed, drawn by the base model, added, removed, and what they cost."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from lora_train.app.datasets import Datasets
from lora_train.app.in_use import InUse
from lora_train.app.incoming import as_files
from lora_train.app.paces import expected_s_per_picture
from lora_train.app.planning import (
    count_steps,
    make_plan,
    require_room_for_pictures,
    with_absolute_paths,
    with_chosen_repeats,
    with_threads,
)
from lora_train.app.remembered import Remembered
from lora_train.app.snapshot import RegularisationClass, RegularisationForecast, RegularisationSnapshot, Undo
from lora_train.app.training import Training
from lora_train.app.version_settings import train_settings
from lora_train.app.watching import Watch
from lora_train.core import presets
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, WorkspaceError
from lora_train.core.families import CheckpointFacts
from lora_train.core.files import relative_path
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import RegularisationSpec
from lora_train.core.workspace import Version, Workspace
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from lora_train.data.dataset import Dataset, Picture
    from lora_train.data.epochs import EpochPlanner

MOST_AT_ONCE = 1000
_CLASS = "class"
"""Of pictures to come whose class was not told: the steps hardly depend on it."""


class _Effect(NamedTuple):
    """What regularisation pictures do in an epoch, and the steps of a training without them."""

    training_views: int
    used_per_epoch: int
    total_steps_without: int


class Regularisation:
    def __init__(
        self,
        workspace: Workspace,
        jobs: JobQueue,
        datasets: Datasets,
        training: Training,
        in_use: InUse,
        watch: Watch,
    ) -> None:
        self._workspace = workspace
        self._jobs = jobs
        self._datasets = datasets
        self._training = training
        self._in_use = in_use
        self._watch = watch
        self._effects: Remembered[_Effect] = Remembered()
        self._totals: Remembered[int] = Remembered()

    # --- what is there ---

    def classes(self, project: str, version: str) -> list[RegularisationClass]:
        """The class folders, in the order of their names. Raises WorkspaceError for an unknown version."""
        from lora_train.data.dataset import regularisation_folders

        found = self._workspace.find_version(project, version)
        return [
            RegularisationClass(folder.folder, folder.name, folder.repeats, folder.count)
            for folder in regularisation_folders(found.dataset_dir)
        ]

    def snapshot(self, project: str, version: str) -> RegularisationSnapshot:
        """The class folders and the last job that drew. Raises WorkspaceError for an unknown version."""
        found = self._workspace.find_version(project, version)
        snapshot = RegularisationSnapshot(self.classes(project, version), is_drawing=self._in_use.is_drawing(found))
        with suppress(WorkspaceError):  # the job's folder is gone
            if job := found.info().regularisation_job:
                snapshot.status = self._watch.status(JobFolder(self._workspace.find_job(job)))
                snapshot.job = job
        return snapshot

    def estimate(self, project: str, version: str, count: int, class_name: str = "") -> RegularisationForecast:
        """What the regularisation pictures do to the steps, and what `count` more of a class would do.

        Raises WorkspaceError for an unknown version or a class that can't be a folder; everything else that is wrong
        stands in `problems`.
        """
        from lora_train.data.dataset import with_regularisation

        found = self._workspace.find_version(project, version)
        settings = train_settings(found)
        problems = _check_count(count) if count else []
        told = self._training.forecast(project, version)
        facts = self._training.base_models.check(settings)[1]
        size_px = _size_px(settings, facts)
        forecast = RegularisationForecast(count=count, size_px=size_px, problems=[*problems, *told.problems])
        forecast.pictures, forecast.total_steps = told.regularisation_pictures, told.total_steps
        s_per_picture = expected_s_per_picture(self._workspace.root, with_absolute_paths(settings))
        forecast.seconds = None if s_per_picture is None else s_per_picture * count
        if problems or not told.total_steps:
            return forecast
        facts = facts or CheckpointFacts("sd1")
        dataset = self._datasets.numbered(found)
        present = [picture for picture in dataset.pictures if picture.is_regularisation]

        def plan(pictures: Dataset) -> EpochPlanner:
            return make_plan(with_chosen_repeats(pictures, settings, facts), settings, facts, "")

        def effect() -> _Effect:
            shown = list(plan(dataset).shown(0))
            regular = [index for index in shown if dataset.pictures[index].is_regularisation]
            without = count_steps(plan(with_regularisation(dataset, ())), settings)
            return _Effect(len(shown) - len(regular), len(set(regular)), without)

        def total() -> int:
            more = _pictures_to_come(found, class_name or _CLASS, count, size_px)
            return count_steps(plan(with_regularisation(dataset, [*present, *more])), settings)

        forecast.training_views, forecast.used_per_epoch, forecast.total_steps_without = self._effects.of(
            dataset, (settings, facts), effect
        )
        key = settings, facts, count, class_name, size_px
        forecast.total_steps_with = self._totals.of(dataset, key, total)
        return forecast

    # --- what is done with it ---

    def generate(
        self, project: str, version: str, class_name: str, prompt: str, negative_prompt: str, count: int
    ) -> str:
        """Queue a job that draws `count` pictures of a class with the base model of the settings; its id.

        Raises ConfigError with all that is wrong with what was typed, WorkspaceError for an unknown version, a class
        that can't be a folder, or a disk that is too full, JobError while the pictures are needed or updated, or
        others are drawn already.
        """
        from lora_train.data.regularisation import class_dir

        found = self._workspace.find_version(project, version)
        settings = msgspec.structs.replace(train_settings(found), continue_from="")  # the base model draws alone
        prompt, negative_prompt = (" ".join(text.replace("\x00", "").split()) for text in (prompt, negative_prompt))
        problems, facts = self._training.base_models.check(settings)
        problems += [] if prompt else ["Type a class prompt first, such as: a photo of a person."]
        problems += _check_count(count)
        if problems:
            raise ConfigError(problems)
        folder = class_dir(found.dataset_dir, class_name)
        require_room_for_pictures(self._workspace.root, count, _size_px(settings, facts) ** 2)
        with self._workspace.changing():
            self._require_unused(found)
            job = JobFolder(self._workspace.new_job_dir("regularisation"))
            job.create(
                RegularisationSpec(
                    folder=relative_path(folder, job.path),
                    prompt=prompt,
                    negative_prompt=negative_prompt,
                    count=count,
                    settings=with_threads(with_absolute_paths(settings), facts),
                )
            )
            job_id = self._workspace.id_of(job.path)
            with found.changing() as info:
                info.regularisation_job = job_id
            self._jobs.add(job_id)
        return job_id

    def add(self, project: str, version: str, class_name: str, files: Sequence[tuple[str, Path]]) -> list[str]:
        """Copy a person's own pictures of a class and their captions (name as uploaded, file) to its folder.

        One sentence is returned for everything that can't be used. Raises WorkspaceError for an unknown version or a
        class that can't be a folder, JobError while a training needs the pictures, DatasetError when the folder can't
        be written.
        """
        from lora_train.data.regularisation import class_dir
        from lora_train.data.uploads import keep_uploads

        found = self._workspace.find_version(project, version)
        self._datasets.require_unused(found)
        folder = class_dir(found.dataset_dir, class_name)
        try:
            return keep_uploads(files, folder, self._workspace.trash_dir, self._receiving(project, version))
        finally:
            with suppress(OSError, WorkspaceError), self._workspace.changing():
                folder.rmdir()  # where nothing came in

    @contextmanager
    def _receiving(self, project: str, version: str) -> Generator[None, None, None]:
        """The moment in which pictures that came in get their places."""
        with self._workspace.changing():
            self._datasets.require_unused(self._workspace.find_version(project, version))
            yield

    def add_bytes(self, project: str, version: str, class_name: str, files: Sequence[tuple[str, bytes]]) -> list[str]:
        """`add` for files that came over the network."""
        with as_files(files, self._workspace.root) as paths:
            return self.add(project, version, class_name, paths)

    def remove_class(self, project: str, version: str, folder: str) -> Undo:
        """Move a class folder (as `RegularisationClass.folder`) to the trash.

        Raises WorkspaceError for an unknown one, JobError while the pictures are needed or drawn.
        """
        found = self._workspace.find_version(project, version)
        if folder not in [known.folder for known in self.classes(project, version)]:
            raise WorkspaceError(f"There are no regularisation pictures in {folder!r}.", "Refresh the page.")
        with self._workspace.changing():
            self._require_unused(found)
            path = Path(os.path.normpath(found.dataset_dir / folder))
            is_parent = path.name.casefold() == "reg"  # of class folders, which stay
            paths = [own for own in sorted(path.iterdir()) if own.is_file()] if is_parent else [path]
            return Undo(path.name, self._workspace.trash.put(path.name, paths))

    def _require_unused(self, version: Version) -> None:
        """Raise JobError while a training needs the version's pictures, or another job changes them."""
        self._in_use.require_not_updating(version)
        self._datasets.require_unused(version)
        self._in_use.require_not_drawing(version)


def _check_count(count: int) -> list[str]:
    is_right = 1 <= count <= MOST_AT_ONCE
    return [] if is_right else [f"Number of pictures: {count} is not a whole number from 1 to {MOST_AT_ONCE}."]


def _size_px(settings: TrainSettings, facts: CheckpointFacts | None) -> int:
    """Width and height of the pictures that are drawn."""
    return settings.preview_size_px or presets.native_resolution_px(facts)


def _pictures_to_come(version: Version, class_name: str, count: int, size_px: int) -> list[Picture]:
    """Pictures as the job will draw them, for the plan; there are no files yet."""
    from lora_train.data.dataset import Picture, regularisation_folders
    from lora_train.data.regularisation import class_dir, file_stem, free_numbers

    path = class_dir(version.dataset_dir, class_name)
    folder = f"../reg/{path.name}"
    repeats = next((own.repeats for own in regularisation_folders(version.dataset_dir) if own.folder == folder), 1)
    return [
        Picture(
            path=f"{folder}/{file_stem(number)}.png",
            folder=folder,
            concept=class_name,
            repeats=repeats,
            is_regularisation=True,
            caption="",
            width_px=size_px,
            height_px=size_px,
            digest="",
        )
        for number in free_numbers(path, count)
    ]
