"""A training's history and files over HTTP."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

pytestmark = pytest.mark.compat

World = Any


def test_files_are_downloads(world: World) -> None:
    events = ev.EventWriter(JobFolder(world.train_dir).events_path)
    events.write(ev.Step(1000, 3, 0.25, 1e-4, 0.5))
    events.close()
    name = world.train_dir.name
    wanted = (
        ("jobs/curves.csv", f"{name}-curves.csv", "text/csv", b"1000,3,0.25,0.0001,0.5,,"),
        ("jobs/curves.json", f"{name}-curves.json", "application/json", b'"step": 1000'),
        ("jobs/report", f"{name}-report.html", "text/html", b"<!DOCTYPE html>"),
    )
    for route, file, media_type, content in wanted:
        answer = world.ask("GET", route, params={"job": world.train})
        assert answer.status_code == 200
        assert answer.headers["content-disposition"] == f"attachment; filename*=utf-8''{quote(file)}"
        assert answer.headers["content-type"].startswith(media_type)
        assert content in answer.content
        assert world.ask("GET", route, params={"job": "jobs/none"}).status_code == 400


def test_settings_compared_and_taken(world: World) -> None:
    told = world.get("history/compare", job=world.train, other=world.train)
    assert told["settings"] == []
    assert len(told["unknown"]) == 4
    before = world.get("settings", **world.ids)["train"]
    assert world.post("history/use", job=world.train) == {}
    assert world.post("history/undo", job=world.train) == {}
    assert world.get("settings", **world.ids)["train"] == before
    answer = world.ask("POST", "history/repeat", json={"job": world.train})
    assert answer.status_code == 400
    assert "did not note what it was made from" in answer.json()["message"]
