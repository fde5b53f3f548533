"""Hasty, clumsy and clever hands: nothing typed is lost, nothing is done twice, undo leads back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser.sites import DEMO

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.browser.conftest import Site, Tab


def test_a_name_and_enter_twice_make_a_project_with_a_version(site: Site, open_tab: Callable[..., Tab]) -> None:
    """By keys alone, after the first click: the cursor is where the next name goes."""
    tab = open_tab(site)
    tab.id("project_create").click()
    for name, choice in (("Keys", "project_choice"), ("-first", "version_choice")):
        tab.shows(lambda: tab.page.evaluate("document.activeElement.matches('[id^=train_tools_][id$=_name] *')"))
        tab.page.keyboard.type(name)
        tab.page.keyboard.press("Enter")
        tab.shows(lambda choice=choice, name=name: name in tab.chosen(choice))
    tab.id("dataset_update").wait_for(state="visible")


def test_what_is_wrong_is_told_until_it_is_right(site: Site, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(site)
    tab.make("Wrong")
    problems = tab.id("train_problems").first
    tab.fill("train_epochs", "-1")
    tab.shows(lambda: "-1" in problems.inner_text())
    tab.fill("train_rank", "9999")
    tab.fill("train_alpha", "4")
    tab.shows(lambda: "-1" in problems.inner_text() and "9999" in problems.inner_text())
    tab.fill("train_epochs", "3")
    tab.shows(lambda: "-1" not in problems.inner_text() and "9999" in problems.inner_text())
    tab.fill("train_rank", "8")
    tab.shows(lambda: not problems.is_visible())


def test_undo_leads_back_to_what_was_deleted(site: Site, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(site)
    tab.make("Kept", "v1")
    tab.make("Lost", "v1")
    tab.fill("train_epochs", "7")
    tab.open_group("Manage")
    tab.id("project_delete").click()
    tab.shows(lambda: tab.chosen("project_choice") != "Lost")
    tab.live("message").get_by_role("button", name="Undo").click()
    tab.shows(lambda: tab.chosen("project_choice") == "Lost" and "It is back" in tab.text("message"))
    assert tab.field("train_epochs").input_value() == "7"


def test_a_double_click_begins_one_training(
    site: Site, open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    tab = open_tab(site)
    tab.make("Twice")
    tab.make_dataset(concept_files[:2])
    tab.choose("train_base_model", "tiny_sd.safetensors")
    tab.shows(lambda: "steps" in tab.text("sum"))
    tab.id("train_begin").click(click_count=2, delay=150)
    tab.shows(lambda: "Twice-v1" in tab.text("progress"))
    tab.page.wait_for_timeout(1000)
    assert "Twice-v1-r2" not in tab.text("results")
    tab.live("progress").get_by_role("button", name="Stop now").or_(
        tab.live("progress").get_by_role("button", name="Cancel")
    ).click()


_TALLER_SUM = """() => {
    const fetch = window.fetch;
    window.held = { isThere: false };
    const toBeAnswered = new Promise((resolve) => (held.answer = resolve));
    window.fetch = async (url, ...rest) => {
        const answer = await fetch(url, ...rest);
        if (!url.includes("live?") || !answer.ok) return answer;
        const told = await answer.json();
        told.fragments.sum = '<p style="height: 80px">There is more to say.</p>';
        held.isThere = true;
        await toBeAnswered;
        return Response.json(told);
    };
}"""
"""The page's script has its answer just when the test wants."""


@pytest.mark.sites("standalone")  # the script is the same everywhere
@pytest.mark.parametrize("pointer", ["mouse", "finger"])
def test_a_button_stays_where_it_is_until_its_click_has_come(
    site: Site, open_tab: Callable[..., Tab], pointer: str
) -> None:
    """What stands above it may grow at any moment: a forecast is ready, another program takes memory."""
    tab = open_tab(site, has_touch=True)
    tab.make(f"Pressed by a {pointer}")
    tab.page.evaluate(_TALLER_SUM)
    tab.shows(lambda: tab.page.evaluate("held.isThere"))
    begin = tab.id("train_begin")
    begin.scroll_into_view_if_needed()
    box = begin.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = tab.page.context.new_cdp_session(tab.page)
    if pointer == "finger":
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    else:
        tab.page.mouse.move(x, y)
        tab.page.mouse.down()
    tab.page.evaluate("held.answer()")
    tab.page.wait_for_timeout(100)  # a finger that stays for half a second wants a menu
    assert "There is more" not in tab.text("sum")
    if pointer == "finger":
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    else:
        tab.page.mouse.up()
    tab.shows(lambda: "base model" in tab.text("message"))
    tab.shows(lambda: "There is more" in tab.text("sum"))


@pytest.mark.sites("standalone")
def test_a_press_whose_end_is_not_told_holds_nothing_for_long(site: Site, open_tab: Callable[..., Tab]) -> None:
    """Of a scroll bar, or a list of the browser's own."""
    tab = open_tab(site)
    tab.make("Held")
    tab.page.mouse.down()
    tab.drop([DEMO / "pictures" / "1_sks" / "sks_00.png"])
    tab.shows(lambda: tab.live("dataset").locator("figure").count() == 1)


def test_a_caption_is_kept_however_the_picture_is_left(
    site: Site, open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    tab = open_tab(site)
    tab.make("Captions")
    tab.make_dataset(concept_files[:2])
    dialog = tab.page.get_by_role("dialog")
    for caption in ("sks, 雨", "sks, 雪"):
        tab.live("dataset").locator("[data-open]").click()
        dialog.get_by_label("Caption").fill(caption)
        if caption == "sks, 雨":
            tab.page.keyboard.press("Escape")
        else:
            dialog.get_by_role("button", name="Close").click()
        tab.shows(lambda caption=caption: caption in tab.text("dataset"))
        tab.shows(lambda: not dialog.is_visible())
