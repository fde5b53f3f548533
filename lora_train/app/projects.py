"""Projects and versions: made, renamed, copied, deleted and brought back."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from lora_train.app.in_use import InUse
from lora_train.app.snapshot import ProjectEntry, Selection, Undo, VersionEntry
from lora_train.core.errors import WorkspaceError
from lora_train.core.files import replace, temporary_folder, walk
from lora_train.core.names import folder_name, typed
from lora_train.core.original import read_selection
from lora_train.core.progress import StopAskedForError, tell
from lora_train.core.records import read_json, write_json
from lora_train.core.workspace import InfoStamp, Project, Version, Workspace


class Projects:
    """`came_back` is called when something outside the projects was restored: a published copy."""

    def __init__(self, workspace: Workspace, in_use: InUse, came_back: Callable[[], None]) -> None:
        self._workspace = workspace
        self._in_use = in_use
        self._came_back = came_back
        self._selection_path = workspace.root / "page.json"
        self._entries: dict[Path, tuple[InfoStamp, VersionEntry]] = {}

    def list(self) -> list[ProjectEntry]:
        """Newest first."""
        return [
            ProjectEntry(project.path.name, info.name, info.created, self._entries_of(project))
            for project, info in self._workspace.told_projects()
        ]

    def versions(self, project: str) -> list[VersionEntry]:
        """Of one project, newest first; none where there is no such project."""
        try:
            return self._entries_of(self._workspace.find_project(project))
        except WorkspaceError:
            return []

    def _entries_of(self, project: Project) -> list[VersionEntry]:
        return sorted(map(self._entry, project.all_versions()), key=lambda entry: entry.created, reverse=True)

    def _entry(self, version: Version) -> VersionEntry:
        """Read again only when its file has changed: there may be hundreds."""
        stamp = version.info_stamp()
        kept_stamp, entry = self._entries.get(version.path, (None, None))
        if entry is None or kept_stamp != stamp:
            info = version.info()
            entry = VersionEntry(version.path.name, info.name, info.created)
            if stamp is not None:
                self._entries[version.path] = stamp, entry
        return entry

    def open(self, name: str, version: str) -> Selection:
        """The project and version of these names, as typed; made where they don't exist.

        Raises WorkspaceError for a name that can't be one.
        """
        folder_name(version)
        found = self._workspace.project(name).version(version)
        return Selection(found.project.path.name, found.path.name)

    def find(self, name: str, version: str) -> Selection:
        """The project and version of these names, as typed. Raises WorkspaceError where there is none."""
        projects = {project.info().name: project for project in self._workspace.projects()}
        project = projects.get(typed(name))
        if project is None:
            raise WorkspaceError(f"There is no project {typed(name)!r} in {self._workspace.root}.", _known(projects))
        versions = {own.info().name: own for own in project.versions()}
        found = versions.get(typed(version))
        if found is None:
            raise WorkspaceError(f"{typed(name)} has no version {typed(version)!r}.", _known(versions))
        return Selection(project.path.name, found.path.name)

    def create(self, name: str) -> Selection:
        """Raises WorkspaceError for a name that can't be one, or that another project has."""
        folder_name(name)
        if any(project.info().name == typed(name) for project in self._workspace.projects()):
            raise WorkspaceError(f"There is a project {typed(name)} already.", "Choose it above, or another name.")
        return self.select(self._workspace.project(name).path.name, "")

    def rename(self, project: str, name: str) -> Selection:
        """Raises WorkspaceError for a name that is taken, JobError while something of it trains."""
        found = self._workspace.find_project(project)
        folder_name(name)
        kept = self.selection()
        version = kept.version if kept.project == found.path.name else ""
        with self._workspace.changing():
            self._in_use.require_idle(found.path, found.info().name)
            renamed = found.rename(name)
        return self.select(renamed.path.name, version)

    def delete(self, project: str) -> Undo:
        """Raises WorkspaceError where there is none, JobError while something of it trains."""
        found = self._workspace.find_project(project)
        return self._to_trash(found.path, found.info().name, found.versions())

    def create_version(self, project: str, name: str) -> Selection:
        """Raises WorkspaceError for a name that can't be one, or that another version has."""
        return self.select(project, self._new_version(project, name).path.name)

    def rename_version(self, project: str, version: str, name: str) -> Selection:
        """Raises WorkspaceError for a name that is taken, JobError while something of it trains."""
        found = self._workspace.find_version(project, version)
        folder_name(name)
        with self._workspace.changing():
            self._in_use.require_idle(found.path, title_of(found))
            renamed = found.rename(name)
        return self.select(project, renamed.path.name)

    def duplicate_version(self, project: str, version: str, name: str) -> Selection:
        """A version of the same pictures, captions and settings, without trains.

        Pictures are not copied where the file system knows hard links: a file is never written in place, so what is
        done to one version changes no other. Tells its progress. Raises WorkspaceError for a name that is taken, when
        the copy can't be made or was stopped, JobError while the pictures are being updated.
        """
        source = self._workspace.find_version(project, version)
        self._in_use.require_not_updating(source)
        copy = self._new_version(project, name)
        settings = source.info()
        try:
            with copy.changing() as info:
                info.train, info.dataset, info.caption = settings.train, settings.dataset, settings.caption
                info.preset = settings.preset
                info.preview, info.sweep = settings.preview, settings.sweep
            if (source.path / "dataset").is_dir():
                with temporary_folder(copy.path / "dataset") as fresh:  # half a set must not look like a whole one
                    _copy_pictures(source.path / "dataset", fresh)
                    replace(fresh, copy.path / "dataset")
        except (OSError, WorkspaceError, StopAskedForError) as error:
            shutil.rmtree(copy.path, ignore_errors=True)
            if isinstance(error, WorkspaceError):  # another program changes settings for too long; it says so itself
                raise
            if isinstance(error, StopAskedForError):
                raise WorkspaceError("Stopped: there is no copy.") from None
            reason = error.strerror or "not every file could be written"
            raise WorkspaceError(
                f"{title_of(source)} can't be copied: {reason}.",
                "Check that the folder can be written and that the disk has room.",
            ) from None
        return self.select(project, copy.path.name)

    def delete_version(self, project: str, version: str) -> Undo:
        """Raises WorkspaceError where there is none, JobError while something of it trains."""
        found = self._workspace.find_version(project, version)
        return self._to_trash(found.path, title_of(found), [found])

    def restore(self, entry: str) -> Selection:
        """Bring back what was deleted, and return what to look at. Raises WorkspaceError where it can't be."""
        for place in self._workspace.trash.restore(entry):
            if place.is_relative_to(self._workspace.projects_dir):
                project, _, below = place.relative_to(self._workspace.projects_dir).as_posix().partition("/versions/")
                return self.select(project, below.partition("/")[0])
        self._came_back()
        return self.selection()

    def selection(self) -> Selection:
        """What was looked at last, as far as it still exists; else the newest."""
        kept = read_json(self._selection_path, Selection, Selection(*read_selection(self._workspace.projects_dir)))
        projects = {project.path.name: project for project in self._workspace.projects()}
        if not projects:
            return Selection()
        project = projects.get(kept.project) or next(iter(projects.values()))
        versions = [version.path.name for version in project.versions()]
        version = kept.version if kept.version in versions else next(iter(versions), "")
        return Selection(project.path.name, version)

    def select(self, project: str, version: str) -> Selection:
        """Remember what is looked at; a version that is not in the project becomes its newest."""
        found = self._workspace.find_project(project) if project else None
        if found is not None and version not in [own.path.name for own in found.all_versions()]:
            version = self._newest(found)
        selection = Selection(project, version)
        with suppress(OSError):  # a full disk: what is looked at matters less than what was done
            if selection != read_json(self._selection_path, Selection, Selection()):
                write_json(self._selection_path, selection)
        return selection

    def _new_version(self, project: str, name: str) -> Version:
        found = self._workspace.find_project(project)
        folder_name(name)
        if any(version.info().name == typed(name) for version in found.versions()):
            raise WorkspaceError(f"There is a version {typed(name)} already.", "Choose it above, or another name.")
        return found.version(name)

    def _newest(self, project: Project) -> str:
        return next((version.path.name for version in project.versions()), "")

    def _to_trash(self, path: Path, what: str, versions: Sequence[Version]) -> Undo:
        """With the grids of the versions, which lie elsewhere."""
        with self._workspace.changing():
            self._in_use.require_idle(path, what)
            grids: list[Path] = []
            for job in dict.fromkeys(job for version in versions for job in version.info().grid_jobs):
                with suppress(WorkspaceError):  # deleted before
                    grids.append(self._workspace.find_job(job))
            return Undo(what, self._workspace.trash.put(what, [path, *grids]))


def _copy_pictures(dataset: Path, target: Path) -> None:
    """All of a dataset's folder but what an update has not finished; tells how many files are there."""
    unfinished = shutil.ignore_patterns("*.tmp", ".update-lock", "processed.new", "processed.old")
    total = sum(len(names) for _, _, names in walk(dataset))
    numbers = itertools.count(1)

    def copy(source: str, copied: str) -> None:
        _link_or_copy(source, copied)
        tell(next(numbers), total)

    shutil.copytree(dataset, target, ignore=unfinished, copy_function=copy, dirs_exist_ok=True)


def _link_or_copy(source: str, target: str) -> None:
    """Texts are copied: they are small, and people open them with editors that write in place."""
    from lora_train.data.images import PICTURE_SUFFIXES

    if Path(source).suffix.lower() in PICTURE_SUFFIXES:
        with suppress(OSError):  # a file system without links, or on another drive
            os.link(source, target, follow_symlinks=False)
            return
    shutil.copy2(source, target)


def _known(names: Iterable[str]) -> str:
    told = ", ".join(names)
    return f"There are: {told}." if told else "There is none yet."


def title_of(version: Version) -> str:
    """Project and version as typed."""
    return f"{version.project.info().name} {version.info().name}"
