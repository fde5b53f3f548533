"""Routes of a version's pictures."""

from __future__ import annotations

from pathlib import Path

from lora_train.api.route import Route, nothing
from lora_train.api.shapes import (
    CaptionBody,
    FileAnswer,
    JobAnswer,
    JpegPicture,
    Nothing,
    PathsBody,
    PictureBody,
    PictureQuery,
    ProblemsAnswer,
    ReplaceBody,
    StoredFile,
    UploadBody,
    VersionBody,
    VersionQuery,
)
from lora_train.api.uploading import UPLOAD_BODY_LIMIT_BYTES, too_large, within_limit
from lora_train.app import App
from lora_train.app.snapshot import DatasetSnapshot, Undo
from lora_train.core.errors import DatasetError
from lora_train.core.health import HealthReport


def _upload(app: App, body: UploadBody) -> ProblemsAnswer:
    files, problems = within_limit(body.files)
    return ProblemsAnswer(problems + app.datasets.add_bytes(body.project, body.version, files))


def _take_server_files(app: App, body: PathsBody) -> ProblemsAnswer:
    if not app.host.takes_paths():
        raise DatasetError(
            "This page can be reached from other machines, so it takes no paths of this one.", "Upload the pictures."
        )
    paths = [Path(path) for path in body.paths]
    return ProblemsAnswer(app.datasets.add(body.project, body.version, [(path.name, path) for path in paths]))


def _replace(app: App, body: ReplaceBody) -> Undo:
    if problem := too_large(body.name, body.content):
        raise DatasetError(problem)
    return app.datasets.replace_bytes(body.project, body.version, body.file, body.name, body.content)


def _picture(app: App, query: PictureQuery) -> FileAnswer:
    if query.size == "thumb":
        return JpegPicture(app.datasets.thumbnail(query.project, query.version, query.file, query.waiting))
    return StoredFile(app.datasets.picture_path(query.project, query.version, query.file, query.waiting))


DATASET_ROUTES = [
    Route(
        "GET", "dataset", "The pictures of a version with their captions.", VersionQuery, DatasetSnapshot,
        lambda app, query: app.datasets.snapshot(query.project, query.version),
    ),
    Route(
        "POST", "dataset/upload", "Add pictures, captions and zip archives, in base64, at most 64 MB each.",
        UploadBody, ProblemsAnswer, _upload, UPLOAD_BODY_LIMIT_BYTES,
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
        lambda app, body: nothing(app.datasets.stop_update(body.project, body.version)),
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
        lambda app, body: nothing(app.datasets.set_caption(body.project, body.version, body.file, body.caption)),
    ),
    Route(
        "POST", "dataset/remove", "Move a picture to the trash.", PictureBody, Undo,
        lambda app, body: app.datasets.remove(body.project, body.version, body.file),
    ),
    Route(
        "POST", "dataset/replace", "Put another picture in the place of one, whose caption stays; in base64.",
        ReplaceBody, Undo, _replace, UPLOAD_BODY_LIMIT_BYTES,
    ),
    Route(
        "GET", "dataset/picture", "A picture of the dataset, or its thumbnail.", PictureQuery, FileAnswer,
        _picture,
    ),
]  # fmt: skip
