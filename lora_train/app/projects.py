"""Projects and versions: made, renamed, copied, deleted and brought back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from lora_train.app.snapshot import ProjectEntry, Selection, Undo, VersionEntry
from lora_train.core.errors import JobError, WorkspaceError
from lora_train.core.files import replace
from lora_train.core.workspace import Project, Version, Workspace, folder_name, read_json, write_json


class Projects:
    """`is_busy` tells whether a job below a folder waits or runs: such a folder must not move.

    `came_back` is called when something outside the workspace was restored: a published copy.
    """

    def __init__(self, workspace: Workspace, is_busy: Callable[[Path], bool], came_back: Callable[[], None]) -> None:
        self._workspace = workspace
        self._is_busy = is_busy
        self._came_back = came_back
        self._selection_path = workspace.root / "page.json"

    def list(self) -> list[ProjectEntry]:
        """Newest first."""
        return [
            ProjectEntry(
                project.path.name,
                project.info().name,
                project.info().created,
                [VersionEntry(v.path.name, v.info().name, v.info().created) for v in project.versions()],
            )
            for project in self._workspace.projects()
        ]

    def create(self, name: str) -> Selection:
        """Raises WorkspaceError for a name that can't be one, or that another project has."""
        folder_name(name)
        if any(project.info().name == name.strip() for project in self._workspace.projects()):
            raise WorkspaceError(f"There is a project {name.strip()} already.", "Choose it above, or another name.")
        return self.select(self._workspace.project(name).path.name, "")

    def rename(self, project: str, name: str) -> Selection:
        """Raises WorkspaceError for a name that is taken, JobError while something of it trains."""
        found = self._workspace.find_project(project)
        folder_name(name)
        self._require_idle(found.path, found.info().name)
        renamed = found.rename(name)
        return self.select(renamed.path.name, self._newest(renamed))

    def delete(self, project: str) -> Undo:
        """Raises WorkspaceError where there is none, JobError while something of it trains."""
        found = self._workspace.find_project(project)
        return self._to_trash(found.path, found.info().name)

    def create_version(self, project: str, name: str) -> Selection:
        """Raises WorkspaceError for a name that can't be one, or that another version has."""
        return self._new_version(project, name)

    def rename_version(self, project: str, version: str, name: str) -> Selection:
        """Raises WorkspaceError for a name that is taken, JobError while something of it trains."""
        found = self._workspace.find_version(project, version)
        folder_name(name)
        self._require_idle(found.path, found.info().name)
        return self.select(project, found.rename(name).path.name)

    def duplicate_version(self, project: str, version: str, name: str) -> Selection:
        """A version of the same pictures, captions and settings, without trains.

        Raises WorkspaceError for a name that is taken.
        """
        source = self._workspace.find_version(project, version)
        selection = self._new_version(project, name)
        copy = self._workspace.find_version(project, selection.version)
        if (source.path / "dataset").is_dir():
            fresh = copy.path / "dataset.new"
            shutil.copytree(source.path / "dataset", fresh, ignore=shutil.ignore_patterns("processed.new"))
            replace(fresh, copy.path / "dataset")
        info = copy.info()
        copy.write_info(msgspec.structs.replace(source.info(), name=info.name, created=info.created, update_job=""))
        return selection

    def delete_version(self, project: str, version: str) -> Undo:
        """Raises WorkspaceError where there is none, JobError while something of it trains."""
        found = self._workspace.find_version(project, version)
        return self._to_trash(found.path, f"{found.project.info().name} {found.info().name}")

    def restore(self, entry: str) -> Selection:
        """Bring back what was deleted, and return what to look at. Raises WorkspaceError where it can't be."""
        for place in self._workspace.trash.restore(entry):
            if not place.is_relative_to(self._workspace.root):
                self._came_back()
            elif place.is_relative_to(self._workspace.projects_dir):
                project, _, below = place.relative_to(self._workspace.projects_dir).as_posix().partition("/versions/")
                return self.select(project, below.partition("/")[0])
        return self.selection()

    def selection(self) -> Selection:
        """What was looked at last, as far as it still exists; else the newest."""
        kept = read_json(self._selection_path, Selection, Selection())
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
        if found is not None and version not in [own.path.name for own in found.versions()]:
            version = self._newest(found)
        selection = Selection(project, version)
        if selection != read_json(self._selection_path, Selection, Selection()):
            write_json(self._selection_path, selection)
        return selection

    def _new_version(self, project: str, name: str) -> Selection:
        found = self._workspace.find_project(project)
        folder_name(name)
        if any(version.info().name == name.strip() for version in found.versions()):
            raise WorkspaceError(f"There is a version {name.strip()} already.", "Choose it above, or another name.")
        return self.select(project, found.version(name).path.name)

    def _newest(self, project: Project) -> str:
        return next((version.path.name for version in project.versions()), "")

    def _to_trash(self, path: Path, what: str) -> Undo:
        self._require_idle(path, what)
        return Undo(what, self._workspace.trash.put(what, [path]))

    def _require_idle(self, path: Path, what: str) -> None:
        if self._is_busy(path):
            raise JobError(f"A training of {what} waits or runs.", "Stop it, or wait for its end.")


def title_of(version: Version) -> str:
    """Project and version as typed."""
    return f"{version.project.info().name} {version.info().name}"
