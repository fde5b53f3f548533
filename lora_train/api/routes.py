"""The routes of the HTTP API: method, path, what each takes and gives, and the one call of `App` behind it.

`api.server` puts them on a server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from lora_train import __version__
from lora_train.api.shapes import (
    AnswerBody,
    BaseModelQuery,
    CaptionBody,
    CaptionsEditBody,
    CaptionsQuery,
    ClassUploadBody,
    EntryBody,
    EventsAnswer,
    EventsQuery,
    FileAnswer,
    FileQuery,
    FolderBody,
    JobAnswer,
    JobBody,
    JobQuery,
    JpegPicture,
    LogAnswer,
    LoraBody,
    MakeCaptionsBody,
    ModelBody,
    NameAnswer,
    NameBody,
    Nothing,
    PathsBody,
    PictureBody,
    PictureQuery,
    PlaceBody,
    ProblemsAnswer,
    ProjectBody,
    ProjectNameBody,
    RegularisationBody,
    RegularisationQuery,
    ReplaceBody,
    SchemaAnswer,
    SettingsAnswer,
    SettingsBody,
    StoredFile,
    TrainedTextQuery,
    Upload,
    UploadBody,
    VersionAnswer,
    VersionBody,
    VersionNameBody,
    VersionQuery,
)
from lora_train.app import App
from lora_train.app.captions import CaptionChange, CaptionsSnapshot, EditResult, TrainedText
from lora_train.app.snapshot import (
    BaseModelSnapshot,
    CaptioningSnapshot,
    DatasetSnapshot,
    Forecast,
    ProjectEntry,
    QueueEntry,
    RegularisationForecast,
    RegularisationSnapshot,
    Selection,
    TrainSnapshot,
    Undo,
)
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.errors import DatasetError
from lora_train.core.health import HealthReport
from lora_train.core.host import BaseModelChoice
from lora_train.core.jobs import JobFolder, JobStatus
from lora_train.core.settings import setting_fields

UPLOAD_LIMIT_BYTES = 64 * 1024 * 1024
"""Of one picture, caption or archive."""
_UPLOAD_BODY_LIMIT_BYTES = 96 * 1024 * 1024
"""Room for the largest file in base64, which is a third longer."""
_BODY_LIMIT_BYTES = 1024 * 1024

Taken = TypeVar("Taken")
Given = TypeVar("Given")


@dataclass(frozen=True)
class Route(Generic[Taken, Given]):
    """One route. `takes` is the JSON body of a POST or the query of a GET."""

    method: Literal["GET", "POST"]
    path: str
    """Below `train-tools/v1/`."""
    summary: str
    takes: type[Taken]
    gives: type[Given]
    call: Callable[[App, Taken], Given]
    body_limit_bytes: int = _BODY_LIMIT_BYTES


def _settings(app: App, query: VersionQuery) -> SettingsAnswer:
    return SettingsAnswer(
        train=app.settings.train(query.project, query.version),
        dataset=app.settings.dataset(query.project, query.version),
        caption=app.settings.caption(query.project, query.version),
        notes=app.settings.notes(query.project, query.version),
    )


def _save_settings(app: App, body: SettingsBody) -> ProblemsAnswer:
    return ProblemsAnswer(app.settings.save(body.project, body.version, body.train, body.dataset, body.caption))


def _upload(app: App, body: UploadBody) -> ProblemsAnswer:
    files, problems = _within_limit(body.files)
    for file in files:
        problems += app.datasets.add_bytes(body.project, body.version, file.name, file.content)
    return ProblemsAnswer(problems)


def _upload_regularisation(app: App, body: ClassUploadBody) -> ProblemsAnswer:
    taken, problems = _within_limit(body.files)
    files = [(file.name, file.content) for file in taken]
    problems += app.regularisation.add_bytes(body.project, body.version, body.class_name, files)
    return ProblemsAnswer(problems)


def _within_limit(files: list[Upload]) -> tuple[list[Upload], list[str]]:
    """The files that are not too large, and a sentence for each of the others."""
    taken: list[Upload] = []
    problems: list[str] = []
    for file in files:
        if problem := _too_large(file.name, file.content):
            problems.append(problem)
        else:
            taken.append(file)
    return taken, problems


def _replace(app: App, body: ReplaceBody) -> Undo:
    if problem := _too_large(body.name, body.content):
        raise DatasetError(problem)
    return app.datasets.replace_bytes(body.project, body.version, body.file, body.name, body.content)


def _too_large(name: str, content: bytes) -> str:
    """A sentence for a file over the limit."""
    if len(content) <= UPLOAD_LIMIT_BYTES:
        return ""
    return f"{name} has {len(content) / 2**20:.0f} MB; at most 64 MB can be uploaded."


def _take_server_files(app: App, body: PathsBody) -> ProblemsAnswer:
    if not app.host.takes_paths():
        raise DatasetError(
            "This page can be reached from other machines, so it takes no paths of this one.", "Upload the pictures."
        )
    paths = [Path(path) for path in body.paths]
    return ProblemsAnswer(app.datasets.add(body.project, body.version, [(path.name, path) for path in paths]))


def _picture(app: App, query: PictureQuery) -> FileAnswer:
    if query.size == "thumb":
        return JpegPicture(app.datasets.thumbnail(query.project, query.version, query.file, query.waiting))
    return StoredFile(app.datasets.picture_path(query.project, query.version, query.file, query.waiting))


def _make_captions(app: App, body: MakeCaptionsBody) -> JobAnswer:
    return JobAnswer(app.captioning.start(body.project, body.version, tuple(body.files), body.policy))


def _refresh_base_models(app: App, _: Nothing) -> list[BaseModelChoice]:
    app.host.refresh_base_models()
    return app.training.base_models()


def _nothing(_done: None) -> Nothing:
    return Nothing()


# --- the table ---

_PROJECTS = [
    Route(
        "GET", "version", "The program's version and the API's.", Nothing, VersionAnswer,
        lambda app, _: VersionAnswer(__version__, app.host.name),
    ),
    Route(
        "GET", "projects", "All projects with their versions, newest first.", Nothing, list[ProjectEntry],
        lambda app, _: app.projects.list(),
    ),
    Route(
        "POST", "projects", "Make a project.", NameBody, Selection,
        lambda app, body: app.projects.create(body.name),
    ),
    Route(
        "POST", "projects/rename", "Rename a project.", ProjectNameBody, Selection,
        lambda app, body: app.projects.rename(body.project, body.name),
    ),
    Route(
        "POST", "projects/delete", "Move a project to the trash.", ProjectBody, Undo,
        lambda app, body: app.projects.delete(body.project),
    ),
    Route(
        "POST", "versions", "Make a version of a project.", ProjectNameBody, Selection,
        lambda app, body: app.projects.create_version(body.project, body.name),
    ),
    Route(
        "POST", "versions/rename", "Rename a version.", VersionNameBody, Selection,
        lambda app, body: app.projects.rename_version(body.project, body.version, body.name),
    ),
    Route(
        "POST", "versions/duplicate", "Copy a version with its pictures and settings.", VersionNameBody, Selection,
        lambda app, body: app.projects.duplicate_version(body.project, body.version, body.name),
    ),
    Route(
        "POST", "versions/delete", "Move a version to the trash.", VersionBody, Undo,
        lambda app, body: app.projects.delete_version(body.project, body.version),
    ),
    Route(
        "GET", "selection", "The project and version that were looked at last.", Nothing, Selection,
        lambda app, _: app.projects.selection(),
    ),
    Route(
        "POST", "selection", "Look at a project and version.", VersionBody, Selection,
        lambda app, body: app.projects.select(body.project, body.version),
    ),
    Route(
        "POST", "trash/restore", "Take back what was deleted.", EntryBody, Selection,
        lambda app, body: app.projects.restore(body.entry),
    ),
    Route(
        "GET", "settings", "All settings of a version.", VersionQuery, SettingsAnswer,
        _settings,
    ),
    Route(
        "POST", "settings", "Change settings of a version; wrong values are told, the others saved.",
        SettingsBody, ProblemsAnswer,
        _save_settings,
    ),
    Route(
        "GET", "settings/schema", "Every setting with its label, help, default and limits.", Nothing, SchemaAnswer,
        lambda _app, _: SchemaAnswer(*map(setting_fields, (TrainSettings, DatasetSettings, CaptionSettings))),
    ),
]  # fmt: skip

_DATASET = [
    Route(
        "GET", "dataset", "The pictures of a version with their captions.", VersionQuery, DatasetSnapshot,
        lambda app, query: app.datasets.snapshot(query.project, query.version),
    ),
    Route(
        "POST", "dataset/upload", "Add pictures, captions and zip archives, in base64, at most 64 MB each.",
        UploadBody, ProblemsAnswer, _upload, _UPLOAD_BODY_LIMIT_BYTES,
    ),
    Route(
        "POST", "dataset/server-files", "Add pictures, captions, zip archives and folders that lie on the server.",
        PathsBody, ProblemsAnswer, _take_server_files,
    ),
    Route(
        "POST", "dataset/update", "Crop, resize and caption what was added.", VersionBody, JobAnswer,
        lambda app, body: JobAnswer(app.datasets.start_update(body.project, body.version)),
    ),
    Route(
        "POST", "dataset/update/stop", "Stop the update of the dataset.", VersionBody, Nothing,
        lambda app, body: _nothing(app.datasets.stop_update(body.project, body.version)),
    ),
    Route(
        "GET", "dataset/health", "What is good and bad about the pictures and captions.", VersionQuery, HealthReport,
        lambda app, query: app.health.report(query.project, query.version),
    ),
    Route(
        "POST", "dataset/check", "Look at the pictures that were not looked at yet.", VersionBody, JobAnswer,
        lambda app, body: JobAnswer(app.health.start(body.project, body.version)),
    ),
    Route(
        "POST", "dataset/caption", "Write the caption of a picture.", CaptionBody, Nothing,
        lambda app, body: _nothing(app.datasets.set_caption(body.project, body.version, body.file, body.caption)),
    ),
    Route(
        "POST", "dataset/remove", "Move a picture to the trash.", PictureBody, Undo,
        lambda app, body: app.datasets.remove(body.project, body.version, body.file),
    ),
    Route(
        "POST", "dataset/replace", "Put another picture in the place of one, whose caption stays; in base64.",
        ReplaceBody, Undo, _replace, _UPLOAD_BODY_LIMIT_BYTES,
    ),
    Route(
        "GET", "dataset/picture", "A picture of the dataset, or its thumbnail.", PictureQuery, FileAnswer,
        _picture,
    ),
]  # fmt: skip

_REGULARISATION = [
    Route(
        "GET", "regularisation", "The regularisation pictures of a version by class, and the last job that drew some.",
        VersionQuery, RegularisationSnapshot,
        lambda app, query: app.regularisation.snapshot(query.project, query.version),
    ),
    Route(
        "GET", "regularisation/estimate", "Steps with and without regularisation pictures, and with so many more.",
        RegularisationQuery, RegularisationForecast,
        lambda app, query: app.regularisation.estimate(query.project, query.version, query.count, query.class_name),
    ),
    Route(
        "POST", "regularisation/generate", "Let the base model draw regularisation pictures of a class.",
        RegularisationBody, JobAnswer,
        lambda app, body: JobAnswer(
            app.regularisation.generate(
                body.project, body.version, body.class_name, body.prompt, body.negative_prompt, body.count
            )
        ),
    ),
    Route(
        "POST", "regularisation/upload", "Add regularisation pictures of a class, in base64, at most 64 MB each.",
        ClassUploadBody, ProblemsAnswer, _upload_regularisation, _UPLOAD_BODY_LIMIT_BYTES,
    ),
    Route(
        "POST", "regularisation/remove", "Move a folder of regularisation pictures to the trash.", FolderBody, Undo,
        lambda app, body: app.regularisation.remove_class(body.project, body.version, body.folder),
    ),
]  # fmt: skip

_CAPTIONS = [
    Route(
        "GET", "captioners", "What can write captions, and what does.", VersionQuery, CaptioningSnapshot,
        lambda app, query: app.captioning.choices(query.project, query.version),
    ),
    Route(
        "POST", "captioners/answer", "Say what writes captions where nothing is ticked; a model that is not there is "
        "downloaded, by the job that is given.", AnswerBody, JobAnswer,
        lambda app, body: JobAnswer(app.captioning.answer(body.choice)),
    ),
    Route(
        "POST", "captioners/download", "Download a captioner; no job is given for one that is there.",
        ModelBody, JobAnswer,
        lambda app, body: JobAnswer(app.captioning.download(body.model)),
    ),
    Route(
        "POST", "captions/make", "Caption pictures of the trained set.", MakeCaptionsBody, JobAnswer,
        _make_captions,
    ),
    Route(
        "POST", "captions/stop", "Stop writing captions; those that are written stay.", VersionBody, Nothing,
        lambda app, body: _nothing(app.captioning.stop(body.project, body.version)),
    ),
    Route(
        "GET", "captions", "The captions that a filter lets through, their tags, tokens, and what can be undone.",
        CaptionsQuery, CaptionsSnapshot,
        lambda app, query: app.captions.view(query.project, query.version, query.filter, query.mode, query.order),
    ),
    Route(
        "POST", "captions/preview", "What an edit would change; nothing is written.",
        CaptionsEditBody, list[CaptionChange],
        lambda app, body: app.captions.preview(body.project, body.version, body.operation, body.scope),
    ),
    Route(
        "POST", "captions/edit", "Change many captions in one step.", CaptionsEditBody, EditResult,
        lambda app, body: app.captions.edit(body.project, body.version, body.operation, body.scope),
    ),
    Route(
        "POST", "captions/undo", "Take the last edit of captions back.", VersionBody, EditResult,
        lambda app, body: app.captions.undo(body.project, body.version),
    ),
    Route(
        "POST", "captions/redo", "Do again what was undone last.", VersionBody, EditResult,
        lambda app, body: app.captions.redo(body.project, body.version),
    ),
    Route(
        "GET", "captions/trained-text", "Exactly what a picture is trained with in an epoch, and where it is cut.",
        TrainedTextQuery, TrainedText,
        lambda app, query: app.captions.trained_text(query.project, query.version, query.file, query.epoch),
    ),
]  # fmt: skip

_TRAINING = [
    Route(
        "GET", "base-models", "The models that can be chosen to train on.", Nothing, list[BaseModelChoice],
        lambda app, _: app.training.base_models(),
    ),
    Route(
        "POST", "base-models/refresh", "Look for models again, and give the list.", Nothing, list[BaseModelChoice],
        _refresh_base_models,
    ),
    Route(
        "GET", "base-model", "What a base model is, as its header tells.", BaseModelQuery, BaseModelSnapshot,
        lambda app, query: app.training.base_model(query.name),
    ),
    Route(
        "GET", "forecast", "What a training would do now: steps, expected seconds, problems.", VersionQuery, Forecast,
        lambda app, query: app.training.forecast(query.project, query.version),
    ),
    Route(
        "POST", "trains", "Put a training into the queue.", VersionBody, JobAnswer,
        lambda app, body: JobAnswer(app.training.begin(body.project, body.version)),
    ),
    Route(
        "GET", "trains", "The trainings of a version with their LoRAs.", VersionQuery, list[TrainSnapshot],
        lambda app, query: app.training.list(query.project, query.version),
    ),
    Route(
        "POST", "jobs/stop", "End a job early; a training saves its LoRA.", JobBody, Nothing,
        lambda app, body: _nothing(app.training.stop(body.job)),
    ),
    Route(
        "POST", "jobs/pause", "Pause a training and free the card.", JobBody, Nothing,
        lambda app, body: _nothing(app.training.pause(body.job)),
    ),
    Route(
        "POST", "jobs/kill", "End a job at once; steps since its last state are lost.", JobBody, Nothing,
        lambda app, body: _nothing(app.training.kill(body.job)),
    ),
    Route(
        "POST", "jobs/resume", "Let a training go on from its last state.", JobBody, Nothing,
        lambda app, body: _nothing(app.training.resume(body.job)),
    ),
    Route(
        "POST", "jobs/delete", "Move an ended training with its LoRAs to the trash.", JobBody, Undo,
        lambda app, body: app.training.delete(body.job),
    ),
    Route(
        "POST", "jobs/previews", "Draw previews of the LoRAs that have none.", JobBody, JobAnswer,
        lambda app, body: JobAnswer(app.training.draw_previews(body.job)),
    ),
    Route(
        "GET", "jobs/log", "What the job's worker printed last.", JobQuery, LogAnswer,
        lambda app, query: LogAnswer(app.training.log(query.job)),
    ),
    Route(
        "GET", "jobs/events", "The job's events after an offset, and the offset to go on from.",
        EventsQuery, EventsAnswer,
        lambda app, query: EventsAnswer(*app.training.events(query.job, query.offset)),
    ),
    Route(
        "GET", "jobs/status", "What the job does or did.", JobQuery, JobStatus,
        lambda app, query: app.status(JobFolder(app.workspace.find_job(query.job))),
    ),
    Route(
        "GET", "jobs/file", "A LoRA or a preview picture of a training.", FileQuery, FileAnswer,
        lambda app, query: StoredFile(app.training.file_path(query.job, query.file), query.download),
    ),
    Route(
        "POST", "loras/publish", "Copy a LoRA into the host's LoRA folder; gives its name in prompts.",
        LoraBody, NameAnswer,
        lambda app, body: NameAnswer(app.loras.publish(body.job, body.lora)),
    ),
    Route(
        "POST", "loras/unpublish", "Take a LoRA's copy out of the host's LoRA folder.", LoraBody, Undo,
        lambda app, body: app.loras.unpublish(body.job, body.lora),
    ),
    Route(
        "POST", "loras/delete", "Move a LoRA of a training to the trash.", LoraBody, Undo,
        lambda app, body: app.loras.delete(body.job, body.lora),
    ),
    Route(
        "GET", "queue", "The jobs that run and wait.", Nothing, list[QueueEntry],
        lambda app, _: app.queue.entries(),
    ),
    Route(
        "POST", "queue/move", "Move a waiting job to a place; 1 is the next to run.", PlaceBody, Nothing,
        lambda app, body: _nothing(app.queue.move(body.job, body.place)),
    ),
    Route(
        "POST", "queue/cancel", "Take a waiting job out of the queue.", JobBody, Nothing,
        lambda app, body: _nothing(app.queue.cancel(body.job)),
    ),
]  # fmt: skip

ROUTES: list[Route[Any, Any]] = [*_PROJECTS, *_DATASET, *_REGULARISATION, *_CAPTIONS, *_TRAINING]
