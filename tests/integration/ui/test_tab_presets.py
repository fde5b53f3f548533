"""Presets in the tab: chosen, taken back, kept and brought, on the installed gradio."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

pytest.importorskip("gradio")

from lora_train.app import App
from lora_train.core.config import TrainSettings
from lora_train.core.preset_files import purpose

if TYPE_CHECKING:
    from tests.integration.ui.conftest import Browser

pytestmark = pytest.mark.compat

USUAL = msgspec.structs.asdict(TrainSettings())


@pytest.fixture(autouse=True)
def _in_a_version(browser: Browser) -> None:
    browser.begin_story()


def saved(app: App) -> dict[str, Any]:
    shown = app.projects.selection()
    return app.settings.train(shown.project, shown.version)


def choices(browser: Browser) -> Any:
    """What the dropdown was last told to offer."""
    updates = browser.answer("preset_again", "click")
    return updates[browser.by_id["train_tools_preset_choice"]]["choices"]


def test_chosen_and_taken_back(browser: Browser, app: App) -> None:
    assert browser["preset_choice"] == "None"
    browser.values[browser.by_id["train_tools_train_epochs"]] = 7  # typed, and its saving missed
    browser.choose("preset", "Style")
    assert saved(app) == {**USUAL, **purpose("style").values("sd1")}
    assert (browser["train_rank"], browser["train_learning_rate"], browser["train_flip"]) == (32, "0.0001", True)
    assert browser["dataset_repeats"] == -1
    assert "A style is in every part of a picture" in browser["preset_live"]

    browser.choose("preset", "None")
    assert saved(app) == {**USUAL, "epochs": 7}
    assert (browser["train_rank"], browser["train_epochs"]) == (16, 7)
    assert "In use" not in browser["preset_live"]
    browser.choose("preset", "None")
    assert "train-tools-error" not in browser["message_live"]


def test_a_choice_that_is_told_twice_counts_once(browser: Browser, app: App) -> None:
    """As gradio 6 does at times: both events hold what the page held before."""
    browser.values[browser.by_id["train_tools_train_rank"]] = 7
    for label, rank in (("Style", 32), ("None", 7), ("Style", 32), ("Pose", 8), ("None", 32)):
        browser.values[browser.by_id["train_tools_preset_choice"]] = label
        with ThreadPoolExecutor(2) as pool:
            answers = [*pool.map(lambda _: browser.answer("preset_choice", "input"), range(2))]
        for answer in answers:
            browser.take(answer)
            assert browser["train_rank"] == rank
        assert saved(app)["rank"] == rank


def test_the_base_model_changes(browser: Browser, app: App) -> None:
    browser.choose("preset", "Character")
    browser.type("train_base_model", "Small demo model")
    assert "The preset has other values for it." in browser["preset_live"]
    shown = app.projects.selection()
    app.presets.apply(shown.project, shown.version, "character")  # as the button there does
    browser.press("preset_again")
    assert browser["train_learning_rate"] == "0.004"
    assert "other values" not in browser["preset_live"]
    assert browser["preset_choice"] == "Character"


def test_a_reload_shows_it(browser: Browser, app: App, open_browser: type[Browser]) -> None:
    browser.choose("preset", "Pose")
    again = open_browser(app)
    again.load()
    assert again["preset_choice"] == "Pose"
    browser.press("version_create")
    browser.press("version_create_ok", version_name="v2")
    assert browser["preset_choice"] == "None"
    assert "Proposed, as before in this project:" in browser["preset_live"]


def test_own_ones(browser: Browser, app: App) -> None:
    browser.press("preset_save", preset_name="自作", train_rank=24)
    assert choices(browser)[-1] == "自作"
    assert browser["preset_name"] == ""
    assert "presets/file?" in browser["presets_live"]
    browser.choose("preset", "自作")
    browser.press("preset_rename", preset_own="自作", preset_name="Mine")
    assert browser["preset_choice"] == "自作", "it is still what the settings come from"
    assert "deleted or renamed" in browser["preset_live"]
    browser.press("preset_delete", preset_own="Mine")
    assert "trash/restore" in browser["message_live"]
    assert [entry for entry in app.presets.list() if entry.is_own] == []
    browser.press("preset_delete", preset_own=None)
    assert "Choose one of your own presets first." in browser["message_live"]
    browser.press("preset_save", preset_name="Style")
    assert "is a preset of Train Tools" in browser["message_live"]
    assert saved(app)["rank"] == 24


def test_brought_ones(browser: Browser, app: App, tmp_path: Path) -> None:
    shown = app.projects.selection()
    app.presets.save("自作", shown.project, shown.version)
    good = tmp_path / "good.json"
    good.write_bytes(app.presets.file_path("自作").read_bytes())
    bad = tmp_path / "bad.json"
    bad.write_bytes(b"\xff{")
    files = [SimpleNamespace(name=str(path), orig_name=path.name) for path in (good, bad)]
    browser.values[browser.by_id["train_tools_preset_upload"]] = files
    browser.take(browser.answer("preset_upload", "upload"))
    assert "bad.json: This file is no preset" in browser["message_live"]
    assert [entry.name for entry in app.presets.list() if entry.is_own] == ["自作", "自作-2"]
    assert browser["preset_upload"] is None
