"""Routes of trainings, their LoRAs, and the queue."""

from __future__ import annotations

from lora_train.api.route import Route, nothing
from lora_train.api.shapes import (
    BaseModelQuery,
    EventsAnswer,
    EventsQuery,
    FileAnswer,
    FileQuery,
    JobAnswer,
    JobBody,
    JobQuery,
    LogAnswer,
    LoraBody,
    NameAnswer,
    Nothing,
    PlaceBody,
    StoredFile,
    VersionBody,
    VersionQuery,
)
from lora_train.app import App
from lora_train.app.snapshot import BaseModelSnapshot, Forecast, QueueEntry, TrainSnapshot, Undo
from lora_train.core.host import BaseModelChoice
from lora_train.core.jobs import JobFolder, JobStatus


def _refresh_base_models(app: App, _: Nothing) -> list[BaseModelChoice]:
    app.host.refresh_base_models()
    return app.base_models.offered()


TRAINING_ROUTES = [
    Route(
        "GET", "base-models", "The models that can be chosen to train on.", Nothing, list[BaseModelChoice],
        lambda app, _: app.base_models.offered(),
    ),
    Route(
        "POST", "base-models/refresh", "Look for models again, and give the list.", Nothing, list[BaseModelChoice],
        _refresh_base_models,
    ),
    Route(
        "GET", "base-model", "What a base model is, as its header tells.", BaseModelQuery, BaseModelSnapshot,
        lambda app, query: app.base_models.look(query.name),
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
        lambda app, body: nothing(app.training.stop(body.job)),
    ),
    Route(
        "POST", "jobs/pause", "Pause a training and free the card.", JobBody, Nothing,
        lambda app, body: nothing(app.training.pause(body.job)),
    ),
    Route(
        "POST", "jobs/kill", "End a job at once; steps since its last state are lost.", JobBody, Nothing,
        lambda app, body: nothing(app.training.kill(body.job)),
    ),
    Route(
        "POST", "jobs/resume", "Let a training go on from its last state.", JobBody, Nothing,
        lambda app, body: nothing(app.training.resume(body.job)),
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
        "GET", "jobs/events", "The job's events after an offset, a megabyte at most, and the offset to go on from.",
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
        "POST", "loras/prove", "Read a LoRA's copy in the LoRA folder back, and draw with it.", LoraBody, JobAnswer,
        lambda app, body: JobAnswer(app.proofs.begin(body.job, body.lora)),
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
        lambda app, body: nothing(app.queue.move(body.job, body.place)),
    ),
    Route(
        "POST", "queue/cancel", "Take a waiting job out of the queue.", JobBody, Nothing,
        lambda app, body: nothing(app.queue.cancel(body.job)),
    ),
]  # fmt: skip
