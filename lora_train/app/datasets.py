"""The pictures of a version: taken in, shown, captioned, removed, and made into the trained set."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from lora_train.app.caption_jobs import without_host
from lora_train.app.caption_writing import EditTitle, unknown_picture, write_step
from lora_train.app.incoming import as_files
from lora_train.app.planning import facts_or_usual, with_chosen_repeats
from lora_train.app.remembered import Remembered
from lora_train.app.scans import Scans, belongings_of, stamp_of
from lora_train.app.snapshot import DatasetSnapshot, PictureEntry, Undo
from lora_train.app.thumbnails import Thumbnails
from lora_train.app.version_settings import dataset_settings, fallback_caption, known_settings, train_settings
from lora_train.app.watching import Watch
from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import ConfigError, DatasetError, JobError, WorkspaceError
from lora_train.core.files import relative_path
from lora_train.core.host import Host
from lora_train.core.jobs import JobFolder, JobStatus
from lora_train.core.settings import check_settings
from lora_train.core.specs import CaptionPlan, DatasetSpec, TrainSpec
from lora_train.core.workspace import Version, Workspace
from lora_train.data.caption_edits import clean_caption
from lora_train.launch import launcher
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from lora_train.data.dataset import Dataset, Picture

_READS_NO_PICTURES = ("training", "drawing previews")
"""Phases of a training in which its pictures may change."""


class Captions(Protocol):
    """Who writes captions, for *Update Dataset* (`captioning.Captioning`)."""

    def plan_for_update(self, version: Version) -> CaptionPlan:
        """Raises TrainToolsError when what is chosen can't be used."""
        ...

    def update_began(self, version: Version, job: JobFolder, worker: launcher.Worker, plan: CaptionPlan) -> None:
        """The worker does all of the plan but the host's part."""
        ...

    def is_busy(self, version: Version) -> bool:
        """Whether captions are being written, or will be when the update has ended."""
        ...


class Datasets:
    captions: Captions
    """Set by the App."""

    def __init__(self, workspace: Workspace, host: Host, jobs: JobQueue, watch: Watch) -> None:
        self._workspace = workspace
        self._host = host
        self._jobs = jobs
        self._watch = watch
        self._scans = Scans()
        self._updates: dict[Path, launcher.Worker] = {}
        self._thumbnails = Thumbnails()
        self._chosen: Remembered[Dataset] = Remembered()
        self._entries: Remembered[list[PictureEntry]] = Remembered()

    # --- what comes in ---

    def add(self, project: str, version: str, files: Sequence[tuple[str, Path]]) -> list[str]:
        """Copy pictures and their caption files (name as uploaded, file) to the version's originals.

        Folders and zip archives give what is in them. One sentence is returned for everything that can't be used.
        Raises WorkspaceError for an unknown version, DatasetError when its folder can't be written.
        """
        from lora_train.data.uploads import keep_uploads

        origin_dir = self._workspace.find_version(project, version).origin_dir
        return keep_uploads(files, origin_dir, self._workspace.trash_dir, self._receiving(project, version))

    @contextmanager
    def _receiving(self, project: str, version: str) -> Generator[None, None, None]:
        """The moment in which pictures that came in get their places; the version may be gone by then."""
        with self._workspace.changing():
            self._workspace.find_version(project, version)
            yield

    def add_bytes(self, project: str, version: str, files: Sequence[tuple[str, bytes]]) -> list[str]:
        """`add` for files that came over the network."""
        with as_files(files, self._workspace.root) as paths:
            return self.add(project, version, paths)

    def replace(self, project: str, version: str, file: str, name: str, path: Path) -> Undo:
        """Put a new picture (`name` as told, file) in the place of one, whose captions stay; the old one to the trash.

        `file` is as in `remove`. A trained picture stays until *Update Dataset*, and its new original waits; one that
        has no original is replaced itself. Raises WorkspaceError for an unknown one, DatasetError for what is no
        picture, JobError while an update or a training needs it.
        """
        from lora_train.data.replacing import replace_picture

        found = self._workspace.find_version(project, version)
        with self._workspace.changing():
            self._require_still(found)
            old = self._original(found, file)
            return Undo(old.name, replace_picture(old, name, path, self._workspace.trash))

    def replace_bytes(self, project: str, version: str, file: str, name: str, content: bytes) -> Undo:
        """`replace` by a file that came over the network."""
        with as_files([(name, content)], self._workspace.root) as [(_, path)]:
            return self.replace(project, version, file, name, path)

    # --- what is there ---

    def snapshot(self, project: str, version: str) -> DatasetSnapshot:
        """The pictures that are trained and those that wait. Raises WorkspaceError for an unknown version."""
        found = self._workspace.find_version(project, version)
        snapshot = DatasetSnapshot(update=self._update_status(found))
        try:
            dataset = self.scan(found)
        except DatasetError as error:
            if found.dataset_dir.is_dir():
                snapshot.problems = error.message.splitlines()[
                    1:
                ]  # the page says what to do where there are no pictures
        else:
            snapshot.problems = list(dataset.problems)
            snapshot.pictures = list(self._entries.of(dataset, None, lambda: _entries(dataset)))
            folders = dict.fromkeys(picture.folder for picture in dataset.pictures)
            snapshot.folders = [os.path.normpath(found.dataset_dir / folder) for folder in folders]
        snapshot.pictures += self._scans.waiting(found)
        return snapshot

    def scan(self, version: Version, settings: TrainSettings | None = None) -> Dataset:
        """The trained set with the repeats that are trained by the version's settings, or by other ones; read again
        only when a file of it has changed.

        Raises DatasetError as `scan_dataset`.
        """
        settings = self.readable(settings or train_settings(version))
        numbered = self._scans.trained(version, settings.repeats)
        facts = facts_or_usual(settings)
        return self._chosen.of(numbered, (settings, facts), lambda: with_chosen_repeats(numbered, settings, facts))

    def glancing(self) -> AbstractContextManager[None]:
        """What this thread shows in here may be a moment old where there are very many files."""
        return self._scans.glancing()

    def readable(self, settings: TrainSettings) -> TrainSettings:
        """Without a base model that is none of the list where the page is open to others: it reads no such path."""
        if settings.base_model == "demo" or self._host.takes_paths():
            return settings
        is_listed = any(choice.path == settings.base_model for choice in self._host.base_models())
        return settings if is_listed else msgspec.structs.replace(settings, base_model="")

    def numbered(self, version: Version) -> Dataset:
        """`scan` with the numbers of its folders where repeats are chosen for the steps aimed at."""
        return self._scans.trained(version)

    def of_train(self, train: JobFolder, spec: TrainSpec) -> Dataset:
        """The set of a training as it is now, with the numbers of its folders or the repeats that were typed; of a
        version's read as `scan` does. Raises DatasetError as `scan_dataset`.
        """
        from lora_train.data.dataset import scan_trained_set

        root = (train.path / spec.dataset).resolve()
        try:
            version = self._workspace.version_of(train.path)
        except (WorkspaceError, IndexError):  # a training that lies elsewhere
            version = None
        if version is not None and version.dataset_dir.resolve() == root:
            return self._scans.trained(version, spec.settings.repeats)
        return scan_trained_set(root, repeats=spec.settings.repeats)

    def picture_path(self, project: str, version: str, file: str, is_waiting: bool) -> Path:
        """The file of a picture. Raises WorkspaceError for one that is not in the dataset."""
        return self._picture(self._workspace.find_version(project, version), file, is_waiting)

    def thumbnail(self, project: str, version: str, file: str, is_waiting: bool) -> bytes:
        """A JPEG of the picture, at most 320 pixels a side. Raises WorkspaceError, or DatasetError for damage."""
        with self.glancing():
            path = self.picture_path(project, version, file, is_waiting)
        return self._thumbnails.of(path)

    def originals(self, project: str, version: str) -> dict[str, tuple[int, int]]:
        """The uploaded files: name (of a mask `mask/NAME.png`) -> time of change in ns and size.

        Raises WorkspaceError for an unknown version.
        """
        origin_dir = self._workspace.find_version(project, version).origin_dir
        stamps = stamp_of(origin_dir)
        return {Path(path).relative_to(origin_dir).as_posix(): (changed, size) for path, changed, size in stamps}

    def named(self, project: str, version: str, names: Sequence[str]) -> list[str]:
        """The pictures of the trained set that a person means: as they are listed, or by the file name alone.

        Raises WorkspaceError for an unknown version or picture, and for a file name that several pictures have.
        """
        known = [picture.path for picture in self.pictures(self._workspace.find_version(project, version))]
        return [_meant(name, known) for name in names]

    # --- what is done with it ---

    def start_update(self, project: str, version: str) -> str:
        """Begin to make the trained set from the originals, in a process of its own; the job's id.

        Raises JobError while the last update runs, captions are written, or a training needs the set as it is,
        ConfigError for sizes that can't be, ModelError for a chosen captioner that can't be used.
        """
        found = self._workspace.find_version(project, version)
        settings, problems = check_settings(known_settings(found.info().dataset, DatasetSettings), DatasetSettings())
        if problems:
            raise ConfigError(problems)
        name, train = found.project.info().name, train_settings(found)
        with self._workspace.changing():
            self.require_unused(found)
            if self._is_update_running(found):
                raise JobError("The dataset is being updated already.")
            plan = self.captions.plan_for_update(found)
            job = JobFolder(self._workspace.new_job_dir("dataset"))
            job.create(
                DatasetSpec(
                    dataset=relative_path(found.path / "dataset", job.path),
                    trash=relative_path(self._workspace.trash_dir, job.path),
                    settings=settings,
                    project=name,
                    concept=fallback_caption(found),
                    repeats=train.repeats,
                    captions=without_host(plan),
                )
            )
            for ended in self._updates.values():
                ended.poll()  # lets the system forget it
            worker = self._updates[job.path] = launcher.start_worker(job)
            job_id = self._workspace.id_of(job.path)
            with found.changing() as info:
                info.update_job = job_id
            self.captions.update_began(found, job, worker, plan)
        return job_id

    def needs_captions(self, project: str, version: str) -> bool:
        """Whether the next *Update Dataset* has something to caption: what waits, and brings no caption of its own.

        Raises WorkspaceError for an unknown version.
        """
        found = self._workspace.find_version(project, version)
        waiting = self._scans.waiting(found)
        return any(not entry.caption for entry in waiting) or (
            bool(waiting) and dataset_settings(found).caption_action != "copy"
        )

    def is_updating(self, version: Version) -> bool:
        """Whether the last update, or the writing of captions, has not come to its end."""
        return self._is_update_running(version) or self.captions.is_busy(version)

    def _is_update_running(self, version: Version) -> bool:
        job = self._update_job(version)
        if job is None:
            return False
        worker = self._updates.get(job.path)
        state = self._watch.status(job, worker).state
        return state == "running" or (state == "waiting" and launcher.is_coming_up(job, worker))

    def stop_update(self, project: str, version: str) -> None:
        """Ask the running update to stop; the old set stays. Raises JobError when none runs."""
        found = self._workspace.find_version(project, version)
        job = self._update_job(found)
        if job is None or not self._is_update_running(found):
            raise JobError("No update is running.")
        job.request("stop")

    def set_caption(self, project: str, version: str, file: str, caption: str) -> None:
        """Write a picture's caption. Raises WorkspaceError for an unknown one, JobError while a job needs it."""
        found = self._workspace.find_version(project, version)
        with self.changing_captions(found) as pictures:
            captions = {picture.path: picture.caption for picture in pictures}
            if file not in captions:
                raise unknown_picture(file)
            write_step(found, EditTitle("Caption", file), captions, {file: clean_caption(caption)})

    @contextmanager
    def changing_captions(self, version: Version) -> Generator[tuple[Picture, ...], None, None]:
        """The pictures of the trained set, to write other captions; nobody else changes the set meanwhile.

        Raises JobError while a training or an update needs them as they are, or others are being written.
        """
        with self._workspace.changing():
            self._require_still(version)
            try:
                yield self.pictures(version)
            finally:
                self._scans.forget_glances()

    def pictures(self, version: Version) -> tuple[Picture, ...]:
        """Those of the trained set; none where there is no set yet."""
        try:
            return self.scan(version).pictures
        except DatasetError:
            return ()

    def remove(self, project: str, version: str, file: str) -> Undo:
        """Move a picture, its flipped copy, captions and masks to the trash, from the trained set and the originals.

        `file` is relative to the trained set or, for one that waits, to the originals. Raises WorkspaceError for an
        unknown one, JobError while an update or a training needs it.
        """
        from lora_train.data.manifest import read_manifest
        from lora_train.data.trained_set import origin_names

        found = self._workspace.find_version(project, version)
        dataset_dir = found.path / "dataset"
        with self._workspace.changing():
            self._require_still(found)
            names = origin_names(dataset_dir, read_manifest(dataset_dir))
            try:
                pictures = [self._picture(found, file, is_waiting=False)]
                name = names.get(file, "")
            except WorkspaceError:
                pictures, name = [], self._picture(found, file, is_waiting=True).name
            if name:
                pictures += [found.dataset_dir / other for other, its in names.items() if its == name and other != file]
                pictures += [path for path in [found.origin_dir / name] if path.is_file()]
            what = name or pictures[0].name
            return Undo(what, self._workspace.trash.put(what, [*pictures, *belongings_of(pictures)]))

    def _require_still(self, version: Version) -> None:
        """Raise JobError while a training, an update or a captioning needs the pictures as they are."""
        self.require_unused(version)
        if self.is_updating(version):
            raise JobError("The dataset is being updated or captioned already.", "Wait for its end.")

    def require_unused(self, version: Version) -> None:
        """Raise JobError while a training of the version waits or reads its pictures."""
        for path in version.trains_dir.iterdir() if version.trains_dir.is_dir() else ():
            place = self._jobs.place_of(self._workspace.id_of(path))
            if place is None:
                continue
            status = self._watch.status(JobFolder(path))
            if place > 0 or status.state != "running" or status.phase not in _READS_NO_PICTURES:
                raise JobError(
                    f"The training {path.name} waits or begins, and needs the pictures as they are.",
                    "Change them when its steps run, or take it out of the queue first.",
                )

    # --- details ---

    def _picture(self, version: Version, file: str, is_waiting: bool) -> Path:
        """Chosen from the list of what is there: no name leads out of the dataset."""
        if is_waiting:
            known = [entry.file for entry in self._scans.waiting(version)]
            folder = version.origin_dir
        else:
            known = [picture.path for picture in self.pictures(version)]
            folder = version.dataset_dir
        if file not in known:
            raise unknown_picture(file)
        return Path(os.path.normpath(folder / file))

    def _original(self, version: Version, file: str) -> Path:
        """The original of a picture (`file` as in `remove`), or itself where it has none. Raises WorkspaceError."""
        from lora_train.data.manifest import read_manifest
        from lora_train.data.trained_set import origin_names

        try:
            picture = self._picture(version, file, is_waiting=False)
        except WorkspaceError:
            return self._picture(version, file, is_waiting=True)
        dataset_dir = version.path / "dataset"
        name = origin_names(dataset_dir, read_manifest(dataset_dir)).get(file, "")
        return version.origin_dir / name if name and (version.origin_dir / name).is_file() else picture

    def _update_job(self, version: Version) -> JobFolder | None:
        job_id = version.info().update_job
        try:
            return JobFolder(self._workspace.find_job(job_id)) if job_id else None
        except WorkspaceError:
            return None

    def _update_status(self, version: Version) -> JobStatus | None:
        job = self._update_job(version)
        return None if job is None else self._watch.status(job, self._updates.get(job.path))


def _entries(dataset: Dataset) -> list[PictureEntry]:
    return [
        PictureEntry(
            file=picture.path,
            width_px=picture.width_px,
            height_px=picture.height_px,
            caption=picture.caption,
            repeats=picture.repeats,
            is_regularisation=picture.is_regularisation,
            stamp=picture.digest[:12],
        )
        for picture in dataset.pictures
    ]


def _meant(name: str, known: Sequence[str]) -> str:
    wanted = unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")
    by_path = {unicodedata.normalize("NFC", file): file for file in known}
    if wanted in by_path:
        return by_path[wanted]
    found = [file for told, file in by_path.items() if told.rpartition("/")[2] == wanted]
    if len(found) > 1:
        raise WorkspaceError(f"Several pictures are called {name}.", f"Give the folder too: {', '.join(found)}.")
    if not found:
        raise WorkspaceError(f"There is no picture {name!r} in this dataset.", f"It has {len(known)} others.")
    return found[0]
