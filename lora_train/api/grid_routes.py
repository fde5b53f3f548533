"""Routes of previews: grids of pictures of finished LoRAs."""

from __future__ import annotations

from lora_train.api.route import Route, nothing
from lora_train.api.shapes import (
    FileAnswer,
    GridPictureQuery,
    JobBody,
    JobQuery,
    JobsAnswer,
    JpegPicture,
    LoraBody,
    Nothing,
    StoredFile,
    VersionBody,
    VersionQuery,
)
from lora_train.app import App
from lora_train.app.grid_snapshot import GridForecast, GridsSnapshot, GridTable
from lora_train.app.snapshot import Undo


def _picture(app: App, query: GridPictureQuery) -> FileAnswer:
    if query.size == "thumb":
        return JpegPicture(app.grids.thumbnail(query.job, query.file))
    return StoredFile(app.grids.file_path(query.job, query.file))


GRID_ROUTES = [
    Route(
        "POST", "grids", "Draw previews of every LoRA of a version; one job for each base model.",
        VersionBody, JobsAnswer,
        lambda app, body: JobsAnswer(app.grids.begin_all(body.project, body.version)),
    ),
    Route(
        "POST", "grids/train", "Draw previews of every LoRA of a training.", JobBody, JobsAnswer,
        lambda app, body: JobsAnswer(app.grids.begin_train(body.job)),
    ),
    Route(
        "POST", "grids/lora", "Draw previews of one LoRA of a training.", LoraBody, JobsAnswer,
        lambda app, body: JobsAnswer(app.grids.begin(body.job, body.lora)),
    ),
    Route(
        "POST", "grids/stop", "Stop drawing previews; those that are drawn stay.", JobBody, Nothing,
        lambda app, body: nothing(app.grids.stop(body.job)),
    ),
    Route(
        "POST", "grids/resume", "Go on drawing previews where a job has stopped.", JobBody, Nothing,
        lambda app, body: nothing(app.grids.resume(body.job)),
    ),
    Route(
        "POST", "grids/delete", "Move the previews of a job to the trash.", JobBody, Undo,
        lambda app, body: app.grids.delete(body.job),
    ),
    Route(
        "POST", "grids/delete_all", "Move all grids of a version to the trash; trainings keep their own previews.",
        VersionBody, Undo,
        lambda app, body: app.grids.delete_all(body.project, body.version),
    ),
    Route(
        "GET", "grids", "The jobs that draw and drew previews of a version, newest first.", VersionQuery, GridsSnapshot,
        lambda app, query: app.grids.snapshot(query.project, query.version),
    ),
    Route(
        "GET", "grids/forecast", "What drawing previews of every LoRA would take: pictures, seconds, problems.",
        VersionQuery, GridForecast,
        lambda app, query: app.grids.forecast(query.project, query.version),
    ),
    Route(
        "GET", "grids/table", "Every place of a job's grids, and its pictures.", JobQuery, GridTable,
        lambda app, query: app.grids.table(query.job),
    ),
    Route(
        "GET", "grids/picture", "A grid or single picture of a job, or its thumbnail.", GridPictureQuery, FileAnswer,
        _picture,
    ),
]  # fmt: skip
