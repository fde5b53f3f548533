"""Pages of other sites, open in the same browser: they can send what a form can send, and read nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from lora_train.api import TOKEN
from lora_train.api.routes import ROUTES

pytestmark = pytest.mark.compat

PREFIX = "/train-tools/v1/"
FROM_ELSEWHERE = {
    "Origin": "https://evil.example",
    "Referer": "https://evil.example/",
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Mode": "no-cors",
}
POSTS = [route.path for route in ROUTES if route.method == "POST"]
GETS = [route.path for route in ROUTES if route.method == "GET"]
BODY = {"project": "猫 Cat", "version": "v1", "name": "evil", "job": "x", "file": "3_cat/a.png"}


@pytest.fixture
def logged_in(world: Any) -> Any:
    """A world whose page has a login, with the cookie that the browser adds to whatever is asked."""
    world.server.auth, world.server.tokens = {"ann": "x"}, {"good": "ann"}
    world.cookie = {"Cookie": "access-token-unsecure=good", "X-Train-Tools": ""}
    return world


def test_what_a_form_can_send_changes_nothing(
    logged_in: Any, tree: Callable[..., Any], count: Callable[[str, int], None]
) -> None:
    """Without asking first, a browser sends three content types, a body without one, and no header of ours."""
    world = logged_in
    before, text = tree(world.root), json.dumps(BODY)
    boundary = f'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n{text}\r\n--x--\r\n'
    bodies = {
        "text/plain": text,
        "text/plain; application/json": text,
        "application/x-www-form-urlencoded": urlencode(BODY),
        "application/x-www-form-urlencoded; charset=application/json": text,
        "multipart/form-data; boundary=x": boundary,
        "": text,
    }
    for path in POSTS:
        for kind, body in bodies.items():
            headers = {**world.cookie, **FROM_ELSEWHERE, "Content-Type": kind}
            assert world.ask("POST", path, headers, content=body.encode()).status_code == 415, (path, kind)
    assert tree(world.root) == before
    count("calls", len(POSTS) * len(bodies))


def test_nothing_is_changed_by_an_address(logged_in: Any, tree: Callable[..., Any]) -> None:
    """An image, a link or a redirect is a GET with the cookie: also one to a route that wants POST."""
    world = logged_in
    before = tree(world.root, (world.root / "workspace" / "cache",))
    for path in (*POSTS, *GETS):
        for method in ("GET", "HEAD"):
            status = world.ask(method, path, {**world.cookie, **FROM_ELSEWHERE}, params=BODY).status_code
            assert status < 500
            assert status == 405 or path in GETS, (path, status)
    assert tree(world.root, (world.root / "workspace" / "cache",)) == before


def test_a_site_that_asks_first_is_not_let_in(logged_in: Any) -> None:
    """JSON makes the browser ask (CORS); nobody answers that it may, nor that what came back may be read."""
    world = logged_in
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-train-tools"}
    for path in (*POSTS, *GETS):
        for method, headers in (("OPTIONS", asked), ("GET", {}), ("POST", {"Content-Type": "application/json"})):
            answer = world.ask(method, path, {**world.cookie, **FROM_ELSEWHERE, **headers})
            assert not [name for name in answer.headers if name.startswith("access-control-")], (path, method)
            assert method != "OPTIONS" or answer.status_code == 405


def test_a_page_without_login_is_closed_to_whoever_has_not_read_it(world: Any, tree: Callable[..., Any]) -> None:
    before = tree(world.root)
    for path in POSTS:
        headers = {**FROM_ELSEWHERE, "X-Train-Tools": "", "Content-Type": "application/json"}
        for url in (path, f"{path}?token={TOKEN}"):  # the token of an address opens pictures alone
            assert world.ask("POST", url, headers, json=BODY).status_code == 401
    assert tree(world.root) == before


def test_answers_are_kept_by_nobody_and_taken_for_nothing_else(world: Any) -> None:
    """A picture that is a page in disguise is never shown as one."""
    for path in GETS:
        answer = world.ask("GET", path, params=BODY)
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert answer.headers["cache-control"] in ("no-store", "private"), path
        shown = answer.headers["content-type"].partition(";")[0]
        is_kept = answer.headers.get("content-disposition", "").startswith("attachment")
        assert is_kept or shown == "application/json" or shown.startswith("image/"), (path, shown)
        assert shown != "image/svg+xml"
