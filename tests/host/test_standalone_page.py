"""The page on its own: which names it answers to, and what it can't be opened on."""

from __future__ import annotations

import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")

from lora_train import api
from lora_train.app import App
from lora_train.core.errors import ConfigError
from lora_train.core.workspace import Workspace
from lora_train.hosts import standalone

pytestmark = pytest.mark.compat

Open = Callable[..., str]


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(Workspace(tmp_path / "workspace"))


@pytest.fixture
def open_page(app: App) -> Iterator[Open]:
    """Opens the page and gives its address; closed with the test."""
    pages: list[Any] = []

    def open_page(**options: Any) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        told = {"share": False, "auth": None, "host": "127.0.0.1", **options}
        page, address = standalone._open(app, port=port, **told)
        pages.append(page)
        return address

    yield open_page
    for page in pages:
        page.close(verbose=False)


def ask(url: str, method: str = "GET", **headers: str) -> tuple[int, Message]:
    """Status and headers of the answer to the page's script."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    told = {"X-Train-Tools": api.TOKEN, **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        with opener.open(urllib.request.Request(url, headers=told, method=method), timeout=20) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def status(url: str, **headers: str) -> int:
    return ask(url, **headers)[0]


def test_a_page_without_login_answers_to_the_names_of_this_machine_alone(open_page: Open) -> None:
    """Else a site whose name is made to lead here would get the page, and the token in it."""
    address = open_page()
    for path in ("", "config", "train-tools/v1/version", "train-tools/v1/page.js"):
        assert status(address + path) == 200
        assert status(address + path, Host="localhost:7870") == 200
        for name in ("evil.example", "127.0.0.1.evil.example:7870", "localhost.evil.example"):
            assert status(address + path, Host=name) == 400, (path, name)


def test_a_page_with_login_has_any_name(open_page: Open) -> None:
    address = open_page(auth=("ann", "x"))
    assert status(address + "train-tools/v1/page.js", Host="train.example") == 200
    assert status(address + "train-tools/v1/version", Host="train.example") == 401


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
def test_scripts_of_other_sites_can_not_read_the_page(open_page: Open, origin: str) -> None:
    address = open_page()
    asked_before = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "x-train-tools"}
    for path, method, headers in (
        ("config", "GET", {}),
        ("train-tools/v1/version", "GET", {}),
        ("train-tools/v1/projects", "OPTIONS", asked_before),
    ):
        _, answered = ask(address + path, method, Origin=origin, **headers)
        assert [name for name in answered if name.lower().startswith("access-control-")] == []


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_port_that_cannot_be(app: App, port: int) -> None:
    with pytest.raises(ConfigError, match="from 1 to 65535"):
        standalone.serve(app, port=port, share=False, auth=None, host="127.0.0.1")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_checkpoints_in_linked_folders_are_found(tmp_path: Path) -> None:
    models, elsewhere = tmp_path / "models", tmp_path / "big disk"
    models.mkdir()
    elsewhere.mkdir()
    (elsewhere / "cat.safetensors").touch()
    (models / "linked").symlink_to(elsewhere)
    (models / "again").symlink_to(models)
    (models / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    host = standalone.Standalone(models=models, lora_dir=None, is_local=True)
    assert [choice.name for choice in host.base_models()] == ["linked/cat.safetensors"]
