"""Every route of a server, as it lists them itself, under every way to log in: on the gradio that is installed."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("gradio")
pytest.importorskip("httpx")

from lora_train.api import TOKEN, PageGate, add_routes
from lora_train.app import App
from lora_train.core.workspace import Workspace

pytestmark = pytest.mark.compat

PREFIX = "/train-tools/v1/"
API_USER, PAGE_USER = ("api", "secret"), ("ann", "x")
_OPEN_TO_ALL = {"page.js", "page.css", "localizations/{language}.json"}
"""The page's own script, looks and words: the same for everybody."""


class Way(NamedTuple):
    """How a host was started."""

    gradio_auth: bool
    api_auth: bool
    page: bool = True

    def __str__(self) -> str:
        flags = [name for name, is_set in self._asdict().items() if is_set]
        return "+".join(flags)

    def lets_in(self, what: str) -> bool:
        """Whether a caller with this comes in."""
        if what in ("right password", "right password and wrong cookie"):
            return self.api_auth
        if what in ("cookie", "cookie and wrong password"):
            return self.gradio_auth
        return what == "token" and self.page and not self.gradio_auth


WAYS = [
    Way(gradio_auth, api_auth, page)
    for gradio_auth, api_auth, page in ((0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1), (0, 0, 0), (0, 1, 0))
]


class Site:
    """A running server, and what callers can send to it."""

    def __init__(self, client: Any, server: Any, app: App, way: Way) -> None:
        self.client = client
        self.server = server
        self.app = app
        good, expired = self._cookies() if way.gradio_auth else ("", "access-token=x")
        stranger = "access-token=stranger; access-token-unsecure=stranger"
        wrong_password = _basic(API_USER[0], "wrong")
        self.callers: dict[str, dict[str, str]] = {
            "nothing": {},
            "token": {"X-Train-Tools": TOKEN},
            "wrong token": {"X-Train-Tools": TOKEN[:-1]},
            "cookie": {"Cookie": good},
            "right password": _basic(*API_USER),
            "right password and wrong cookie": {**_basic(*API_USER), "Cookie": stranger},
            "wrong cookie": {"Cookie": stranger},
            "expired cookie": {"Cookie": expired},
            "the page's password": _basic(*PAGE_USER),
            "empty password": _basic("", ""),
            "password of nobody": _basic("nobody", API_USER[1]),
            "broken password": {"Authorization": "Basic %%%"},
            "password as bearer": {"Authorization": f"Bearer {API_USER[1]}"},
            "wrong password": wrong_password,
            "cookie and wrong password": {"Cookie": good, **wrong_password},
        }

    def routes(self) -> list[tuple[str, str]]:
        return [
            (method, route.path)
            for route in self.server.routes
            if getattr(route, "path", "").startswith(PREFIX) and route.path[len(PREFIX) :] not in _OPEN_TO_ALL
            for method in sorted(route.methods)
        ]

    def ask(self, method: str, path: str, headers: dict[str, str]) -> Any:
        """A call that gets no further than to the gate: no body that a POST would take."""
        return self.client.request(method, path, headers=headers, content=b"" if method == "POST" else None)

    def _cookies(self) -> tuple[str, str]:
        """A login that holds, and one that has ended."""
        return self._log_in(), self._ended(self._log_in())

    def _log_in(self) -> str:
        answer = self.client.post("/login", data={"username": PAGE_USER[0], "password": PAGE_USER[1]})
        assert answer.status_code == 200
        told = [cookie.partition(";")[0] for cookie in answer.headers.get_list("set-cookie")]
        self.client.cookies.clear()
        return "; ".join(told)

    def _ended(self, cookies: str) -> str:
        for cookie in cookies.split("; "):
            self.server.tokens.pop(cookie.partition("=")[2], None)
        return cookies


def _basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def open_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Way], Site]]:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio
    import httpx

    running: list[Any] = []

    def open_site(way: Way) -> Site:
        with gradio.Blocks(analytics_enabled=False) as page:
            gradio.HTML("page")
        auth = [PAGE_USER] if way.gradio_auth else None
        server, address, _ = page.launch(prevent_thread_lock=True, quiet=True, auth=auth, server_name="127.0.0.1")
        app = App(Workspace(tmp_path / "workspace"))
        pairs = [API_USER] if way.api_auth else []
        add_routes(server, app, PageGate(lambda: pairs, lambda: way.page), lambda query: {})
        client = httpx.Client(base_url=address, trust_env=False, timeout=30)
        running.extend((page, client))
        return Site(client, server, app, way)

    yield open_site
    for thing in reversed(running):
        thing.close()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_route_is_behind_the_host_s_login(
    open_site: Callable[[Way], Site], way: Way, count: Callable[[str, int], None]
) -> None:
    site = open_site(way)
    routes = site.routes()
    assert len(routes) > 100
    for what, headers in site.callers.items():
        for method, path in routes:
            answer = site.ask(method, path, headers)
            assert answer.status_code < 500, (what, method, path, answer.text)
            assert (answer.status_code not in (401, 429)) == way.lets_in(what), (what, method, path, answer.text)
            assert "www-authenticate" not in answer.headers
    assert not site.app.workspace.root.exists(), "somebody has made something"
    count("calls", len(site.callers) * len(routes))


def test_the_token_in_an_address_opens_pictures_and_changes_nothing(open_site: Callable[[Way], Site]) -> None:
    site = open_site(Way(gradio_auth=False, api_auth=False))
    for method, path in site.routes():
        answer = site.ask(method, f"{path}?token={TOKEN}", {})
        assert (answer.status_code == 401) == (method == "POST"), (method, path)


def test_no_address_can_try_many_passwords(open_site: Callable[[Way], Site]) -> None:
    site = open_site(Way(gradio_auth=True, api_auth=True))
    url = PREFIX + "version"
    statuses = [site.client.get(url, headers=_basic("api", f"guess {number}")).status_code for number in range(14)]
    assert statuses == [401] * 10 + [429] * 4
    assert site.client.get(url, headers=site.callers["right password"]).status_code == 429, "a guess that is right"
    assert site.client.get(url, headers=site.callers["cookie and wrong password"]).status_code == 200
    assert site.client.get(url, headers=site.callers["expired cookie"]).status_code == 401
