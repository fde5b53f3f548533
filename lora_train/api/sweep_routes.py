"""Routes of sweeps: what one would do, begun, listed, stopped. Their lists are settings of a version."""

from __future__ import annotations

from lora_train.api.route import Route, nothing
from lora_train.api.shapes import Nothing, SweepAnswer, SweepBody, VersionBody, VersionQuery
from lora_train.app.sweep_snapshot import SweepForecast, SweepSnapshot

SWEEP_ROUTES = [
    Route(
        "GET", "sweeps/forecast", "What a sweep would do now: runs, steps, time, disk, plan, problems.",
        VersionQuery, SweepForecast,
        lambda app, query: app.sweeps.forecast(query.project, query.version),
    ),
    Route(
        "POST", "sweeps", "Put a training for every combination into the queue.", VersionBody, SweepAnswer,
        lambda app, body: SweepAnswer(app.sweeps.begin(body.project, body.version)),
    ),
    Route(
        "GET", "sweeps", "The sweeps of a version, each with a row for every run.", VersionQuery, list[SweepSnapshot],
        lambda app, query: app.sweeps.list(query.project, query.version),
    ),
    Route(
        "POST", "sweeps/stop", "End a sweep: what waits leaves the queue, what runs saves its LoRA.",
        SweepBody, Nothing,
        lambda app, body: nothing(app.sweeps.stop_all(body.sweep)),
    ),
]  # fmt: skip
