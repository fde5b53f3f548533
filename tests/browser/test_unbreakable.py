"""The worker trains, the page only reads: reloads, restarts, crashes and second browsers change nothing."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.browser.conftest import Kind, Site, Tab


def test_a_training_lives_through_everything(
    kind: Kind, new_site: Callable[..., Site], open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    site = new_site(kind)
    tab = open_tab(site)
    tab.make("Long")
    _begin_long(tab, concept_files)
    tab.shows(lambda: _step(tab) > 3)

    tab.open()  # reload
    _shows_running(tab)
    second = open_tab(site)
    _shows_running(second)

    if kind.name == "webui":
        before = _step(tab)
        tab.reload_ui()
        _shows_running(tab)
        assert _step(tab) > before

    before = _step(tab)
    site.kill()
    time.sleep(1)
    site.start()
    tab.open()
    _shows_running(tab)
    tab.shows(lambda: _step(tab) > before)
    trains = list((site.workspace / "projects" / "Long" / "versions" / "v1" / "trains").iterdir())
    assert len(trains) == 1

    tab.live("progress").get_by_role("button", name="Pause").click()
    tab.shows(lambda: "paused" in tab.text("progress").lower())
    tab.live("progress").get_by_role("button", name="Resume").click()
    tab.shows(lambda: _step(tab) > before)
    tab.live("progress").get_by_role("button", name="Stop and save").click()
    tab.shows(lambda: "stopped" in tab.text("progress").lower())
    tab.shows(lambda: bool(list(site.lora_dir.glob("Long-v1*.safetensors"))))


def test_a_queue_with_reorder_and_cancel_survives_a_crash(
    kind: Kind, new_site: Callable[..., Site], open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    site = new_site(kind)
    tab = open_tab(site)
    tab.make("Queue")
    _begin_long(tab, concept_files)
    for number in (2, 3):
        _begin(tab)
        tab.shows(lambda number=number: f"Queue-v1-r{number}" in tab.text("queue"))
    rows = tab.live("queue").locator("li")
    assert ["Queue-v1" in row for row in rows.all_inner_texts()] == [True] * 3
    rows.nth(2).get_by_role("button", name="Move up").click()
    tab.shows(lambda: "r3" in rows.nth(1).inner_text() and "r2" in rows.nth(2).inner_text())

    site.kill()
    site.start()
    tab.open()
    rows = tab.live("queue").locator("li")
    tab.shows(lambda: rows.count() == 3 and "r3" in rows.nth(1).inner_text())
    rows.nth(2).get_by_role("button", name="Cancel").click()
    tab.shows(lambda: rows.count() == 2)
    rows.nth(1).get_by_role("button", name="Cancel").click()
    tab.shows(lambda: rows.count() == 0)  # the shown training alone: the progress tells of it
    tab.live("progress").get_by_role("button", name="Stop now").click()
    tab.page.get_by_role("dialog").get_by_role("button", name="Stop now").click()
    tab.shows(lambda: tab.live("progress").get_by_role("button", name="Resume").count() == 1)


def test_settings_and_selection_come_back(kind: Kind, site: Site, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(site)
    tab.make("One", "v1")
    tab.fill("train_epochs", "7")
    tab.fill("train_learning_rate", "0.00003")
    tab.id("version_create").click()
    tab.fill("version_name", "v2")
    tab.id("version_create_ok").click()
    tab.shows(lambda: tab.chosen("version_choice") == "v2")
    tab.shows(lambda: tab.field("train_epochs").input_value() == "10")
    tab.fill("train_epochs", "3")
    tab.tick("dataset_flip", True)
    tab.page.wait_for_timeout(500)
    tab.open()
    tab.shows(lambda: tab.chosen("version_choice") == "v2")
    tab.shows(lambda: tab.field("train_epochs").input_value() == "3")
    assert tab.id("dataset_flip").locator("input[type=checkbox]").is_checked()
    tab.choose("version_choice", "v1")
    tab.shows(lambda: tab.field("train_epochs").input_value() == "7")
    assert float(tab.field("train_learning_rate").input_value()) == pytest.approx(3e-5)
    tab.shows(lambda: not tab.id("dataset_flip").locator("input[type=checkbox]").is_checked())


def test_without_our_script_the_refresh_button_shows_the_same(
    kind: Kind, site: Site, open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    tab = open_tab(site)
    tab.make("Quiet")
    tab.page.route("**/*train_tools.js*", lambda route: route.abort())
    tab.page.route("**/page.js", lambda route: route.abort())
    tab.open()
    tab.drop(concept_files[:2])
    tab.page.wait_for_timeout(3000)
    tab.id("refresh").click()
    tab.shows(lambda: tab.live("dataset").locator("figure").count() == 1)
    tab.page.get_by_role("button", name="Update Dataset").click()
    tab.page.wait_for_timeout(3000)
    tab.id("refresh").click()
    tab.shows(lambda: tab.live("dataset").get_by_text("512 × 512").count() == 1)


def _begin_long(tab: Tab, files: list[Path]) -> None:
    """A training of 14,000 steps, which is never waited for."""
    tab.make_dataset(files)
    tab.choose("train_base_model", "tiny_sd.safetensors")
    tab.fill("dataset_repeats", "100")
    tab.shows(lambda: "steps" in tab.text("sum") and "100 repeats" in tab.text("sum"))
    _begin(tab)


def _begin(tab: Tab) -> None:
    """Press Begin Train, and wait for the answer: gradio takes no second click before it."""
    before = _answer(tab)
    tab.page.get_by_role("button", name="Begin Train").click()
    tab.shows(lambda: _answer(tab) != before)


def _answer(tab: Tab) -> str:
    """The number of the server's last answer: the comment behind its message."""
    return "".join(re.findall(r"<!-- \d+ -->", tab.id("message_live").first.inner_html()))


def _step(tab: Tab) -> int:
    """The step of a training that runs and does steps; 0 otherwise."""
    told = re.search(r"Running .*Training .*Step (\d+) / 14000", tab.text("progress"))
    return int(told[1]) if told else 0


def _shows_running(tab: Tab) -> None:
    """The true state within two seconds of the page's being there."""
    tab.shows(lambda: _step(tab) > 3, 2)
