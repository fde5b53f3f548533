"""Which routes there are, who gets in, and how wrong calls and failures are answered."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi import FastAPI

from lora_train.api import PageGate, add_routes
from lora_train.app import App
from lora_train.core.errors import ConfigError, WorkspaceError
from lora_train.core.workspace import Workspace

pytestmark = pytest.mark.compat

World = Any
Call = Callable[..., Any]
PREFIX = "/train-tools/v1/"
CONTRACT = {
    "GET": "version projects selection settings settings/schema dataset dataset/picture base-models base-model "
    "forecast sweeps sweeps/forecast trains jobs/log jobs/events jobs/status jobs/file queue live regularisation "
    "regularisation/estimate dataset/health captioners captions captions/trained-text "
    "presets presets/show presets/state presets/file grids grids/forecast grids/table grids/picture "
    "judge judge/forecast history/compare jobs/curves.csv jobs/curves.json jobs/report "
    "doctor doctor/report tasks tasks/answer",
    "POST": "projects projects/rename projects/delete versions versions/rename versions/duplicate versions/delete "
    "selection trash/restore settings dataset/upload dataset/server-files dataset/update "
    "dataset/update/stop dataset/caption dataset/remove base-models/refresh trains jobs/stop jobs/pause "
    "jobs/kill jobs/resume jobs/delete jobs/previews loras/publish loras/unpublish loras/delete "
    "sweeps sweeps/stop sweeps/grid "
    "queue/move queue/cancel regularisation/generate regularisation/upload regularisation/remove "
    "dataset/check captioners/answer captioners/download captions/make captions/stop dataset/replace captions/preview "
    "captions/edit captions/undo captions/redo presets/apply presets/undo presets/save presets/rename presets/delete "
    "presets/import grids grids/train grids/lora grids/stop grids/resume grids/delete grids/delete_all "
    "judge judge/choose judge/follow loras/publish-recommended loras/private loras/prove "
    "history/repeat history/use history/undo doctor tasks/stop tasks/close",
}
ALL_ROUTES = [(method, path) for method, paths in CONTRACT.items() for path in paths.split()]
PAGE_FILES = {"page.js", "page.css", "localizations/{language}.json"}


def test_the_routes_are_those_of_the_contract(world: World) -> None:
    found = {
        (method, route.path[len(PREFIX) :])
        for route in world.server.routes
        if getattr(route, "path", "").startswith(PREFIX)
        for method in route.methods  # type: ignore[attr-defined]
    }
    assert found == {*ALL_ROUTES, *(("GET", path) for path in PAGE_FILES)}


@pytest.mark.parametrize(("method", "path"), ALL_ROUTES)
def test_every_route_is_closed_to_strangers(empty_world: World, method: str, path: str) -> None:
    world = empty_world
    for headers in (
        {"X-Train-Tools": ""},
        {"X-Train-Tools": "wrong"},
        {"Cookie": "access-token=x", "X-Train-Tools": ""},
    ):
        answer = world.ask(method, path, headers, **({"json": {}} if method == "POST" else {}))
        assert answer.status_code == 401
        assert answer.json()["message"]
        assert "www-authenticate" not in answer.headers
    assert not world.app.workspace.root.exists(), "a stranger's call did something"
    assert world.asked == []


def test_the_page_s_own_files_are_no_secret(call: Call, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "javascript").mkdir()
    (tmp_path / "localizations").mkdir()
    (tmp_path / "javascript" / "train_tools.js").write_text("1", encoding="utf-8")
    (tmp_path / "localizations" / "ja_JP.json").write_text("{}", encoding="utf-8")
    (tmp_path / "secret.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr("lora_train.api.server.page_folder", lambda: tmp_path)
    server = FastAPI()
    add_routes(server, App(Workspace(tmp_path)), PageGate(list, lambda: True), lambda query: {})
    assert call(server, "GET", PREFIX + "page.js").headers["content-type"].startswith("text/javascript")
    assert call(server, "GET", PREFIX + "localizations/ja_JP.json").json() == {}
    for missing in ("page.css", "localizations/xx.json", "localizations/..%2Fsecret.json", "localizations/%00.json"):
        assert call(server, "GET", PREFIX + missing).status_code == 404


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "object"),
        (b"{}", "`name`"),
        (b'{"name": 5}', "$.name"),
        (b'{"name": "x", "nmae": "y"}', "`nmae`"),
        (b'{"name": "\xff"}', "projects"),
        (b"[" * 100_000, "projects"),
    ],
)
def test_a_body_of_the_wrong_shape_is_told(world: World, body: bytes, told: str) -> None:
    answer = world.ask("POST", "projects", {"Content-Type": "application/json"}, content=body)
    assert answer.status_code == 422
    assert told in answer.json()["message"]


@pytest.mark.parametrize(
    ("path", "wrong", "told"),
    [
        ("settings", {"project": "x"}, "`version`"),
        ("jobs/events", {"job": "x", "offset": "many"}, "$.offset"),
        ("jobs/events", {"job": "x", "offset": "-1"}, "$.offset"),
        ("jobs/events", {"job": "x", "offset": str(2**63)}, "$.offset"),
        ("dataset/picture", {"project": "x", "version": "y", "file": "z", "size": "huge"}, "$.size"),
        ("dataset/picture", {"project": "x", "version": "y", "file": "z", "waiting": "perhaps"}, "$.waiting"),
    ],
)
def test_a_wrong_query_is_told(world: World, path: str, wrong: dict[str, str], told: str) -> None:
    answer = world.ask("GET", path, params=wrong)
    assert answer.status_code == 422
    assert told in answer.json()["message"]


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_cannot_be_one_is_told(world: World, path: str) -> None:
    answer = world.ask("POST", "dataset/server-files", json={**world.ids, "paths": [path]})
    assert answer.status_code == 422
    assert "$.paths[" in answer.json()["message"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_a_body_that_other_sites_can_send_is_refused(world: World, kind: str) -> None:
    answer = world.ask("POST", "projects", {"Content-Type": kind}, content=b'{"name": "evil"}')
    assert answer.status_code == 415
    assert len(world.get("projects")) == 1
    fine = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert world.ask("POST", "projects", fine, content=b'{"name": "good"}').status_code == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_there(world: World) -> None:
    taken: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            taken.append(1)
            yield b" " * 65536

    headers = {"Content-Type": "application/json"}
    assert world.ask("POST", "projects", headers, content=endless()).status_code == 413
    assert len(taken) < 100
    taken.clear()
    announced = {**headers, "Content-Length": "999999999999"}
    assert world.ask("POST", "projects", announced, content=endless()).status_code == 413
    assert len(taken) <= 1
    answer = world.ask("POST", "projects", json={"name": "x" * 2_000_000})
    assert (answer.status_code, answer.json()["error"]) == (413, "TooLarge")


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (
            WorkspaceError("It is gone.", "Look elsewhere."),
            400,
            {"error": "WorkspaceError", "message": "It is gone.", "hint": "Look elsewhere."},
        ),
        (
            ConfigError(["one", "two"]),
            400,
            {"error": "ConfigError", "message": "one\ntwo", "hint": "", "problems": ["one", "two"]},
        ),
        (
            FileNotFoundError(2, "No such file", "/secret/place/a.png"),
            404,
            {"error": "NotFound", "message": "a.png does not exist."},
        ),
        (OSError(28, "No space left on device", "/x"), 500, {"error": "OSError"}),
        (ZeroDivisionError("secret detail"), 500, {"error": "ZeroDivisionError"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_goes_wrong_is_answered_in_words(
    world: World, monkeypatch: Any, error: Exception, status: int, expected: dict[str, Any]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(world.app.projects, "list", fail)
    answer = world.ask("GET", "projects")
    assert answer.status_code == status
    assert answer.json() | expected == answer.json()
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_our_own_mistakes_go_to_the_log_and_others_do_not(world: World, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(world.app.projects, "list", lambda: [][0])
    world.ask("GET", "projects")
    assert "IndexError" in caplog.text
    caplog.clear()
    assert world.ask("GET", "settings", params={"project": "no", "version": "no"}).status_code == 400
    assert caplog.text == ""


def test_a_gate_that_fails_is_closed(tmp_path: Path, call: Call) -> None:
    def broken() -> list[tuple[str, str]]:
        raise RuntimeError

    server = FastAPI()
    add_routes(server, App(Workspace(tmp_path)), PageGate(broken, lambda: True), lambda query: {})
    assert call(server, "GET", PREFIX + "version").status_code == 500


def test_calls_never_hold_up_the_server(world: World, monkeypatch: Any) -> None:
    threads: list[threading.Thread] = []
    monkeypatch.setattr(world.app.projects, "list", lambda: threads.append(threading.current_thread()) or [])
    world.ask("GET", "projects")
    assert threads[0] is not threading.main_thread()
