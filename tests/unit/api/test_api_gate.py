"""Who may call the API: every way a host can be started, and every way to knock."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi import FastAPI, Request

from lora_train.api import TOKEN, PageGate

pytestmark = pytest.mark.compat

Ask = Callable[..., str]
PAIRS = [("ann", "pass:word"), ("田中", "秘密")]
TOKEN_HEADER = {"X-Train-Tools": TOKEN}


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def server(
    *,
    pairs: Sequence[tuple[str, str]] = (),
    has_page: bool = True,
    auth: Any = None,
    cookie_id: str | None = None,
    tokens: Mapping[str, str] | None = None,
) -> FastAPI:
    """What a host's server looks like to the gate: gradio puts its login onto the app."""
    app = FastAPI()
    if has_page:
        app.tokens = dict(tokens or {})  # type: ignore[attr-defined]
        app.auth = auth  # type: ignore[attr-defined]
        if cookie_id is not None:
            app.cookie_id = cookie_id  # type: ignore[attr-defined]
    add_asked(app, PageGate(lambda: pairs, lambda: has_page))
    return app


def add_asked(app: FastAPI, gate: PageGate) -> None:
    async def asked(request: Request) -> str:
        return gate.check(request) or ""

    app.add_api_route("/asked", asked, methods=["GET", "POST"])


@pytest.fixture
def ask(call: Callable[..., Any]) -> Ask:
    """Why a caller may not; empty where it may."""

    def ask(
        app: FastAPI,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
        query: str = "",
        method: str = "GET",
    ) -> str:
        cookie = "; ".join(f"{name}={value}" for name, value in (cookies or {}).items())
        answer = call(app, method, "/asked" + query, headers={**(headers or {}), "Cookie": cookie})
        assert answer.status_code == 200
        return answer.json()

    return ask


@pytest.mark.parametrize("pairs", [[], PAIRS])
def test_a_page_without_login_is_called_with_its_token(ask: Ask, pairs: list[tuple[str, str]]) -> None:
    app = server(pairs=pairs)
    assert ask(app, TOKEN_HEADER) == ""
    assert ask(app, query=f"?token={TOKEN}") == ""
    assert "Reload" in ask(app)
    assert "Reload" in ask(app, {"X-Train-Tools": TOKEN[:-1]})
    assert "Reload" in ask(app, {"X-Train-Tools": ""}, query="?token=")
    assert "Reload" in ask(app, cookies={"access-token": TOKEN})


def test_the_address_carries_a_token_for_pictures_only(ask: Ask) -> None:
    app = server()
    assert ask(app, query=f"?token={TOKEN}") == ""
    assert "Reload" in ask(app, query=f"?token={TOKEN}", method="POST")
    assert ask(app, TOKEN_HEADER, method="POST") == ""


@pytest.mark.parametrize("cookie_id", [None, "Ab-1_x"], ids=["gradio3", "gradio4"])
@pytest.mark.parametrize("name", ["access-token", "access-token-unsecure"])
def test_a_page_with_login_is_called_with_its_cookie(ask: Ask, cookie_id: str | None, name: str) -> None:
    app = server(auth={"ann": "x"}, cookie_id=cookie_id, tokens={"good": "ann"})
    other = "access-token-unsecure" if name == "access-token" else "access-token"
    suffix = f"-{cookie_id}" if cookie_id else ""
    assert ask(app, cookies={name + suffix: "good"}) == ""
    assert ask(app, cookies={name + suffix: "good", other + suffix: "stale"}) == "", "a stale one hides the good one"
    for cookies in ({}, {name + suffix: "stale"}, {name + suffix: ""}, {f"{name}-other": "good"}):
        assert "Log in" in ask(app, cookies=cookies)
    if cookie_id:
        assert "Log in" in ask(app, cookies={name: "good"})


def test_a_login_is_not_passed_by_with_the_token(ask: Ask) -> None:
    app = server(auth={"ann": "x"}, tokens={"good": "ann"})
    assert "Log in" in ask(app, TOKEN_HEADER)
    assert "Log in" in ask(app, TOKEN_HEADER, {"access-token": "stale"}, query=f"?token={TOKEN}")
    assert ask(app, TOKEN_HEADER, {"access-token": "good"}) == ""


def test_a_login_that_is_a_function_is_a_login(ask: Ask) -> None:
    assert "Log in" in ask(server(auth=lambda user, password: True), TOKEN_HEADER)


@pytest.mark.parametrize("auth", [None, {"ann": "x"}], ids=["open page", "login"])
@pytest.mark.parametrize("has_page", [True, False], ids=["page", "no page"])
def test_the_api_users_may_always_call(ask: Ask, auth: Any, has_page: bool) -> None:
    app = server(pairs=PAIRS, auth=auth, has_page=has_page)
    for user, password in PAIRS:
        assert ask(app, basic(user, password)) == ""
    for wrong in (
        basic("ann", "秘密"),
        basic("ann", ""),
        basic("", ""),
        basic("ann", "pass"),
        {"Authorization": "Basic"},
        {"Authorization": "Basic %%%"},
        {"Authorization": "Basic /w=="},
        {"Authorization": "Bearer " + base64.b64encode(b"ann:pass:word").decode()},
    ):
        assert ask(app, wrong) != ""


def test_nobody_is_an_api_user_where_none_is_configured(ask: Ask) -> None:
    for pairs in ([], [("", "")]):
        assert ask(server(pairs=pairs), basic("", "")) != ""
        assert ask(server(pairs=pairs, has_page=False), basic("", "")) != ""


def test_without_a_page_only_the_api_users_may_call(ask: Ask) -> None:
    assert "HTTP Basic" in ask(server(pairs=PAIRS, has_page=False), TOKEN_HEADER)
    assert "--api-auth" in ask(server(has_page=False), TOKEN_HEADER)


def test_a_page_that_is_mounted_has_its_own_login(ask: Ask) -> None:
    app = FastAPI()
    page = FastAPI()
    page.tokens, page.auth = {"good": "ann"}, {"ann": "x"}  # type: ignore[attr-defined]
    app.mount("/page", page)
    add_asked(app, PageGate(list, lambda: True))
    assert "Log in" in ask(app, TOKEN_HEADER)
    assert ask(app, cookies={"access-token": "good"}) == ""


def test_a_page_whose_login_is_unknown_is_closed(ask: Ask) -> None:
    app = FastAPI()
    add_asked(app, PageGate(list, lambda: True))
    assert ask(app, TOKEN_HEADER) != ""
    strange = server()
    strange.auth_dependency = SimpleNamespace()  # type: ignore[attr-defined]
    assert "Log in" in ask(strange, TOKEN_HEADER)


def test_the_login_is_asked_of_the_app_that_runs_now(ask: Ask) -> None:
    """A Reload UI makes a new app; the gate stays the same object."""
    gate = PageGate(list, lambda: True)
    first, second = FastAPI(), FastAPI()
    for app, tokens in ((first, {"old": "ann"}), (second, {"new": "ann"})):
        app.tokens, app.auth = tokens, {"ann": "x"}  # type: ignore[attr-defined]
        add_asked(app, gate)
    assert ask(first, cookies={"access-token": "old"}) == ""
    assert "Log in" in ask(second, cookies={"access-token": "old"})
    assert ask(second, cookies={"access-token": "new"}) == ""
