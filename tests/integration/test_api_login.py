"""The gate in front of real gradio pages: their own login is ours. Run it with every generation of gradio."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("httpx")

from lora_train.api import TOKEN, PageGate, add_routes
from lora_train.app import App
from lora_train.core.workspace import Workspace

URL = "/train-tools/v1/projects"
USERS = [("api", "secret")]

pytestmark = pytest.mark.compat


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: Any) -> Any:
    """Starts a page as hosts do, adds our routes, and gives a client of it."""
    monkeypatch.setitem(os.environ, "GRADIO_ANALYTICS_ENABLED", "False")
    import gradio
    import httpx

    running: list[Any] = []

    def launch(auth: list[tuple[str, str]] | None = None) -> Any:
        with gradio.Blocks(analytics_enabled=False) as page:
            gradio.HTML("page")
        app, address, _ = page.launch(prevent_thread_lock=True, quiet=True, auth=auth, server_name="127.0.0.1")
        running.append(page)
        add_routes(app, App(Workspace(tmp_path)), PageGate(lambda: USERS, lambda: True), lambda query: {})
        client = httpx.Client(base_url=address, trust_env=False)
        running.append(client)
        return client

    yield launch
    for thing in reversed(running):
        thing.close()


def test_a_page_without_login(launch: Any) -> None:
    client = launch()
    assert client.get(URL).status_code == 401
    answer = client.get(URL, headers={"X-Train-Tools": TOKEN})
    assert (answer.status_code, answer.json()) == (200, [])
    assert client.get(URL, auth=("api", "secret")).status_code == 200
    assert client.get(URL, auth=("api", "wrong")).status_code == 401
    made = client.post(URL, json={"name": "猫"}, headers={"X-Train-Tools": TOKEN})
    assert (made.status_code, made.json()) == (200, {"project": "猫", "version": ""})
    assert client.get(URL, params={"token": TOKEN}).json()[0]["name"] == "猫"


def test_a_page_with_login(launch: Any) -> None:
    client = launch(auth=[("ann", "x")])
    assert client.get(URL).status_code == 401
    answer = client.get(URL, headers={"X-Train-Tools": TOKEN})
    assert answer.status_code == 401
    assert "Log in" in answer.json()["message"]
    assert "www-authenticate" not in answer.headers
    client.post("/login", data={"username": "ann", "password": "wrong"})
    assert client.get(URL).status_code == 401
    assert client.post("/login", data={"username": "ann", "password": "x"}).status_code == 200
    assert client.get(URL).status_code == 200
    assert client.post(URL, json={"name": "x"}).status_code == 200
    client.cookies.clear()
    assert client.get(URL).status_code == 401
    assert client.get(URL, auth=("api", "secret")).status_code == 200
