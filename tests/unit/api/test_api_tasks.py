"""Calls that are answered before they are done, as `Prefer: respond-async` asks for (RFC 7240)."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

import httpx

from lora_train.api import TOKEN
from lora_train.app import tasks
from lora_train.app.snapshot import Undo
from lora_train.core.errors import WorkspaceError
from lora_train.core.progress import tell

pytestmark = pytest.mark.compat

World = Any
SOON = {"Prefer": "respond-async"}


@pytest.fixture
def may_end(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Copies of versions take until this is set."""
    may_end = threading.Event()
    duplicate = world.app.projects.duplicate_version

    def slow(*names: str) -> Any:
        assert may_end.wait(60)
        tell(1, 2)
        return duplicate(*names)

    monkeypatch.setattr(world.app.projects, "duplicate_version", slow)
    yield may_end
    may_end.set()


def begin(world: World, **headers: str) -> Any:
    return world.ask("POST", "versions/duplicate", {**SOON, **headers}, json={**world.ids, "name": "v2"})


def answer(world: World, task: str) -> Any:
    """The last one."""
    until = time.monotonic() + 60
    while (asked := world.ask("GET", "tasks/answer", params={"task": task})).status_code == 202:
        assert time.monotonic() < until
        assert asked.json() == {"task": task}
        time.sleep(0.02)
    return asked


def test_what_is_quick_is_answered_as_always(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "SOON_S", 60.0)
    done = begin(world)
    assert (done.status_code, done.json()["version"]) == (200, "v2")
    assert world.get("tasks") == []


def test_what_is_slow_is_asked_for_again(world: World, may_end: threading.Event) -> None:
    begun = begin(world, Prefer="wait=9, RESPOND-ASYNC; x=y")
    assert begun.status_code == 202
    task = begun.json()["task"]
    (told,) = world.get("tasks")
    assert (told["id"], told["has_ended"]) == (task, False)
    assert world.ask("GET", "tasks/answer", params={"task": task}).status_code == 202
    may_end.set()
    done = answer(world, task)
    assert (done.status_code, done.json()) == (200, {"project": world.ids["project"], "version": "v2"})
    gone = world.ask("GET", "tasks/answer", params={"task": task})
    assert (gone.status_code, gone.json()["message"]) == (400, "This is over already.")


def test_errors_are_those_of_the_call(world: World, may_end: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    slow: Callable[..., Any] = world.app.projects.duplicate_version

    def fail(*names: str) -> Any:
        slow(*names)
        raise WorkspaceError("The disk is full.", "Make room.")

    monkeypatch.setattr(world.app.projects, "duplicate_version", fail)
    task = begin(world).json()["task"]
    may_end.set()
    failed = answer(world, task)
    assert failed.status_code == 400
    assert failed.json() == {"error": "WorkspaceError", "message": "The disk is full.", "hint": "Make room."}


def test_stopped_and_closed(world: World, may_end: threading.Event) -> None:
    task = begin(world).json()["task"]
    assert world.post("tasks/close", task=task) == {}, "what goes on is not forgotten"
    assert world.post("tasks/stop", task=task) == {}
    may_end.set()
    stopped = answer(world, task)
    assert (stopped.status_code, stopped.json()["message"]) == (400, "It was stopped, as asked for.")
    for route in ("tasks/stop", "tasks/close"):
        assert world.ask("POST", route, json={"task": task}).json()["message"] == "This is over already."


def test_an_upload_keeps_its_turn_until_it_is_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds a large file in memory: not more of them than turns."""
    may_end = threading.Event()
    begun: list[str] = []

    def slow(project: str, version: str, file: str, name: str, content: bytes) -> Undo:
        begun.append(name)
        assert may_end.wait(60)
        return Undo(file, "entry")

    monkeypatch.setattr(world.app.datasets, "replace_bytes", slow)

    async def go() -> list[int]:
        transport = httpx.ASGITransport(app=world.server)
        headers = {"X-Train-Tools": TOKEN, **SOON}
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:

            def replace(number: int) -> Any:
                body = {**world.ids, "file": "3_cat/a.png", "name": f"{number}.png", "content": ""}
                return client.post("/train-tools/v1/dataset/replace", headers=headers, json=body)

            asked = [asyncio.create_task(replace(number)) for number in range(5)]
            done, waiting = await asyncio.wait(asked, timeout=5)
            assert (len(done), len(waiting), len(begun)) == (4, 1, 4)
            may_end.set()
            return [(await answer).status_code for answer in asked]

    assert sorted(asyncio.run(go())) == [200, 202, 202, 202, 202]
    assert len(begun) == 5


def test_who_does_not_ask_for_it_waits(world: World, may_end: threading.Event) -> None:
    threading.Timer(0.5, may_end.set).start()
    assert world.post("versions/duplicate", **world.ids, name="v2")["version"] == "v2"
