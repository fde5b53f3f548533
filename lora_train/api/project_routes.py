"""Routes of projects, versions and their settings."""

from __future__ import annotations

from lora_train import __version__
from lora_train.api.route import Route
from lora_train.api.shapes import (
    EntryBody,
    NameBody,
    Nothing,
    ProblemsAnswer,
    ProjectBody,
    ProjectNameBody,
    SchemaAnswer,
    SettingsAnswer,
    SettingsBody,
    VersionAnswer,
    VersionBody,
    VersionNameBody,
    VersionQuery,
)
from lora_train.app import App
from lora_train.app.snapshot import ProjectEntry, Selection, Undo
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.grid_settings import GridSettings
from lora_train.core.settings import setting_fields
from lora_train.core.sweep_settings import SweepSettings


def _settings(app: App, query: VersionQuery) -> SettingsAnswer:
    return SettingsAnswer(
        train=app.settings.train(query.project, query.version),
        dataset=app.settings.dataset(query.project, query.version),
        caption=app.settings.caption(query.project, query.version),
        preview=app.settings.preview(query.project, query.version),
        sweep=app.settings.sweep(query.project, query.version),
        notes=app.settings.notes(query.project, query.version),
    )


def _save_settings(app: App, body: SettingsBody) -> ProblemsAnswer:
    return ProblemsAnswer(
        app.settings.save(body.project, body.version, body.train, body.dataset, body.caption, body.preview, body.sweep)
    )


PROJECT_ROUTES = [
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
        lambda _app, _: SchemaAnswer(
            *map(setting_fields, (TrainSettings, DatasetSettings, CaptionSettings, GridSettings, SweepSettings))
        ),
    ),
]  # fmt: skip
