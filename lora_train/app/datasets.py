"""The pictures of a version: taken in, shown, captioned, removed, and made into the trained set."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lora_train.app.snapshot import DatasetSnapshot, PictureEntry, Undo
from lora_train.app.thumbnails import Thumbnails
from lora_train.app.version_settings import known_settings, train_settings
from lora_train.app.watching import Watch
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import ConfigError, DatasetError, JobError, WorkspaceError
from lora_train.core.files import write_text
from lora_train.core.jobs import DatasetSpec, JobFolder, JobStatus
from lora_train.core.settings import check_settings
from lora_train.core.workspace import Version, Workspace
from lora_train.launch import launcher
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from lora_train.data.dataset import Dataset

_READS_NO_PICTURES = ("training", "drawing previews")
"""Phases of a training in which its pictures may change."""

_Stamp = tuple[tuple[str, int, int], ...]
"""Relative path, time of change and size of every file of a folder: another stamp, another content."""


class Datasets:
    def __init__(self, workspace: Workspace, jobs: JobQueue, watch: Watch) -> None:
        self._workspace = workspace
        self._jobs = jobs
        self._watch = watch
        self._changing = threading.Lock()
        self._scanning = threading.Lock()
        self._scans: dict[Path, tuple[_Stamp, Dataset | DatasetError]] = {}
        self._waiting: dict[Path, tuple[_Stamp, list[PictureEntry]]] = {}
        self._updates: dict[Path, launcher.Worker] = {}
        self._thumbnails = Thumbnails()

    # --- what comes in ---

    def add(self, project: str, version: str, files: Sequence[tuple[str, Path]]) -> list[str]:
        """Copy pictures and their caption files (name as uploaded, file) to the version's originals.

        One sentence is returned for everything that can't be used. Raises WorkspaceError for an unknown version,
        DatasetError when its folder can't be written.
        """
        from lora_train.data.intake import keep_uploads

        found = self._workspace.find_version(project, version)
        with self._changing:
            return keep_uploads(files, found.origin_dir, self._workspace.trash_dir)

    def add_bytes(self, project: str, version: str, name: str, content: bytes) -> list[str]:
        """`add` for one file that came over the network."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "upload"
            path.write_bytes(content)
            return self.add(project, version, [(name, path)])

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
            snapshot.pictures = [
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
            folders = dict.fromkeys(picture.folder for picture in dataset.pictures)
            snapshot.folders = [str(found.dataset_dir / folder) for folder in folders]
        snapshot.pictures += self._waiting_pictures(found)
        return snapshot

    def scan(self, version: Version) -> Dataset:
        """The trained set, read again only when a file of it has changed. Raises DatasetError as `scan_dataset`."""
        from lora_train.data.dataset import scan_dataset, with_repeats

        with self._scanning:  # it may take seconds: who asks meanwhile waits for this one
            stamp = _stamp_of(version.dataset_dir)
            kept = self._scans.get(version.dataset_dir)
            if kept is None or kept[0] != stamp:
                try:
                    kept = stamp, scan_dataset(version.dataset_dir)
                except DatasetError as error:
                    kept = stamp, error
                self._scans[version.dataset_dir] = kept
        if isinstance(kept[1], DatasetError):
            raise kept[1]
        return with_repeats(kept[1], train_settings(version).repeats)

    def picture_path(self, project: str, version: str, file: str, is_waiting: bool) -> Path:
        """The file of a picture. Raises WorkspaceError for one that is not in the dataset."""
        return self._picture(self._workspace.find_version(project, version), file, is_waiting)

    def thumbnail(self, project: str, version: str, file: str, is_waiting: bool) -> bytes:
        """A JPEG of the picture, at most 320 pixels a side. Raises WorkspaceError, or DatasetError for damage."""
        return self._thumbnails.of(self.picture_path(project, version, file, is_waiting))

    # --- what is done with it ---

    def start_update(self, project: str, version: str) -> str:
        """Begin to make the trained set from the originals, in a process of its own; the job's id.

        Raises JobError while the last update runs, or while a training needs the set as it is, ConfigError for sizes
        that can't be.
        """
        found = self._workspace.find_version(project, version)
        settings, problems = check_settings(known_settings(found.info().dataset, DatasetSettings), DatasetSettings())
        if problems:
            raise ConfigError(problems)
        name, train = found.project.info().name, train_settings(found)
        with self._changing:
            self.require_unused(found)
            if self.is_updating(found):
                raise JobError("The dataset is being updated already.")
            job = JobFolder(self._workspace.new_job_dir("dataset"))
            job.create(
                DatasetSpec(
                    dataset=os.path.relpath(found.path / "dataset", job.path),
                    trash=os.path.relpath(self._workspace.trash_dir, job.path),
                    settings=settings,
                    project=name,
                    concept=train.trigger_word.strip() or name,
                    repeats=train.repeats,
                )
            )
            for ended in self._updates.values():
                ended.poll()  # lets the system forget it
            self._updates[job.path] = launcher.start_worker(job)
            job_id = self._workspace.id_of(job.path)
            with found.changing() as info:
                info.update_job = job_id
        return job_id

    def is_updating(self, version: Version) -> bool:
        """Whether the last update has not come to its end."""
        job = self._update_job(version)
        if job is None:
            return False
        worker = self._updates.get(job.path)
        state = self._watch.status(job, worker).state
        return state == "running" or (state == "waiting" and worker is not None)

    def stop_update(self, project: str, version: str) -> None:
        """Ask the running update to stop; the old set stays. Raises JobError when none runs."""
        found = self._workspace.find_version(project, version)
        job = self._update_job(found)
        if job is None or not self.is_updating(found):
            raise JobError("No update is running.")
        job.request("stop")

    def set_caption(self, project: str, version: str, file: str, caption: str) -> None:
        """Write a picture's caption. Raises WorkspaceError for an unknown one, JobError while a training needs it."""
        from lora_train.data.captions import caption_path

        found = self._workspace.find_version(project, version)
        self.require_unused(found)
        path = self._picture(found, file, is_waiting=False)
        text = " ".join(caption.replace("\x00", "").split())
        other = caption_path(path)
        write_text(path.with_suffix(".txt"), text)
        if other is not None and other != path.with_suffix(".txt") and not other.samefile(path.with_suffix(".txt")):
            self._workspace.trash.put(f"the old caption of {path.name}", [other])

    def remove(self, project: str, version: str, file: str) -> Undo:
        """Move a picture, its flipped copy and their captions to the trash, from the trained set and the originals.

        `file` is relative to the trained set or, for one that waits, to the originals. Raises WorkspaceError for an
        unknown one, JobError while a training needs it.
        """
        from lora_train.data.captions import caption_path
        from lora_train.data.update import origin_names, read_manifest

        found = self._workspace.find_version(project, version)
        self.require_unused(found)
        dataset_dir = found.path / "dataset"
        names = origin_names(dataset_dir, read_manifest(dataset_dir))
        try:
            pictures = [self._picture(found, file, is_waiting=False)]
            name = names.get(file, "")
        except WorkspaceError:
            pictures, name = [], self._picture(found, file, is_waiting=True).name
        if name:
            pictures += [found.dataset_dir / other for other, its in names.items() if its == name and other != file]
            pictures += [path for path in [found.origin_dir / name] if path.is_file()]
        captions = [caption for path in pictures if (caption := caption_path(path)) is not None]
        what = name or pictures[0].name
        return Undo(what, self._workspace.trash.put(what, [*pictures, *captions]))

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

    def _waiting_pictures(self, version: Version) -> list[PictureEntry]:
        """Those that *Update Dataset* will take in; read again only when a file has changed."""
        with self._scanning:
            stamp = _stamp_of(version.path / "dataset")
            kept = self._waiting.get(version.path)
            if kept is None or kept[0] != stamp:
                kept = self._waiting[version.path] = stamp, _read_waiting(version)
        return list(kept[1])

    def _picture(self, version: Version, file: str, is_waiting: bool) -> Path:
        """Chosen from the list of what is there: no name leads out of the dataset."""
        if is_waiting:
            known = [entry.file for entry in self._waiting_pictures(version)]
            folder = version.origin_dir
        else:
            try:
                known = [picture.path for picture in self.scan(version).pictures]
            except DatasetError:
                known = []
            folder = version.dataset_dir
        if file not in known:
            raise WorkspaceError(f"There is no picture {file!r} in this dataset.", "Refresh the page.")
        return folder / file

    def _update_job(self, version: Version) -> JobFolder | None:
        job_id = version.info().update_job
        try:
            return JobFolder(self._workspace.find_job(job_id)) if job_id else None
        except WorkspaceError:
            return None

    def _update_status(self, version: Version) -> JobStatus | None:
        job = self._update_job(version)
        return None if job is None else self._watch.status(job, self._updates.get(job.path))


def _read_waiting(version: Version) -> list[PictureEntry]:
    from lora_train.data.captions import caption_stem
    from lora_train.data.images import picture_size
    from lora_train.data.update import captions_in, origin_names, origins, read_manifest

    dataset_dir = version.path / "dataset"
    trained = set(origin_names(dataset_dir, read_manifest(dataset_dir)).values())
    waiting = [path for path in origins(dataset_dir) if path.name not in trained]
    captions = captions_in(version.origin_dir) if waiting else {}
    entries: list[PictureEntry] = []
    for path in waiting:
        with suppress(OSError):  # just removed
            stamp = f"{path.stat().st_mtime_ns:x}"
            try:
                width_px, height_px = picture_size(path)
            except DatasetError:
                width_px, height_px = 0, 0  # it was checked when it came; the update will tell
            caption = captions.get(caption_stem(path), "")
            entries.append(PictureEntry(path.name, width_px, height_px, caption, is_waiting=True, stamp=stamp))
    return entries


def _stamp_of(folder: Path) -> _Stamp:
    found: list[tuple[str, int, int]] = []
    for root, _, files in os.walk(folder):
        for file in files:
            path = os.path.join(root, file)  # noqa: PTH118  (hundreds of files, once a second)
            try:
                told = os.stat(path)  # noqa: PTH116
            except FileNotFoundError:  # just removed
                continue
            found.append((path, told.st_mtime_ns, told.st_size))
    return tuple(sorted(found))
