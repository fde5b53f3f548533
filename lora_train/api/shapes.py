"""What the routes take and give: JSON bodies, queries, and the answers for which `App` has no struct of its own.

Ids are those of `lora_train.app.snapshot`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lora_train.app.captions import AllPictures, FilterMode, Operation, RowOrder, Scope
from lora_train.app.snapshot import CaptionChoice
from lora_train.core.caption_settings import CaptionerKind, CaptionPolicy
from lora_train.core.purposes import PresetFamily
from lora_train.core.settings import SettingField

ServerPath = Annotated[str, Meta(pattern=r"^[^\x00]+$")]
"""What the system takes for a path at all."""
_LONGEST_FILE_BYTES = 2**40


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """A misspelt name is told, not passed over."""


class _Query(msgspec.Struct):
    """More than is asked for is no error in an address: it may carry the page's token or a picture's stamp."""


class Nothing(_Query):
    """The route takes, or gives, no values."""


# --- taken ---


class VersionQuery(_Query):
    project: str
    version: str


class NameBody(_Body):
    name: str


class ProjectBody(_Body):
    project: str


class ProjectNameBody(ProjectBody):
    name: str


class VersionBody(ProjectBody):
    version: str


class VersionNameBody(VersionBody):
    name: str


class EntryBody(_Body):
    entry: str


class SettingsBody(VersionBody):
    train: dict[str, Any] = {}
    dataset: dict[str, Any] = {}
    caption: dict[str, Any] = {}
    preview: dict[str, Any] = {}
    sweep: dict[str, Any] = {}


class Upload(_Body):
    name: str
    content: bytes


class UploadBody(VersionBody):
    files: list[Upload]


class ClassUploadBody(UploadBody):
    class_name: str


class RegularisationBody(VersionBody):
    class_name: str
    prompt: str
    count: int
    negative_prompt: str = ""


class FolderBody(VersionBody):
    folder: str


class NameQuery(_Query):
    name: str


class PresetQuery(NameQuery):
    family: PresetFamily = "sd1"


class RenameBody(NameBody):
    new_name: str


class RegularisationQuery(VersionQuery):
    count: int = 0
    class_name: str = ""


class PathsBody(VersionBody):
    paths: list[ServerPath]


class PictureBody(VersionBody):
    file: str


class ReplaceBody(PictureBody):
    name: str
    content: bytes


class CaptionBody(PictureBody):
    caption: str


class TaskBody(_Body):
    task: str


class AnswerBody(_Body):
    choice: CaptionChoice


class ModelBody(_Body):
    model: str
    kind: CaptionerKind | None = None
    """What it has to be, where the model is named as on the hub."""


class MakeCaptionsBody(VersionBody):
    files: list[str] = []
    """As in the dataset; none is all of them."""
    policy: CaptionPolicy | None = None
    """None: that of the settings."""


class CaptionsQuery(VersionQuery):
    filter: str = ""
    mode: FilterMode = "and"
    order: RowOrder = "name"


class CaptionsEditBody(VersionBody):
    operation: Operation
    scope: Scope = msgspec.field(default_factory=AllPictures)


class TrainedTextQuery(VersionQuery):
    file: str
    epoch: int = 1


class PictureQuery(VersionQuery):
    file: str
    waiting: bool = False
    size: Literal["thumb", "full"] = "full"


class BaseModelQuery(_Query):
    name: str


class TaskQuery(_Query):
    task: str


class JobQuery(_Query):
    job: str


class EventsQuery(JobQuery):
    offset: Annotated[int, Meta(ge=0, le=_LONGEST_FILE_BYTES)] = 0


class FileQuery(JobQuery):
    file: str
    download: bool = False


class GridPictureQuery(JobQuery):
    file: str
    size: Literal["thumb", "full"] = "full"


class JobBody(_Body):
    job: str


class RepeatBody(JobBody):
    anyway: bool = False
    """Also where packages or the processor are others than they were."""


class CompareQuery(JobQuery):
    other: str


class LoraBody(JobBody):
    lora: str


class SweepBody(_Body):
    sweep: str


class PlaceBody(JobBody):
    place: Annotated[int, Meta(ge=1)]


class LiveQuery(_Query):
    project: str = ""
    version: str = ""
    train: str = ""
    smoothing: str = ""
    parts: str = ""
    seen: str = ""
    filter: str = ""
    mode: str = ""
    order: str = ""
    pictures: str = ""
    gallery: str = ""
    """The page of the dataset's pictures ..."""
    cards: str = ""
    """... that of the shown training's LoRAs ..."""
    grids: str = ""
    """... and that of the version's previews, from 1."""
    compare: str = ""
    """The job that the shown training is compared with."""


# --- given ---


class FileAnswer(msgspec.Struct):
    """Not JSON, but a file as it is."""


class StoredFile(FileAnswer):
    path: Path
    is_download: bool = False


class JpegPicture(FileAnswer):
    content: bytes


class TextFile(FileAnswer):
    """Something written for the asker, to be kept as a file."""

    name: str
    content: str
    media_type: str


class LongTextFile(FileAnswer):
    """As `TextFile`, for what may take seconds to write: the browser is told soon that it comes."""

    name: str
    start: str
    """What it begins with."""
    write: Callable[[], str]
    """Gives all of it."""
    media_type: str


class VersionAnswer(msgspec.Struct, frozen=True):
    version: str
    host: str
    api: int = 1


class ProblemsAnswer(msgspec.Struct, frozen=True):
    problems: list[str]


class SweepAnswer(msgspec.Struct):
    sweep: str


class TaskAnswer(msgspec.Struct, frozen=True):
    task: str
    """Of a call that goes on."""


class JobAnswer(msgspec.Struct, frozen=True):
    job: str


class JobsAnswer(msgspec.Struct, frozen=True):
    jobs: list[str]


class NameAnswer(msgspec.Struct, frozen=True):
    name: str


class SettingsAnswer(msgspec.Struct, frozen=True):
    train: dict[str, Any]
    dataset: dict[str, Any]
    caption: dict[str, Any]
    preview: dict[str, Any]
    sweep: dict[str, Any]
    notes: list[str]
    """One sentence for every setting of the original extension that could not be taken over."""


class SchemaAnswer(msgspec.Struct, frozen=True):
    train: list[SettingField]
    dataset: list[SettingField]
    caption: list[SettingField]
    preview: list[SettingField]
    sweep: list[SettingField]


class LogAnswer(msgspec.Struct, frozen=True):
    log: str


class EventsAnswer(msgspec.Struct, frozen=True):
    events: list[dict[str, Any]]
    offset: int


class Problem(msgspec.Struct, frozen=True):
    """What went wrong, for its reader: what happened, and what to do."""

    error: str
    message: str
    hint: str = ""
    problems: list[str] | msgspec.UnsetType = msgspec.UNSET
    """One sentence each, where several settings are wrong."""
