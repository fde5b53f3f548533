"""The tab on the installed gradio: what it is made of, its handlers as a browser would call them, a real server."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("gradio")

import gradio as gr

from lora_train import api
from lora_train.app import App
from lora_train.app.snapshot import Snapshot
from lora_train.core.assets import DEMO_PICTURES
from lora_train.core.config import TrainSettings
from lora_train.core.errors import JobError, TrainToolsError
from lora_train.core.settings import setting_fields
from lora_train.hosts import standalone
from lora_train.ui import page, tab
from tests.integration.ui.conftest import EMPTY

if TYPE_CHECKING:
    from tests.integration.ui.conftest import Browser

pytestmark = pytest.mark.compat

PICTURE = next(DEMO_PICTURES.glob("1_*/*.png"))


# --- what it is made of ---


def test_nothing_is_saved_to_ui_config(app: App) -> None:
    blocks = tab.build(app, token="secret", localize=False)
    assert not [block for block in blocks.blocks.values() if not getattr(block, "do_not_save_to_config", False)]


def test_ids_are_ours_and_no_id_occurs_twice(app: App) -> None:
    blocks = tab.build(app, token="secret", localize=False)
    ids = Counter(block.elem_id for block in blocks.blocks.values() if getattr(block, "elem_id", None))
    assert set(ids.values()) == {1}
    assert all(name.startswith("train_tools_") for name in ids)
    classes = {name for block in blocks.blocks.values() for name in getattr(block, "elem_classes", None) or []}
    assert all(name.startswith("train-tools-") for name in classes)
    beside_the_pictures = ("repeats", "aimed_steps")
    settings = {
        f"train_tools_{'dataset' if field.name in beside_the_pictures else 'train'}_{field.name}"
        for field in setting_fields(TrainSettings)
    }
    assert settings <= set(ids)


def test_no_event_waits_in_the_queue_or_is_open_to_clients(app: App) -> None:
    """Nor may one poll or generate: that hangs a WebUI's Reload UI."""
    blocks = tab.build(app, token="secret", localize=False)
    entries = blocks.get_config_file()["dependencies"]
    assert len(entries) > 50
    for entry in entries:
        assert entry["queue"] is False
        assert entry.get("every") is None
        assert not entry.get("types", {}).get("generator")
        assert entry.get("api_visibility", "private") == "private"
        assert entry.get("api_name") is False or "api_visibility" in entry


def test_it_lives_inside_the_tabs_of_a_host(app: App) -> None:
    inner = tab.build(app, token="secret", localize=False)
    with gr.Blocks() as demo, gr.Tabs(), gr.Tab("Train Tools", elem_id="tab_train_tools"):
        inner.render()
    assert any(block.elem_id == "train_tools_page" for block in demo.blocks.values())
    assert len(demo.get_config_file()["dependencies"]) == len(inner.get_config_file()["dependencies"])


def test_a_page_without_a_project_says_what_to_do(browser: Browser) -> None:
    assert browser.is_visible("project_create")
    assert not browser.is_visible("version_choice")
    assert not browser.is_visible("train_begin")
    assert not browser.is_visible("project_name")


# --- the story ---


def test_project_then_version_then_panels(browser: Browser, app: App) -> None:
    browser.press("project_create")
    assert browser.is_visible("project_name")
    browser.press("project_create_ok", project_name="Kätzchen 猫")
    assert browser["project_choice"] == "Kätzchen 猫"
    assert not browser.is_visible("project_name")
    assert (browser.is_visible("version_name"), browser["version_name"]) == (True, "v1")
    assert not browser.is_visible("train_begin")
    browser.press("version_create_ok")
    assert browser["version_choice"] == "v1"
    assert browser.is_visible("train_begin")
    assert not browser.is_visible("version_name")
    assert [version.name for version in app.projects.list()[0].versions] == ["v1"]


def test_nothing_can_be_begun_before_the_page_is_filled(app: App, open_browser: type[Browser]) -> None:
    """The answer to the load may come late, and would hide what a quick person is typing into."""
    browser = open_browser(app)
    create = browser.by_id["train_tools_project_create"]
    assert create.interactive is False
    assert browser.answer_to_load()[create]["interactive"] is True


def test_settings_are_saved_as_they_are_typed_and_come_back(
    browser: Browser, app: App, open_browser: type[Browser]
) -> None:
    browser.begin_story()
    for name, value in {
        "train_learning_rate": "0.00003",
        "train_epochs": 37,
        "train_optimizer": "Lion",
        "train_generate_previews": False,
        "dataset_repeats": 12,
        "dataset_flip": True,
        "train_base_model": "Small demo model",
    }.items():
        browser.type(name, value)
    selection = app.projects.selection()
    saved = app.settings.train(selection.project, selection.version)
    assert (saved["learning_rate"], saved["epochs"], saved["repeats"]) == (3e-05, 37, 12)
    assert saved["base_model"] == "demo"
    assert app.settings.dataset(selection.project, selection.version)["flip"] is True
    other = open_browser(app)
    other.load()
    assert other["train_learning_rate"] == "0.00003"
    assert (other["train_epochs"], other["train_optimizer"], other["dataset_repeats"]) == (37, "Lion", 12)
    assert other["train_generate_previews"] is False
    assert other["train_base_model"] == "Small demo model"


def test_a_wrong_value_is_told_beside_it_and_refused_at_the_start(browser: Browser, app: App) -> None:
    browser.begin_story()
    browser.type("train_rank", 0)
    assert "from 1 to 1024" in browser["train_problems"]
    browser.press("train_begin")
    assert "from 1 to 1024" in browser["message_live"]
    assert app.queue.entries() == []
    browser.type("train_rank", 4)
    assert browser["train_problems"] == ""


def test_what_stands_on_the_page_is_trained_though_its_saving_was_missed(browser: Browser, app: App) -> None:
    browser.begin_story()
    browser.press("train_begin", train_epochs=3)
    assert "train-tools-error" in browser["message_live"]  # no base model, no pictures
    selection = app.projects.selection()
    assert app.settings.train(selection.project, selection.version)["epochs"] == 3


def test_what_takes_longer_than_a_click_is_left_to_the_script(
    browser: Browser, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser.begin_story()
    can_go_on = threading.Event()
    snapshot = app.snapshot

    def slow(*shown: str) -> Snapshot:
        can_go_on.wait(60)
        return snapshot(*shown)

    monkeypatch.setattr(app, "snapshot", slow)
    monkeypatch.setattr(page, "SOON_S", 0.01)
    progress, model = browser.by_id["train_tools_progress_live"], browser.by_id["train_tools_model_live"]
    refreshed = browser.answer("refresh", "click")
    assert progress not in refreshed, "it stays as it is"
    assert model in refreshed
    opened = browser.answer_to_load()
    assert EMPTY.fullmatch(opened[progress]), "the script draws it"
    assert not EMPTY.fullmatch(opened[model]), "it can't draw this one"
    can_go_on.set()
    monkeypatch.setattr(page, "SOON_S", 60.0)
    until = time.monotonic() + 60
    while EMPTY.fullmatch(browser.answer_to_load()[progress]):
        assert time.monotonic() < until, "it is drawn again when the slow one has ended"


def test_what_is_drawn_quickly_comes_with_the_version(browser: Browser) -> None:
    browser.begin_story()
    opened = browser.answer_to_load()
    for part in ("dataset", "sum", "progress", "queue", "results", "model"):
        assert not EMPTY.fullmatch(opened[browser.by_id[f"train_tools_{part}_live"]])


def test_the_same_error_twice_is_drawn_twice(browser: Browser) -> None:
    """The person may have closed the first; gradio draws nothing that it believes to be there."""
    browser.begin_story()
    browser.press("train_begin")
    first = browser["message_live"]
    browser.press("train_begin")
    assert "train-tools-error" in first
    assert browser["message_live"] != first


def test_versions_do_not_leak_into_each_other(browser: Browser, app: App) -> None:
    browser.begin_story()
    browser.type("train_epochs", 37)
    browser.press("version_create")
    browser.press("version_create_ok", version_name="second")
    assert browser["train_epochs"] == 10
    browser.type("train_epochs", 5)
    late = browser.answer("version_choice", "input")
    browser.choose("version", "v1")
    assert browser["train_epochs"] == 37
    browser.take(late)  # an answer that was overtaken shows its version whole
    assert (browser["version_choice"], browser["train_epochs"]) == ("second", 5)
    browser.type("train_epochs", 6)
    project = app.projects.selection().project
    assert app.settings.train(project, "v1")["epochs"] == 37
    assert app.settings.train(project, "second")["epochs"] == 6


def test_a_choice_that_is_not_filled_yet_changes_nothing_of_the_next_version(browser: Browser, app: App) -> None:
    """Typing goes on while the answer to a choice is under way: it still belongs to what is shown."""
    browser.begin_story()
    browser.press("version_create_ok", version_name="second")
    browser.values[browser.by_id["train_tools_version_choice"]] = "v1"
    browser.type("train_epochs", 8)
    project = app.projects.selection().project
    assert app.settings.train(project, "second")["epochs"] == 8
    assert app.settings.train(project, "v1")["epochs"] == 10


def test_uploads_are_taken_at_once_and_the_box_is_emptied(browser: Browser, app: App, tmp_path: Path) -> None:
    browser.begin_story()
    bad = tmp_path / "notes.pdf"
    bad.write_bytes(b"%PDF")
    browser.values[browser.by_id["train_tools_dataset_upload"]] = [str(PICTURE), str(bad)]
    browser.take(browser.answer("dataset_upload", "upload"))
    assert browser["dataset_upload"] is None
    assert "notes.pdf" in browser["message_live"]
    selection = app.projects.selection()
    pictures = app.datasets.snapshot(selection.project, selection.version).pictures
    assert [Path(picture.file).name for picture in pictures] == [PICTURE.name]
    assert PICTURE.name in browser["dataset_live"]


def test_managing_and_undo(browser: Browser, app: App) -> None:
    browser.begin_story()
    browser.press("project_rename", project_new_name="Dog")
    assert browser["project_choice"] == "Dog"
    browser.press("version_duplicate", version_new_name="copy")
    assert browser["version_choice"] == "copy"
    browser.press("version_rename", version_new_name="v2")
    assert browser["version_choice"] == "v2"
    browser.press("version_delete")
    assert browser["version_choice"] == "v1"
    assert "trash/restore" in browser["message_live"]
    browser.press("project_delete")
    assert browser["project_choice"] is None
    assert not browser.is_visible("train_begin")
    assert app.projects.list() == []


def test_a_version_that_another_page_deleted_is_told(browser: Browser, app: App) -> None:
    browser.begin_story()
    selection = app.projects.selection()
    app.projects.delete_version(selection.project, selection.version)
    browser.type("train_epochs", 4)
    assert "train-tools-error" in browser["message_live"]
    browser.press("refresh")
    assert not browser.is_visible("train_begin")


def test_mistakes_of_ours_go_to_the_log_and_not_to_the_page(
    browser: Browser, app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_name: str) -> None:
        raise RuntimeError("inner secret")

    monkeypatch.setattr(app.projects, "create", fail)
    browser.press("project_create_ok", project_name="x")
    assert "Something went wrong" in browser["message_live"]
    assert "inner secret" not in browser["message_live"]
    assert "inner secret" in caplog.text


# --- the standalone page ---


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def server(app: App, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    page, address = standalone._open(app, port=free_port, share=False, auth=None, host="127.0.0.1")
    yield address
    page.close(verbose=False)


def fetch(url: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
        return answer.read().decode("utf-8")


def test_the_page_and_its_routes_are_served(server: str, app: App) -> None:
    config = fetch(f"{server}config")
    assert "train_tools_page" in config
    with pytest.raises(urllib.error.HTTPError, match="401"):
        fetch(f"{server}train-tools/v1/version")
    answer = fetch(f"{server}train-tools/v1/version", **{"X-Train-Tools": api.TOKEN})
    assert json.loads(answer)["host"] == app.host.name
    assert api.TOKEN in config
    assert "fragments" in fetch(f"{server}train-tools/v1/live", **{"X-Train-Tools": api.TOKEN})


def test_a_port_that_is_taken_is_told_in_a_sentence(app: App, free_port: int) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", free_port))
        sock.listen()
        with pytest.raises(JobError, match=f"port {free_port}"):
            standalone._open(app, port=free_port, share=False, auth=None, host="127.0.0.1")


def test_without_gradio_it_says_how_to_get_it(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(TrainToolsError) as caught:
        standalone.serve(app, port=1, share=False, auth=None, host="127.0.0.1")
    assert "pip install gradio" in caught.value.hint


def test_checkpoints_are_found_below_the_folder(tmp_path: Path) -> None:
    for name in ("b.ckpt", "anime/猫.safetensors", "anime/猫.vae.safetensors", "x.vae.pt", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    host = standalone.Standalone(models=tmp_path, lora_dir=None, is_local=False)
    assert [choice.name for choice in host.base_models()] == ["anime/猫.safetensors", "b.ckpt"]
    assert not host.takes_paths()
    assert not host.auto_publish()
    (tmp_path / "c.SAFETENSORS").touch()
    host.refresh_base_models()
    assert host.base_models()[-1].path == str(tmp_path / "c.SAFETENSORS")
