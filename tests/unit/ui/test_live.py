"""What the page's script is told: only what it does not show yet, and never an error for a missing version."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_train.app import App
from lora_train.app.captions import CaptionsSnapshot
from lora_train.app.doctor import DoctorSnapshot
from lora_train.app.grid_snapshot import GridForecast, GridsPage
from lora_train.app.judging import JudgeSnapshot
from lora_train.app.snapshot import (
    CaptioningSnapshot,
    DatasetSnapshot,
    Forecast,
    PresetState,
    QueueEntry,
    RegularisationForecast,
    RegularisationSnapshot,
    Selection,
    Snapshot,
)
from lora_train.app.sweep_snapshot import SweepForecast
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError, ModelError, TrainToolsError
from lora_train.core.health import HealthReport
from lora_train.core.jobs import JobStatus
from lora_train.core.workspace import Workspace
from lora_train.ui.live import live

PARTS = {
    *("dataset", "sum", "optimizers", "progress", "queue", "results", "sweep_sum", "sweeps", "judge"),
    *(
        "captioning",
        "captions",
        "health",
        "regularisation",
        "preset",
        "presets",
        "grids",
        "grids_sum",
        "doctor",
        "tasks",
    ),
}
SHOWN = {"project": "Cat", "version": "v1"}


def fake_app(snapshot: Snapshot, forecast: Callable[[str, str], Forecast] = lambda *_: Forecast()) -> Any:
    asked: list[tuple[str, ...]] = []

    def take(*ids: str) -> Snapshot:
        asked.append(ids)
        return snapshot

    return SimpleNamespace(
        snapshot=take,
        existing=lambda *_: snapshot.selection,
        tasks=SimpleNamespace(entries=list),
        training=SimpleNamespace(forecast=forecast),
        settings=SimpleNamespace(effective=lambda *_: TrainSettings()),
        optimizers=SimpleNamespace(entries=lambda *_: []),
        datasets=SimpleNamespace(needs_captions=lambda *_: False, glancing=nullcontext),
        captioning=SimpleNamespace(choices=lambda *_: CaptioningSnapshot(captioners=[])),
        presets=SimpleNamespace(state=lambda *_: PresetState(), list=list),
        captions=SimpleNamespace(view=lambda *_: CaptionsSnapshot()),
        sweeps=SimpleNamespace(forecast=lambda *_: SweepForecast(), list=lambda *_: []),
        health=SimpleNamespace(report=lambda *_: HealthReport()),
        regularisation=SimpleNamespace(
            snapshot=lambda *_: RegularisationSnapshot(), estimate=lambda *_: RegularisationForecast()
        ),
        grids=SimpleNamespace(page=lambda *_: GridsPage(), forecast=lambda *_: GridForecast()),
        judging=SimpleNamespace(snapshot=lambda *_: JudgeSnapshot()),
        doctor=SimpleNamespace(snapshot=DoctorSnapshot),
        asked=asked,
    )


def test_everything_the_first_time_and_nothing_the_second() -> None:
    app = fake_app(Snapshot(Selection("Cat", "v1"), loras_revision=3))
    first = live(app, {**SHOWN, "train": "t"})
    assert app.asked == [("Cat", "v1", "t")]
    assert set(first["fragments"]) == set(first["marks"]) == PARTS
    assert first["loras_revision"] == 3
    assert first["selection"] == {"project": "Cat", "version": "v1"}
    json.dumps(first)
    second = live(app, {**SHOWN, "seen": ",".join(first["marks"].values())})
    assert second["fragments"] == {}
    assert second["marks"] == first["marks"]


@pytest.mark.parametrize(("asked", "page"), [("", 1), ("3", 3), ("0", 1), ("-1", 1), ("x", 1)])
def test_the_page_of_previews_that_is_asked_for(asked: str, page: int) -> None:
    app = fake_app(Snapshot(Selection("Cat", "v1")))
    pages: list[int] = []
    app.grids.page = lambda *given: pages.append(given[2]) or GridsPage()
    live(app, {**SHOWN, "parts": "grids", "grids": asked})
    assert pages == [page]


def test_only_what_is_in_sight() -> None:
    answer = live(fake_app(Snapshot(Selection("Cat", "v1"))), {**SHOWN, "parts": "queue,message,captions"})
    assert set(answer["fragments"]) == set(answer["marks"]) == {"queue", "captions"}


def test_a_filter_that_can_not_be_read_is_told() -> None:
    app = fake_app(Snapshot(Selection("Cat", "v1")))

    def refuse(*_: str) -> CaptionsSnapshot:
        raise ConfigError(["The filter can't be read."])

    app.captions.view = refuse
    html = live(app, {**SHOWN, "filter": '"', "order": "wrong"})["fragments"]["captions"]
    assert "The filter can&#x27;t be read." in html


def test_only_what_changed() -> None:
    marks = live(fake_app(Snapshot(Selection("Cat", "v1"))), SHOWN)["marks"]
    queue = [QueueEntry("job", "Dog v1", "train", "waiting")]
    answer = live(fake_app(Snapshot(Selection("Cat", "v1"), queue=queue)), {**SHOWN, "seen": ",".join(marks.values())})
    assert set(answer["fragments"]) == {"queue"}
    assert "Dog v1" in answer["fragments"]["queue"]


def test_equal_parts_have_marks_of_their_own() -> None:
    marks = live(fake_app(Snapshot(Selection())), {})["marks"]
    assert len(set(marks.values())) == len(PARTS)


@pytest.mark.parametrize(
    ("snapshot", "is_busy"),
    [
        (Snapshot(Selection()), False),
        (Snapshot(Selection(), queue=[QueueEntry("a", "a", "train", "waiting")]), True),
        (Snapshot(Selection(), dataset=DatasetSnapshot(update=JobStatus(state="running"))), True),
        (Snapshot(Selection(), dataset=DatasetSnapshot(update=JobStatus(state="finished"))), False),
    ],
)
def test_busy(snapshot: Snapshot, is_busy: bool) -> None:
    assert live(fake_app(snapshot), {})["busy"] is is_busy


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigError(["Rank is too high.", "Choose a base model."]), ["Rank is too high.", "Choose a base model."]),
        (ModelError("No such file.", "Choose another."), ["No such file.", "Choose another."]),
    ],
)
def test_why_there_is_no_sum(error: TrainToolsError, told: list[str]) -> None:
    def refuse(project: str, version: str) -> Forecast:
        raise error

    html = live(fake_app(Snapshot(Selection("Cat", "v1")), refuse), SHOWN)["fragments"]["sum"]
    assert all(f">{sentence}<" in html for sentence in told)


@pytest.mark.parametrize("given", ["", "x", "1", "-0.1", "nan", "inf"])
def test_a_wrong_smoothing_is_the_default(given: str) -> None:
    app = fake_app(Snapshot(Selection("Cat", "v1")))
    assert live(app, {**SHOWN, "smoothing": given}) == live(app, SHOWN)


def test_an_unknown_version_is_no_error(tmp_path: Path) -> None:
    for query in ({}, {"project": "gone", "version": "v9", "train": "nothing"}, {"project": "..", "version": "/"}):
        answer = live(App(Workspace(tmp_path)), query)
        assert answer["selection"]["version"] == ""
        assert "Create a project" in answer["fragments"]["dataset"]
