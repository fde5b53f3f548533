"""Routes of sweeps: what one would do, begun, listed, stopped. Their lists are settings of a version."""

from __future__ import annotations

from lora_train.api.route import Route, nothing
from lora_train.api.shapes import JobsAnswer, Nothing, SweepAnswer, SweepBody, VersionBody, VersionQuery
from lora_train.app import App
from lora_train.app.sweep_snapshot import SweepForecast, SweepSnapshot


def _draw_comparison(app: App, sweep: str) -> list[str]:
    loras = app.sweeps.comparison_loras(sweep)
    _, project, _, version, *_ = sweep.split("/")
    return app.grids.begin_loras(project, version, loras)


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
    Route(
        "POST", "sweeps/grid", "Draw the best LoRA of every run side by side.", SweepBody, JobsAnswer,
        lambda app, body: JobsAnswer(_draw_comparison(app, body.sweep)),
    ),
]  # fmt: skip
