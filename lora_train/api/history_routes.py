"""Routes of a training's history, and of what is told of it as files."""

from __future__ import annotations

from lora_train.api.route import Route, nothing
from lora_train.api.shapes import (
    CompareQuery,
    FileAnswer,
    JobAnswer,
    JobBody,
    JobQuery,
    LongTextFile,
    Nothing,
    RepeatBody,
)
from lora_train.app import App
from lora_train.app.history_snapshot import Comparison
from lora_train.app.reports import HTML_START
from lora_train.core.curve_table import CSV_START, JSON_START


def _csv(app: App, query: JobQuery) -> FileAnswer:
    name = f"{app.reports.name(query.job)}-curves.csv"
    return LongTextFile(name, CSV_START, lambda: app.reports.curve_csv(query.job), "text/csv")


def _json(app: App, query: JobQuery) -> FileAnswer:
    name = f"{app.reports.name(query.job)}-curves.json"
    return LongTextFile(name, JSON_START, lambda: app.reports.curve_json(query.job), "application/json")


def _report(app: App, query: JobQuery) -> FileAnswer:
    name = f"{app.reports.name(query.job)}-report.html"
    return LongTextFile(name, HTML_START, lambda: app.reports.html(query.job), "text/html")


HISTORY_ROUTES = [
    Route(
        "POST", "history/repeat", "Queue a training with all that made this one.", RepeatBody, JobAnswer,
        lambda app, body: JobAnswer(app.history.repeat(body.job, body.anyway)),
    ),
    Route(
        "POST", "history/use", "Make a training's settings those of its version.", JobBody, Nothing,
        lambda app, body: nothing(app.history.use_settings(body.job)),
    ),
    Route(
        "POST", "history/undo", "Put the settings back that were the version's before.", JobBody, Nothing,
        lambda app, body: nothing(app.history.undo_settings(body.job)),
    ),
    Route(
        "GET", "history/compare", "How another training differs from a training.", CompareQuery, Comparison,
        lambda app, query: app.history.compare(query.job, query.other),
    ),
    Route("GET", "jobs/curves.csv", "Every step and validation of a training.", JobQuery, FileAnswer, _csv),
    Route("GET", "jobs/curves.json", "Every step and validation of a training.", JobQuery, FileAnswer, _json),
    Route("GET", "jobs/report", "A training as one page that opens by itself.", JobQuery, FileAnswer, _report),
]  # fmt: skip
