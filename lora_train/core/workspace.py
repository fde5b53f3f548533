"""The folders of a person's work: projects, their versions, the versions' trains, and the trash.

<workspace>/projects/<project>/versions/<version>/trains/<train>/      names as in `names.folder_name`
"""

from __future__ import annotations

import os
import re
import threading
import time
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from lora_train.core.errors import WorkspaceError
from lora_train.core.files import replace, wait_for_lock
from lora_train.core.names import fold, folder_name, free_name, typed
from lora_train.core.original import OriginalSettings, read_settings
from lora_train.core.path_limits import require_openable
from lora_train.core.purposes import PresetFamily
from lora_train.core.records import Damage, damage_of, read_json, write_json
from lora_train.core.trash import Trash

_LEAST_ROOM = 120
"""Characters of a path below a version: `dataset`, `processed`, the concept's folder, and a picture."""

_SAVE_SUFFIX = re.compile(r"-(\d{6}|step\d{6,})$")

_LOCK_WAIT_S = 10.0
_version_lock = threading.Lock()
"""Of all `version.json`: a page saves a setting while it starts a job that is noted in the same file."""


InfoStamp = tuple[int, int, int]
"""Number, time of change and size of a file."""


class ProjectInfo(msgspec.Struct):
    """`project.json`: the name as typed."""

    name: str
    created: float
    type: str = ""
    """What it is about: a name of `core.purposes.PURPOSES`, or empty."""


class PresetUse(msgspec.Struct, frozen=True):
    """The preset that gave a version its settings, and what it changed, by name of the setting."""

    name: str
    family: PresetFamily
    before: dict[str, object] = {}
    after: dict[str, object] = {}


class SettingsBefore(msgspec.Struct, frozen=True):
    """What a version's training settings were before those of a training were taken over."""

    job: str
    """The training's id."""
    train: dict[str, object]
    preset: PresetUse | None = None


class VersionInfo(msgspec.Struct):
    """`version.json`: the name as typed, and the settings of the version's panels."""

    name: str
    created: float
    train: dict[str, object] = {}
    dataset: dict[str, object] = {}
    caption: dict[str, object] = {}
    preview: dict[str, object] = {}
    sweep: dict[str, object] = {}
    update_job: str = ""
    """The last *Update Dataset*: its folder, relative to the workspace."""
    check_job: str = ""
    """The last look at the pictures, likewise."""
    regularisation_job: str = ""
    """The last job that drew regularisation pictures, as `update_job`."""
    caption_job: str = ""
    """The last captioning of the trained set, likewise."""
    grid_jobs: list[str] = []
    """The jobs that drew previews of the version's LoRAs, in the order of their beginnings; some may be deleted."""
    preset: PresetUse | None = None
    settings_before: SettingsBefore | None = None


class Workspace:
    """The root of all projects. Creating the object touches nothing on the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()  # one spelling, also where a link leads here: jobs are told by it
        self.projects_dir = self.root / "projects"
        self.jobs_dir = self.root / "jobs"
        self.captioners_dir = self.root / "captioners"
        self.trash_dir = self.root / "trash"
        self.cache_dir = self.root / "cache"
        """Latents, encoded captions and hashes that other starts can use; may be deleted at any time."""
        self.trash = Trash(self.trash_dir, self.root)
        self._changing = threading.Lock()
        self.path_of_title: Callable[[str], str] = lambda _title: ""
        """The checkpoint that a host calls by this title, for workspaces of the original extension; set by `App`."""

    @contextmanager
    def changing(self) -> Generator[None, None, None]:
        """Within the block nobody else, in no program, begins something that needs pictures as they are, or changes
        them. Not to be entered again within it. Raises WorkspaceError where another program stays too long.
        """
        with self._changing, self.locked("changes"):
            yield

    @contextmanager
    def locked(self, name: str) -> Generator[None, None, None]:
        """Within the block nobody else, in no program, is in a block of this name. Raises as `changing`."""
        self.root.mkdir(parents=True, exist_ok=True)
        held = wait_for_lock(self.root / f"{name}.lock", _LOCK_WAIT_S)
        if held is None:
            raise WorkspaceError(f"{self.root} is being changed by another program.", "Try again in a moment.")
        with held:
            yield

    def projects(self) -> list[Project]:
        """Newest first."""
        return [project for project, _ in self.told_projects()]

    def told_projects(self) -> list[tuple[Project, ProjectInfo]]:
        """`projects`, each with its info."""
        found = [Project(self, path) for path in _folders(self.projects_dir)]
        return sorted(((own, own.info()) for own in found), key=lambda told: told[1].created, reverse=True)

    def project(self, name: str) -> Project:
        """The project of this name as typed; made if there is none yet."""
        name = typed(name)
        for project in self.projects():
            if project.info().name == name:
                return project
        folder = free_name(folder_name(name), (path.name for path in _folders(self.projects_dir)))
        project = Project(self, self.projects_dir / folder)
        with _nothing_left_of(project.path):
            project.write_info(ProjectInfo(name=name, created=time.time()))
        return project

    def find_project(self, folder: str) -> Project:
        """The project in this folder. Raises WorkspaceError where there is none."""
        return Project(self, _found(self.projects_dir, folder, "project"))

    def find_version(self, project: str, version: str) -> Version:
        """The version in these folders. Raises WorkspaceError where there is none."""
        return self.find_project(project).find_version(version)

    def version_of(self, train: Path) -> Version:
        """The version that a training's folder lies in. Raises WorkspaceError where there is none."""
        return self.find_version(train.parents[3].name, train.parents[1].name)

    def find_job(self, job: str) -> Path:
        """The folder of a job, by its path relative to the root. Raises WorkspaceError for what is none of ours."""
        parts = job.split("/")
        is_train = len(parts) == 6 and (parts[0], parts[2], parts[4]) == ("projects", "versions", "trains")
        if is_train:
            trains_dir = self.find_version(parts[1], parts[3]).trains_dir
            return _found(trains_dir, parts[5], "training")
        if len(parts) == 2 and parts[0] == "jobs":
            return _found(self.jobs_dir, parts[1], "job")
        raise WorkspaceError(f"There is no job {job!r} in {self.root}.")

    def jobs_there(self, jobs: Iterable[str]) -> list[str]:
        """Those of the ids of jobs that are no trainings whose folders are there: listed once for all of them."""
        names = set(_folder_names(self.jobs_dir))
        return [job for job in jobs if job.rpartition("/")[2] in names]

    def id_of(self, path: Path) -> str:
        """A folder of the workspace as it is told to others: relative to the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def free_stem(self, wanted: str, also_taken: Iterable[str] = ()) -> str:
        """`wanted`, or `wanted-r2`, `-r3` ...: a stem that no LoRA of the workspace, and none of `also_taken`, has.

        Hosts find a LoRA by its bare file name and keep it cached by that name, so a name is used once.
        """
        taken = {fold(_SAVE_SUFFIX.sub("", stem)) for stem in also_taken}
        taken |= {fold(path.name) for path in self.projects_dir.glob("*/versions/*/trains/*")}
        taken |= {
            fold(_SAVE_SUFFIX.sub("", path.stem))
            for path in self.projects_dir.glob("*/versions/*/trains/*/*.safetensors")
        }
        number = 1
        while True:
            stem = wanted if number == 1 else f"{wanted}-r{number}"
            if fold(stem) not in taken:
                return stem
            number += 1

    def new_job_dir(self, kind: str) -> Path:
        """A free folder under `jobs/` for a job that is no training."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = free_name(f"{stamp}-{kind}", (path.name for path in _folders(self.jobs_dir)))
        return self.jobs_dir / folder


class Project:
    """A project's folder."""

    def __init__(self, workspace: Workspace, path: Path) -> None:
        self.workspace = workspace
        self.path = path

    def info(self) -> ProjectInfo:
        """Called by its folder's name where `project.json` is missing or damaged."""
        path = self.path / "project.json"
        created = 0.0 if path.exists() else _oldest(self.path)
        return read_json(path, ProjectInfo, ProjectInfo(self.path.name, created), is_by_hand=True)

    def write_info(self, info: ProjectInfo) -> None:
        write_json(self.path / "project.json", info, keeps_before=True)

    def versions(self) -> list[Version]:
        """Newest first."""
        return sorted(self.all_versions(), key=lambda version: version.info().created, reverse=True)

    def all_versions(self) -> list[Version]:
        """In the order of their folders' names."""
        return [Version(self, path) for path in _folders(self.path / "versions")]

    def version(self, name: str) -> Version:
        """The version of this name as typed; made if there is none yet. Raises WorkspaceError where it can't be."""
        name = typed(name)
        for version in self.versions():
            if version.info().name == name:
                return version
        versions_dir = self.path / "versions"
        folder = free_name(folder_name(name), (path.name for path in _folders(versions_dir)))
        version = Version(self, versions_dir / folder)
        require_openable(version.path, _LEAST_ROOM)
        with _nothing_left_of(version.path):
            version.write_info(VersionInfo(name=name, created=time.time()))
        return version

    def find_version(self, folder: str) -> Version:
        """The version in this folder. Raises WorkspaceError where there is none."""
        return Version(self, _found(self.path / "versions", folder, "version"))

    def rename(self, name: str) -> Project:
        """Give the project another name, and its folder. Raises WorkspaceError where another has it."""
        name = typed(name)
        _require_free(name, ((other.path, other.info().name) for other in self.workspace.projects()), self.path)
        before = self.info()
        self.write_info(msgspec.structs.replace(before, name=name))
        try:
            return Project(self.workspace, _rename_folder(self.path, name))
        except OSError:
            self.write_info(before)
            raise


class Version:
    """A version's folder: its dataset and its trains."""

    def __init__(self, project: Project, path: Path) -> None:
        self.project = project
        self.path = path
        self.origin_dir = path / "dataset" / "origin"
        self.dataset_dir = path / "dataset" / "processed"
        self.regularisation_dir = path / "dataset" / "reg"
        self.trains_dir = path / "trains"

    def info(self) -> VersionInfo:
        """Called by its folder's name where `version.json` is missing or damaged, with settings that the original
        extension saved.
        """
        path = self.path / "version.json"
        usual = VersionInfo(self.path.name, created=0.0) if path.exists() else self._usual_info()
        return read_json(path, VersionInfo, usual, is_by_hand=True)

    def info_stamp(self) -> InfoStamp | None:
        """Another stamp, another info. None where there is no file of it."""
        try:
            told = (self.path / "version.json").stat()
        except OSError:
            return None
        return told.st_ino, told.st_mtime_ns, told.st_size

    def _usual_info(self) -> VersionInfo:
        info = VersionInfo(self.path.name, _oldest(self.path))
        if (original := self.original_settings()) is not None:
            info.train, info.dataset, info.caption = map(dict, (original.train, original.dataset, original.caption))
            info.preview = dict(original.preview)
            if original.base_model and (path := self.project.workspace.path_of_title(original.base_model)):
                info.train["base_model"] = path
        return info

    def original_settings(self) -> OriginalSettings | None:
        """What the original extension saved, as long as nothing was saved by us; else None."""
        return None if (self.path / "version.json").exists() else read_settings(self.path)

    def damage(self) -> Damage:
        """What became of `version.json` without us."""
        return damage_of(self.path / "version.json")

    def write_info(self, info: VersionInfo) -> None:
        write_json(self.path / "version.json", info, keeps_before=True)

    @contextmanager
    def changing(self) -> Generator[VersionInfo, None, None]:
        """The info to change, written back at the end; others that change it wait, in whatever program they are."""
        with _version_lock, self.project.workspace.locked("settings"):
            info = self.info()
            before = msgspec.json.encode(info)
            yield info
            if msgspec.json.encode(info) != before:
                self.write_info(info)

    def rename(self, name: str) -> Version:
        """Give the version another name, and its folder. Raises WorkspaceError where another has it."""
        name = typed(name)
        _require_free(name, ((other.path, other.info().name) for other in self.project.versions()), self.path)
        with self.changing() as info:
            before, info.name = info.name, name
        try:
            return Version(self.project, _rename_folder(self.path, name))
        except OSError:
            with self.changing() as info:
                info.name = before
            raise

    def stem(self) -> str:
        """What this version's LoRA files are called, before `-r2` and `-000002`."""
        return f"{self.project.path.name}-{self.path.name}"


_MOST_KNOWN = 2000
_known: dict[Path, dict[str, str]] = {}
"""What folders held when they were last listed, by name in NFC: a page asks for the same hundreds of jobs, among
thousands, every second."""


def _found(parent: Path, folder: str, what: str) -> Path:
    """The sub-folder of this name, taken from the list of what is there: no name leads out of `parent`."""
    wanted = unicodedata.normalize("NFC", folder)
    if (path := _known_folder(parent, wanted)) is not None:
        return path
    names = reversed(_folder_names(parent))  # the first of those that are the same in NFC stays
    there = {unicodedata.normalize("NFC", name): name for name in names}
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[parent] = there
    if wanted in there:
        return parent / there[wanted]
    raise WorkspaceError(f"The {what} {folder!r} does not exist.", "Refresh the page: it may have been deleted.")


def _known_folder(parent: Path, wanted: str) -> Path | None:
    """None also for one that is gone by now."""
    name = _known.get(parent, {}).get(wanted)
    if name is None:
        return None
    path = parent / name
    return path if path.is_dir() else None


def _require_free(name: str, others: Iterable[tuple[Path, str]], own: Path) -> None:
    """Raise WorkspaceError when another folder than `own` has this name."""
    if any(other == name and path != own for path, other in others):
        raise WorkspaceError(f"{name} exists already.", "Choose another name.")


@contextmanager
def _nothing_left_of(folder: Path) -> Generator[None, None, None]:
    """Where a new folder's first file can't be written: an empty one would have taken the name."""
    try:
        yield
    except OSError:
        with suppress(OSError):
            folder.rmdir()
        raise


def _rename_folder(path: Path, name: str) -> Path:
    """The folder under the name that suits `name` best."""
    taken = (other.name for other in _folders(path.parent) if other != path)
    target = path.with_name(free_name(folder_name(name), taken))
    if target != path:
        replace(path, target)
    return target


def move_to_trash(path: Path, trash_dir: Path) -> Path:
    """Move a file or folder into `trash_dir` under a name that says when, and return where it is now."""
    trash_dir.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = trash_dir / free_name(f"{stamp} {path.name}", (item.name for item in trash_dir.iterdir()))
    replace(path, target)
    return target


def _oldest(folder: Path) -> float:
    """When a folder that does not tell was made, as well as its content knows: unix seconds; 0 where it is gone."""
    try:
        return min(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        return 0.0


def _folders(parent: Path) -> Iterator[Path]:
    """In the order of their names, hidden ones left out; none where `parent` is no folder."""
    yield from map(parent.joinpath, _folder_names(parent))


def _folder_names(parent: Path) -> list[str]:
    """As `_folders`."""
    if not parent.is_dir():
        return []
    with os.scandir(parent) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
