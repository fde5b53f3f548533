"""Routes of regularisation pictures."""

from __future__ import annotations

from lora_train.api.route import Route
from lora_train.api.shapes import (
    ClassUploadBody,
    FolderBody,
    JobAnswer,
    ProblemsAnswer,
    RegularisationBody,
    RegularisationQuery,
    VersionQuery,
)
from lora_train.api.uploading import UPLOAD_BODY_LIMIT_BYTES, within_limit
from lora_train.app import App
from lora_train.app.snapshot import RegularisationForecast, RegularisationSnapshot, Undo


def _upload_regularisation(app: App, body: ClassUploadBody) -> ProblemsAnswer:
    files, problems = within_limit(body.files)
    problems += app.regularisation.add_bytes(body.project, body.version, body.class_name, files)
    return ProblemsAnswer(problems)


REGULARISATION_ROUTES = [
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
        ClassUploadBody, ProblemsAnswer, _upload_regularisation, UPLOAD_BODY_LIMIT_BYTES,
    ),
    Route(
        "POST", "regularisation/remove", "Move a folder of regularisation pictures to the trash.", FolderBody, Undo,
        lambda app, body: app.regularisation.remove_class(body.project, body.version, body.folder),
    ),
]  # fmt: skip
