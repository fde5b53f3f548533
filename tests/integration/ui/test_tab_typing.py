"""A real browser at the standalone page: what is typed, however fast, is saved, and into the version that is shown."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import Page, sync_playwright

from lora_train.app import App
from lora_train.core.workspace import Workspace
from lora_train.hosts import standalone

CHROMIUM = shutil.which("chromium") or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
WAIT_S = 10


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = App(Workspace(tmp_path / "workspace"))
    project = app.projects.create("Kätzchen 猫").project
    app.projects.create_version(project, "second")
    app.projects.create_version(project, "v1")
    return app


@pytest.fixture
def page(app: App, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server, address = standalone._open(app, port=port, share=False, auth=None, host="127.0.0.1")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(address)
        wait_for_version(page, "v1")
        yield page
        browser.close()
    server.close(verbose=False)


def field(page: Page, name: str) -> Any:
    return page.locator(f"#train_tools_{name} textarea, #train_tools_{name} input").first


def choose(page: Page, name: str, text: str) -> None:
    field(page, name).click()
    page.locator("[role=option]").filter(has_text=text).first.click()


def wait_for_version(page: Page, version: str) -> None:
    page.wait_for_selector(f'#train_tools_shown[data-version="{version}"]', state="attached", timeout=30_000)
    page.wait_for_selector("#train_tools_train_begin:visible")


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def saved(app: App, version: str, *names: str) -> list[Any]:
    project = app.projects.list()[0].id
    settings = app.settings.train(project, version)
    return [settings[name] for name in names]


def test_what_is_typed_pasted_and_chosen_is_saved_and_comes_back(page: Page, app: App) -> None:
    rate = field(page, "train_learning_rate")
    rate.click()
    page.keyboard.press("Control+A")
    page.keyboard.type("0.00003")
    field(page, "train_epochs").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("137")
    field(page, "train_alpha").fill("2.5")  # in one piece, as a paste is
    field(page, "dataset_repeats").fill("12")
    field(page, "train_generate_previews").click()
    choose(page, "train_optimizer", "SGDNesterov")
    choose(page, "train_base_model", "Small demo model")
    field(page, "train_batch_size").click()
    names = ("learning_rate", "epochs", "alpha", "repeats", "generate_previews", "optimizer", "base_model")
    typed = [3e-05, 137, 2.5, 12, False, "SGDNesterov", "demo"]
    wait_until(lambda: saved(app, "v1", *names) == typed)
    page.reload()
    wait_for_version(page, "v1")
    wait_until(lambda: field(page, "train_learning_rate").input_value() == "0.00003")
    assert field(page, "train_epochs").input_value() == "137"
    assert field(page, "train_base_model").input_value() == "Small demo model"
    assert not field(page, "train_generate_previews").is_checked()


def test_quick_switching_carries_nothing_over(page: Page, app: App) -> None:
    field(page, "train_epochs").fill("37")
    choose(page, "version_choice", "second")
    wait_for_version(page, "second")
    wait_until(lambda: field(page, "train_epochs").input_value() == "10")
    field(page, "train_epochs").fill("5")
    for number in range(6):
        choose(page, "version_choice", ("v1", "second")[number % 2])
        page.wait_for_timeout(50 * number)
    wait_for_version(page, "second")
    page.wait_for_timeout(1000)
    assert field(page, "train_epochs").input_value() == "5"
    assert saved(app, "v1", "epochs") == [37]
    assert saved(app, "second", "epochs") == [5]
