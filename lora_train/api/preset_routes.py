"""Routes of presets: applied to a version, and a person's own kept, shared and deleted."""

from __future__ import annotations

from lora_train.api.route import Route, nothing
from lora_train.api.shapes import (
    FileAnswer,
    NameBody,
    NameQuery,
    Nothing,
    PresetQuery,
    RenameBody,
    StoredFile,
    Upload,
    VersionBody,
    VersionNameBody,
    VersionQuery,
)
from lora_train.app.snapshot import AppliedPreset, ImportedPreset, PresetDetails, PresetEntry, PresetState, Undo

_FILE_BODY_LIMIT_BYTES = 2_000_000
"""Room for the largest preset in base64, which is a third longer."""


PRESET_ROUTES = [
    Route(
        "GET", "presets", "The presets of Train Tools, then a person's own.", Nothing, list[PresetEntry],
        lambda app, _: app.presets.list(),
    ),
    Route(
        "GET", "presets/show", "Every value of a preset for a family of base models, with its reason.",
        PresetQuery, PresetDetails,
        lambda app, query: app.presets.show(query.name, query.family),
    ),
    Route(
        "GET", "presets/state", "The preset of a version, what it changed, and what it has for another base model.",
        VersionQuery, PresetState,
        lambda app, query: app.presets.state(query.project, query.version),
    ),
    Route(
        "POST", "presets/apply", "Save a preset's values as settings of a version.", VersionNameBody, AppliedPreset,
        lambda app, body: app.presets.apply(body.project, body.version, body.name),
    ),
    Route(
        "POST", "presets/undo", "Put back what the preset of a version changed; settings that were changed since stay.",
        VersionBody, Nothing,
        lambda app, body: nothing(app.presets.undo(body.project, body.version)),
    ),
    Route(
        "POST", "presets/save", "Keep the training settings of a version under a name.", VersionNameBody, PresetEntry,
        lambda app, body: app.presets.save(body.name, body.project, body.version),
    ),
    Route(
        "POST", "presets/rename", "Rename a preset of one's own.", RenameBody, PresetEntry,
        lambda app, body: app.presets.rename(body.name, body.new_name),
    ),
    Route(
        "POST", "presets/delete", "Move a preset of one's own to the trash.", NameBody, Undo,
        lambda app, body: app.presets.delete(body.name),
    ),
    Route(
        "GET", "presets/file", "A preset's file, to give to others.", NameQuery, FileAnswer,
        lambda app, query: StoredFile(app.presets.file_path(query.name), is_download=True),
    ),
    Route(
        "POST", "presets/import", "Keep a preset that somebody made; what can't be used is told.",
        Upload, ImportedPreset,
        lambda app, body: app.presets.take_in(body.name, body.content),
        _FILE_BODY_LIMIT_BYTES,
    ),
]  # fmt: skip
