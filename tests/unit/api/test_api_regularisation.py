"""Regularisation pictures over the API, over a real App."""

from __future__ import annotations

import base64
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

pytestmark = pytest.mark.compat

World = Any


def test_pictures_of_a_class_come_count_and_go(world: World) -> None:
    world.post("settings", **world.ids, train={"base_model": "demo", "epochs": 2})
    assert world.get("regularisation", **world.ids) == {"classes": [], "job": "", "status": None, "is_drawing": False}
    # One picture of 3 repeats in 2 epochs.
    told = world.get("regularisation/estimate", **world.ids, count=5, class_name="人物")
    assert (told["total_steps_without"], told["total_steps"], told["total_steps_with"]) == (6, 6, 12)

    content = base64.b64encode(world.png()).decode()
    caption = base64.b64encode("ある人".encode()).decode()
    files = [
        {"name": name, "content": own} for name, own in (("p.png", content), ("p.txt", caption), ("x.exe", caption))
    ]
    problems = world.post("regularisation/upload", **world.ids, class_name="人物", files=files)["problems"]
    assert len(problems) == 1
    (entry,) = world.get("regularisation", **world.ids)["classes"]
    assert entry == {"folder": "../reg/1_人物", "name": "人物", "repeats": 1, "count": 1}
    assert world.get("regularisation/estimate", **world.ids)["total_steps"] == 12
    shown = world.ask("GET", "dataset/picture", params={**world.ids, "file": "../reg/1_人物/p.png", "size": "thumb"})
    assert shown.status_code == 200
    assert shown.content[:2] == b"\xff\xd8"

    undo = world.post("regularisation/remove", **world.ids, folder=entry["folder"])
    assert world.get("regularisation", **world.ids)["classes"] == []
    world.post("trash/restore", entry=undo["entry"])
    assert world.get("regularisation", **world.ids)["classes"] == [entry]


def test_a_drawing_waits_in_the_queue(world: World) -> None:
    world.post("settings", **world.ids, train={"base_model": "demo"})
    body = {**world.ids, "class_name": "person", "prompt": "a person"}
    job = world.post("regularisation/generate", **body, count=3, negative_prompt="text")["job"]
    told = world.get("regularisation", **world.ids)
    assert (told["job"], told["is_drawing"], told["status"]["state"]) == (job, True, "waiting")
    assert [entry["kind"] for entry in world.get("queue")] == ["regularisation"]
    assert world.ask("POST", "regularisation/generate", json={**body, "count": 1}).status_code == 400
    assert world.post("jobs/stop", job=job) == {}
    assert not world.get("regularisation", **world.ids)["is_drawing"]


@pytest.mark.parametrize("change", [{"count": 0}, {"count": 1001}, {"prompt": ""}, {"class_name": "/"}])
def test_what_can_not_be_drawn(world: World, change: dict[str, Any]) -> None:
    world.post("settings", **world.ids, train={"base_model": "demo"})
    body = {**world.ids, "class_name": "person", "prompt": "a person", "count": 2, **change}
    answer = world.ask("POST", "regularisation/generate", json=body)
    assert answer.status_code == 400
    assert answer.json()["message"]
    assert world.get("queue") == []


@pytest.mark.parametrize("change", [{"count": 1.5}, {"count": "3"}, {"prompt": None}, {"steps": 3}])
def test_bodies_of_another_shape(world: World, change: dict[str, Any]) -> None:
    body = {**world.ids, "class_name": "person", "prompt": "a person", "count": 2, **change}
    assert world.ask("POST", "regularisation/generate", json=body).status_code in (400, 422)


def test_files_over_the_limit_are_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_train.api.uploading.UPLOAD_LIMIT_BYTES", 5_000)
    files = [
        {"name": name, "content": base64.b64encode(own).decode()}
        for name, own in (("large.png", bytes(6_000)), ("b.png", world.png()))
    ]
    problems = world.post("regularisation/upload", **world.ids, class_name="person", files=files)["problems"]
    assert len(problems) == 1
    assert "large.png" in problems[0]
    assert world.get("regularisation", **world.ids)["classes"][0]["count"] == 1
