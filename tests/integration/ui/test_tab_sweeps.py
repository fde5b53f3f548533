"""Sweeps in the tab: lists typed and chosen, told as a sum, begun, on the installed gradio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

pytest.importorskip("gradio")

from lora_train.app import App

if TYPE_CHECKING:
    from tests.integration.ui.conftest import Browser

pytestmark = pytest.mark.compat


@pytest.fixture(autouse=True)
def _with_pictures(browser: Browser, app: App) -> None:
    browser.begin_story()
    shown = app.projects.selection()
    folder = app.workspace.find_version(shown.project, shown.version).dataset_dir / "1_cat"
    folder.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (64, 64), (number, 10, 200)).save(folder / f"{number}.png")
    browser.type("train_base_model", "Small demo model")
    browser.type("train_epochs", 2)


def saved(app: App) -> dict[str, Any]:
    shown = app.projects.selection()
    return app.settings.sweep(shown.project, shown.version)


def choices(browser: Browser, name: str) -> list[str]:
    """What a list offers, in gradio 3 and later ones."""
    component = browser.by_id[f"train_tools_sweep_{name}"]
    return [choice if isinstance(choice, str) else choice[0] for choice in component.choices]


def test_lists_are_saved_summed_and_begun(browser: Browser, app: App) -> None:
    browser.type("sweep_learning_rates", "0.001, 2e-3")
    browser.type("sweep_optimizers", ["Lion", "AdamW"])
    assert (saved(app)["learning_rates"], saved(app)["optimizers"]) == ((0.001, 0.002), ("Lion", "AdamW"))
    assert "Lion · 0.001" in browser["sweep_sum_live"]
    assert ">16</span> <span>steps" in browser["sweep_sum_live"], "4 runs of 4 steps"
    browser.press("sweep_begin")
    assert [entry.state for entry in app.queue.entries()] == ["waiting"] * 4
    assert "AdamW · 0.002" in browser["sweeps_live"]
    assert "Stop all" in browser["sweeps_live"]
    assert "train-tools-error" not in browser["message_live"]


def test_names_are_shown_and_paths_are_saved(browser: Browser, app: App, open_browser: type[Browser]) -> None:
    assert "Small demo model" in choices(browser, "base_models")
    browser.type("sweep_base_models", ["Small demo model"])
    browser.type("sweep_presets", ["style", "character"])
    assert (saved(app)["base_models"], saved(app)["presets"]) == (("demo",), ("style", "character"))
    other = open_browser(app)
    other.load()
    assert (other["sweep_base_models"], other["sweep_presets"]) == (["Small demo model"], ["style", "character"])
    browser.type("sweep_base_models", [])
    assert saved(app)["base_models"] == ()


def test_what_is_wrong_is_told_beside_the_lists(browser: Browser, app: App) -> None:
    browser.type("sweep_ranks", "8, many")
    assert "comma list of whole numbers from 1 to 1024" in browser["sweep_problems"]
    browser.press("sweep_begin")
    assert "comma list" in browser["message_live"]
    browser.type("sweep_ranks", "8")
    assert "two values or more" in browser["sweep_sum_live"]
    browser.press("sweep_begin")
    assert "two values or more" in browser["message_live"]
    assert app.queue.entries() == []


def test_a_list_in_the_learning_rate_tells_where_sweeps_are(browser: Browser) -> None:
    browser.type("train_learning_rate", "0.001, 0.002")
    assert "for several, use Sweep" in browser["train_problems"]


def test_a_time_to_finish_by_shows_the_plan(browser: Browser) -> None:
    browser.type("sweep_learning_rates", "0.001, 2e-3")
    browser.type("sweep_finish_by", "07:30")
    assert "then the plan is made and shown below" in browser["sweep_sum_live"]
    browser.type("sweep_finish_by", "later")
    assert "write it as 07:30" in browser["sweep_sum_live"]
