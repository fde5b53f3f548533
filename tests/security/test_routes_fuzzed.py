"""Every route of the API, asked with what schemathesis makes of our own OpenAPI document, right and wrong.

Full: 100 cases for each of about 110 routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("schemathesis")

import schemathesis

from lora_train.api import TOKEN
from lora_train.api.routes import ROUTES

CASES = 100
PREFIX = "/train-tools/v1/"
_SLOWEST_S = 5.0
_OTHER_METHODS = ("HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "QUERY")
_WRONG_TYPES = ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json")
_NAMES = [*((route.method, route.path) for route in ROUTES), ("GET", "live")]


@pytest.fixture(scope="module")
def document(servers: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return servers.World(tmp_path_factory.mktemp("document")).server.openapi()


@pytest.fixture(scope="module")
def schema(document: dict[str, Any]) -> Any:
    return schemathesis.openapi.from_dict(document)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize(("method", "path"), _NAMES, ids=lambda value: value)
def test_every_route_answers_whatever_it_is_asked(
    world: Any,
    tree: Callable[..., dict[str, str]],
    document: dict[str, Any],
    schema: Any,
    loop: asyncio.AbstractEventLoop,
    without_workers: None,
    share: Callable[[int], int],
    count: Callable[[str, int], None],
    method: str,
    path: str,
) -> None:
    choose = random.Random(f"{method} {path}")
    world.host.lora_dir().mkdir(parents=True, exist_ok=True)  # where LoRAs are published; a WebUI has it
    before, workspace = _with_surroundings(world.root, tree), world.app.workspace.root
    content = tree(workspace, (workspace / "cache",))
    told = document["paths"][PREFIX + path][method.lower()]
    number = share(CASES)
    right, wrong = (_generate(schema[PREFIX + path][method], mode, number // 2) for mode in schemathesis.GenerationMode)
    cases = [*right, *wrong]
    cases += choose.choices(cases, k=number - len(cases))  # a route that takes nothing has few of its own
    for case in cases:
        request = _request(case, _known(world), choose)
        begun = time.monotonic()
        answer = _ask(loop, world.server, request)
        assert time.monotonic() - begun < _SLOWEST_S, request
        _check_answer(answer, request, told)
        if request["method"] not in ("POST", "GET"):
            assert answer.status_code == 405, request
    assert _with_surroundings(world.root, tree) == before, (
        "something else than the workspace and the LoRA folder was changed"
    )
    if method == "GET":
        assert tree(workspace, (workspace / "cache",)) == content, "a GET changed something"
    count("cases", number)


def _generate(operation: Any, mode: Any, number: int) -> list[Any]:
    """The same ones at every run."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis.errors import Unsatisfiable

    cases: list[Any] = []

    @seed(20261128)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def collect(case: Any) -> None:
        cases.append(case)

    with contextlib.suppress(Unsatisfiable):  # a route that takes nothing can't be asked wrongly
        collect()
    return cases[:number]


def _known(world: Any) -> dict[str, list[Any]]:
    """What exists, by the names that routes have for it: without it a call would not get far."""
    return {
        "project": [world.ids["project"]],
        "version": [world.ids["version"]],
        "job": [world.train, "jobs/1", world.train + "/../x"],
        "other": [world.train],
        "lora": ["猫-v1.safetensors"],
        "file": ["3_cat/a.png", "猫-v1.safetensors", "samples/猫-v1-grid.png", "../version.json"],
        "name": ["x", "con", "a/b", "猫-v1", "character"],
        "new_name": ["y", "..", "NUL.txt"],
        "folder": ["1_cat", "3_cat"],
        "files": [["3_cat/a.png"], ["../x"], []],
        "entry": ["", "..", "from.json"],
        "sweep": ["projects/x/versions/y/sweeps/z", world.train],
    }


def _request(case: Any, known: dict[str, list[Any]], choose: random.Random) -> dict[str, Any]:
    """The case as httpx takes it: often with names that exist, sometimes with another method, type or size."""
    sent = case.as_transport_kwargs()
    request: dict[str, Any] = {"method": case.method, "url": case.formatted_path, "headers": {"X-Train-Tools": TOKEN}}
    query = dict(case.query or {}) if isinstance(case.query, dict) else {}
    body = sent.get("json", sent.get("data", b""))
    for values in (query, body):
        for name in values if isinstance(values, dict) else ():
            if name in known and choose.random() < 0.7:
                values[name] = choose.choice(known[name])
    request["params"] = [(str(name), str(value)) for name, value in query.items()]
    if case.method == "POST":
        request["headers"]["Content-Type"] = "application/json"
        request["content"] = body if isinstance(body, bytes) else _encoded(body)
    strange = choose.random()
    request["params"].append(("token", "x" * choose.randrange(100)))
    if strange < 0.05:
        request["method"] = choose.choice(_OTHER_METHODS)
    elif strange < 0.10:
        request["headers"]["Content-Type"] = choose.choice(_WRONG_TYPES)
    elif strange < 0.12 and case.method == "POST":
        request["content"] = b'{"project":"' + b"x" * 2_000_000 + b'"}'
    return request


def _encoded(body: Any) -> bytes:
    return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else json.dumps(body).encode("utf-8")


def _ask(loop: asyncio.AbstractEventLoop, server: Any, request: dict[str, Any]) -> Any:
    import httpx

    async def go() -> Any:
        transport = httpx.ASGITransport(app=server)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(**request)

    return loop.run_until_complete(go())


def _check_answer(answer: Any, request: dict[str, Any], told: dict[str, Any]) -> None:
    """As the document tells, and never a failure of ours."""
    import jsonschema_rs  # comes with schemathesis

    shown = (answer.status_code, answer.text[:500], request)
    assert answer.status_code < 500, shown
    assert "Traceback" not in answer.text, shown
    if answer.status_code == 405 or request["method"] not in ("GET", "POST"):
        return  # FastAPI's own
    document = told["responses"]["200" if answer.status_code == 200 else "4XX"]["content"]
    schema = document.get("application/json", {}).get("schema")
    if answer.status_code != 304 and schema is not None:
        problem = next(iter(jsonschema_rs.validator_for(schema).iter_errors(answer.json())), None)
        assert problem is None, (str(problem), shown)


def _with_surroundings(root: Path, tree: Callable[..., dict[str, str]]) -> dict[str, str]:
    return tree(root, (root / "workspace", root / "models" / "Lora"))
