"""How large and how many calls may be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from lora_train.api import TOKEN, server
from lora_train.api.pace import NEXT_TRY_S, TRIES, Busy, Turns, WrongPasswords
from lora_train.api.route import Route
from lora_train.api.routes import ROUTES

pytestmark = pytest.mark.compat

PREFIX = "/train-tools/v1/"
_LARGEST_BYTES = 96 * 2**20


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_ten_passwords_at_once_then_ten_in_a_minute() -> None:
    clock = Clock()
    wrong = WrongPasswords(clock)
    tried = 0
    for _ in range(600):  # ten minutes of one try in each second
        if not wrong.are_too_many("1.2.3.4"):
            wrong.note("1.2.3.4")
            tried += 1
        clock.now_s += 1
    assert tried == pytest.approx(TRIES + 600 / NEXT_TRY_S, abs=2)
    assert not wrong.are_too_many("5.6.7.8"), "another address is not held up"
    clock.now_s += TRIES * NEXT_TRY_S
    assert not wrong.are_too_many("1.2.3.4")


def test_not_more_addresses_are_remembered_than_fit() -> None:
    wrong = WrongPasswords(Clock())
    for number in range(5000):
        wrong.note(str(number))
    assert len(wrong._free_at) == 1000
    assert "4999" in wrong._free_at


def test_calls_take_turns() -> None:
    async def many() -> tuple[int, int, int]:
        turns, at_work, most, refused = Turns(at_once=3, waiting=4), 0, 0, 0

        async def one() -> None:
            nonlocal at_work, most, refused
            try:
                async with turns.turn():
                    at_work += 1
                    most = max(most, at_work)
                    await asyncio.sleep(0.01)
                    at_work -= 1
            except Busy:
                refused += 1

        await asyncio.gather(*(one() for _ in range(10)))
        await one()  # all places are free again
        return at_work, most, refused

    assert asyncio.run(many()) == (0, 3, 3)


def test_a_flood_of_calls_leaves_the_host_its_threads(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much is told so; the others are all answered."""
    import httpx

    at_work, most, lock, go_on = 0, 0, threading.Lock(), threading.Event()

    def slow() -> list[Any]:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        go_on.wait(10)
        with lock:
            at_work -= 1
        return []

    monkeypatch.setattr(world.app.projects, "list", slow)

    async def flood() -> list[int]:
        transport = httpx.ASGITransport(app=world.server)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            asked = [
                asyncio.ensure_future(client.get(PREFIX + "projects", headers={"X-Train-Tools": TOKEN}))
                for _ in range(600)
            ]
            await asyncio.sleep(1)
            go_on.set()
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    statuses = asyncio.run(flood())
    assert most <= server._CALLS_AT_ONCE
    assert set(statuses) == {200, 429}
    assert statuses.count(200) == server._CALLS_AT_ONCE + server._WAITING


@pytest.mark.parametrize("route", [route for route in ROUTES if route.method == "POST"], ids=lambda route: route.path)
def test_no_body_is_read_past_its_limit(world: Any, route: Route[Any, Any]) -> None:
    """Also one that does not tell its length."""
    read_bytes = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read_bytes
        while True:
            read_bytes += 2**20
            yield b" " * 2**20

    assert route.body_limit_bytes <= _LARGEST_BYTES
    answer = world.ask("POST", route.path, {"Content-Type": "application/json"}, content=endless())
    assert answer.status_code == 413
    assert read_bytes <= route.body_limit_bytes + 2 * 2**20


def test_uploads_that_stall_give_their_turns_to_others(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    monkeypatch.setattr(server, "_STALL_LIMIT_S", 0.2)
    headers = {"X-Train-Tools": TOKEN, "Content-Type": "application/json"}

    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def in_parts() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(0.01)
        yield b"}"

    async def upload() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=world.server)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client:
            bodies = [*(stalled() for _ in range(server._UPLOADS_AT_ONCE)), in_parts()]
            return await asyncio.gather(*(client.post(PREFIX + "dataset/upload", content=body) for body in bodies))

    *refused, other = asyncio.run(asyncio.wait_for(upload(), 20))
    assert {answer.status_code for answer in refused} == {408}
    assert refused[0].json()["message"] == "Nothing more of the body came for 0.2 seconds."
    assert other.status_code == 422, "it was read, and is empty"
