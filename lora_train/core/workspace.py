"""The folders of a person's work: projects, their versions, the versions' trains, and the trash.

<workspace>/projects/<project>/versions/<version>/trains/<train>/      names as in `folder_name`
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from lora_train.core.errors import WorkspaceError
from lora_train.core.files import replace, write_bytes
from lora_train.core.original import OriginalSettings, read_settings
from lora_train.core.purposes import PresetFamily
from lora_train.core.trash import Trash

_STEERING = {*map(chr, (0x61C, 0x200E, 0x200F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)))}
"""C1 controls, and what turns the direction of text around: a name must not show as another."""

_INVISIBLE = ("Cc", "Cf", "Zs")

NAME_LIMIT_BYTES = 96
"""UTF-8 bytes of a folder name: project, version, run and step together must fit into 255."""

_FORBIDDEN = re.compile(r"[<>:\"/\\|?*,='`{}\[\]()\x00-\x1f\x7f]")
"""What Windows forbids in a file name, and what ends or bends a name inside `<lora:NAME:1>` in a prompt."""

_RESERVED = {"con", "prn", "aux", "nul", "none", "addams"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}
"""Device names on Windows, and the two names that Automatic1111 never resolves as a LoRA."""

Struct = TypeVar("Struct", bound=msgspec.Struct)

_SAVE_SUFFIX = re.compile(r"-(\d{6}|step\d{6,})$")

_version_lock = threading.Lock()
"""Of all `version.json`: a page saves a setting while it starts a job that is noted in the same file."""

_log = logging.getLogger(__name__)


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


def folder_name(name: str) -> str:
    """A folder name in the person's own script: NFC, without what Windows or the prompt syntax forbids.

    Raises WorkspaceError when nothing is left of it.
    """
    if not name.strip():
        raise WorkspaceError("Type a name first.")
    text = unicodedata.normalize("NFC", name)
    text = "".join(" " if unicodedata.category(char) in ("Zl", "Zp", "Zs") else char for char in text)
    text = "".join(char for char in text if unicodedata.category(char) != "Cs" and char not in _STEERING)
    text = _FORBIDDEN.sub("_", text).strip(" .")
    if all(char == "_" or unicodedata.category(char) in _INVISIBLE for char in text):
        raise WorkspaceError(
            f"{name!r} can't be a name: no letter, digit or sign that a file name may have is left of it.",
            "Type at least one letter or digit, in any script.",
        )
    head, dot, tail = text.partition(".")
    if is_reserved(text):
        text = f"{head.rstrip()}_{dot}{tail}"
    return _shorten(text)


def is_reserved(name: str) -> bool:
    """Whether Windows, which looks at what stands before the first dot, or a host takes the name for something else."""
    return name.partition(".")[0].strip().lower() in _RESERVED


def _shorten(text: str) -> str:
    """Cut at NAME_LIMIT_BYTES between characters; a hash keeps long names with equal beginnings apart."""
    raw = text.encode("utf-8")
    if len(raw) <= NAME_LIMIT_BYTES:
        return text
    mark = "~" + hashlib.blake2b(raw, digest_size=3).hexdigest()
    head = raw[: NAME_LIMIT_BYTES - len(mark)].decode("utf-8", errors="ignore")
    return head.rstrip(" .") + mark


def fold(name: str) -> str:
    """The form in which two names are the same file on some system."""
    return unicodedata.normalize("NFC", name).casefold()


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
        self.path_of_title: Callable[[str], str] = lambda _title: ""
        """The checkpoint that a host calls by this title, for workspaces of the original extension; set by `App`."""

    def projects(self) -> list[Project]:
        """Newest first."""
        found = [Project(self, path) for path in _folders(self.projects_dir)]
        return sorted(found, key=lambda project: project.info().created, reverse=True)

    def project(self, name: str) -> Project:
        """The project of this name as typed; made if there is none yet."""
        name = typed(name)
        for project in self.projects():
            if project.info().name == name:
                return project
        folder = _free_name(folder_name(name), (path.name for path in _folders(self.projects_dir)))
        project = Project(self, self.projects_dir / folder)
        project.write_info(ProjectInfo(name=name, created=time.time()))
        return project

    def find_project(self, folder: str) -> Project:
        """The project in this folder. Raises WorkspaceError where there is none."""
        return Project(self, _found(self.projects_dir, folder, "project"))

    def find_version(self, project: str, version: str) -> Version:
        """The version in these folders. Raises WorkspaceError where there is none."""
        return self.find_project(project).find_version(version)

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
        folder = _free_name(f"{stamp}-{kind}", (path.name for path in _folders(self.jobs_dir)))
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
        return read_json(path, ProjectInfo, ProjectInfo(self.path.name, created))

    def write_info(self, info: ProjectInfo) -> None:
        write_json(self.path / "project.json", info)

    def versions(self) -> list[Version]:
        """Newest first."""
        found = [Version(self, path) for path in _folders(self.path / "versions")]
        return sorted(found, key=lambda version: version.info().created, reverse=True)

    def version(self, name: str) -> Version:
        """The version of this name as typed; made if there is none yet."""
        name = typed(name)
        for version in self.versions():
            if version.info().name == name:
                return version
        versions_dir = self.path / "versions"
        folder = _free_name(folder_name(name), (path.name for path in _folders(versions_dir)))
        version = Version(self, versions_dir / folder)
        version.write_info(VersionInfo(name=name, created=time.time()))
        return version

    def find_version(self, folder: str) -> Version:
        """The version in this folder. Raises WorkspaceError where there is none."""
        return Version(self, _found(self.path / "versions", folder, "version"))

    def rename(self, name: str) -> Project:
        """Give the project another name, and its folder. Raises WorkspaceError where another has it."""
        name = typed(name)
        _require_free(name, ((other.path, other.info().name) for other in self.workspace.projects()), self.path)
        project = Project(self.workspace, _rename_folder(self.path, name))
        project.write_info(msgspec.structs.replace(project.info(), name=name))
        return project


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
        return read_json(path, VersionInfo, usual)

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

    def write_info(self, info: VersionInfo) -> None:
        write_json(self.path / "version.json", info)

    @contextmanager
    def changing(self) -> Generator[VersionInfo, None, None]:
        """The info to change, written back at the end; other threads that change it wait."""
        with _version_lock:
            info = self.info()
            before = msgspec.json.encode(info)
            yield info
            if msgspec.json.encode(info) != before:
                self.write_info(info)

    def rename(self, name: str) -> Version:
        """Give the version another name, and its folder. Raises WorkspaceError where another has it."""
        name = typed(name)
        _require_free(name, ((other.path, other.info().name) for other in self.project.versions()), self.path)
        version = Version(self.project, _rename_folder(self.path, name))
        with version.changing() as info:
            info.name = name
        return version

    def stem(self) -> str:
        """What this version's LoRA files are called, before `-r2` and `-000002`."""
        return f"{self.project.path.name}-{self.path.name}"


def typed(name: str) -> str:
    """A name as its person typed it; macOS hands over decomposed letters."""
    return unicodedata.normalize("NFC", name.strip())


def _found(parent: Path, folder: str, what: str) -> Path:
    """The sub-folder of this name, taken from the list of what is there: no name leads out of `parent`."""
    for path in _folders(parent):
        if unicodedata.normalize("NFC", path.name) == unicodedata.normalize("NFC", folder):
            return path
    raise WorkspaceError(f"The {what} {folder!r} does not exist.", "Refresh the page: it may have been deleted.")


def _require_free(name: str, others: Iterable[tuple[Path, str]], own: Path) -> None:
    """Raise WorkspaceError when another folder than `own` has this name."""
    if any(other == name and path != own for path, other in others):
        raise WorkspaceError(f"{name} exists already.", "Choose another name.")


def _rename_folder(path: Path, name: str) -> Path:
    """The folder under the name that suits `name` best."""
    taken = (other.name for other in _folders(path.parent) if other != path)
    target = path.with_name(_free_name(folder_name(name), taken))
    if target != path:
        replace(path, target)
    return target


def move_to_trash(path: Path, trash_dir: Path) -> Path:
    """Move a file or folder into `trash_dir` under a name that says when, and return where it is now."""
    trash_dir.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = trash_dir / _free_name(f"{stamp} {path.name}", (item.name for item in trash_dir.iterdir()))
    replace(path, target)
    return target


def write_json(path: Path, content: msgspec.Struct) -> None:
    """Write a struct as indented JSON, atomically."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(content), indent=2))


def read_json(path: Path, kind: type[Struct], default: Struct) -> Struct:
    """The struct in a JSON file, or `default` where there is no file, or a damaged one.

    A damaged file is set aside as `<name>.damaged`: one broken file must not stop all the others, and a person may
    still find something in it. Raises OSError when the file can't be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return default
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        aside = path.with_name(f"{path.name}.damaged")
        _log.warning("%s can't be read (%s); it is set aside as %s.", path, error, aside.name)
        with suppress(OSError):
            replace(path, aside)
        return default


def _oldest(folder: Path) -> float:
    """When a folder that does not tell was made, as well as its content knows: unix seconds; 0 where it is gone."""
    try:
        return min(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        return 0.0


def _folders(parent: Path) -> Iterator[Path]:
    if not parent.is_dir():
        return
    for path in sorted(parent.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield path


def _free_name(wanted: str, taken: Iterable[str]) -> str:
    folded = {fold(name) for name in taken}
    number, name = 1, wanted
    while fold(name) in folded:
        number += 1
        name = f"{wanted}-{number}"
    return name
