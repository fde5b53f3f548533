"""Routes of captions: what writes them, and the editor."""

from __future__ import annotations

from lora_train.api.route import Route, nothing
from lora_train.api.shapes import (
    AnswerBody,
    CaptionsEditBody,
    CaptionsQuery,
    JobAnswer,
    MakeCaptionsBody,
    ModelBody,
    Nothing,
    TrainedTextQuery,
    VersionBody,
    VersionQuery,
)
from lora_train.app import App
from lora_train.app.captions import CaptionChange, CaptionsSnapshot, EditResult, TrainedText
from lora_train.app.snapshot import CaptioningSnapshot


def _make_captions(app: App, body: MakeCaptionsBody) -> JobAnswer:
    return JobAnswer(app.captioning.start(body.project, body.version, tuple(body.files), body.policy))


CAPTION_ROUTES = [
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
        lambda app, body: JobAnswer(app.captioning.download(body.model, body.kind)),
    ),
    Route(
        "POST", "captions/make", "Caption pictures of the trained set.", MakeCaptionsBody, JobAnswer,
        _make_captions,
    ),
    Route(
        "POST", "captions/stop", "Stop writing captions; those that are written stay.", VersionBody, Nothing,
        lambda app, body: nothing(app.captioning.stop(body.project, body.version)),
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
