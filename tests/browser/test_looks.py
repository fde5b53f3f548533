"""Light and dark, wide and narrow: nothing sticks out, axe-core has nothing serious to say, keys are enough.

With TRAIN_TOOLS_SCREENSHOTS=DIR the pictures that are looked at are kept there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.conftest import Kind, Site, Tab

WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def trained(site: Site, open_tab: Callable[..., Tab], concept_files: list[Path]) -> Site:
    """A site with a dataset and a finished training that learned something."""
    tab = open_tab(site)
    tab.make("Star")
    tab.make_dataset(concept_files)
    tab.teach_the_star(epochs=8)
    tab.page.get_by_role("button", name="Begin Train").click()
    tab.shows(lambda: "finished" in tab.text("progress").lower(), 180)
    tab.shows(lambda: "in models/Lora" in tab.text("results"))
    tab.page.context.close()
    return site


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "390"])
def test_nothing_sticks_out_and_nothing_is_hard_to_use(
    kind: Kind, trained: Site, open_tab: Callable[..., Tab], theme: str, size: dict[str, int]
) -> None:
    tab = open_tab(trained, viewport=size, theme=theme)
    page = tab.page
    tab.shows(lambda: "Star-v1" in tab.text("results"))
    _wait_until_drawn(tab)
    width_px = page.evaluate("document.documentElement.scrollWidth")
    assert width_px <= size["width"], f"the page is {width_px} px wide"
    _keep_screenshot(tab, f"{kind.name}-{theme}-{size['width']}")
    assert _serious_violations(tab, "#train_tools_page") == []
    tab.live("dataset").locator("[data-open]").first.click()
    page.get_by_role("dialog").wait_for()
    _keep_screenshot(tab, f"{kind.name}-{theme}-{size['width']}-editor", full=False)
    assert _serious_violations(tab, "dialog") == []
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached" if not page.get_by_role("dialog").count() else "hidden")
    tab.page.context.close()


def test_a_caption_is_edited_with_keys_alone(trained: Site, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(trained)
    first = tab.live("dataset").locator("[data-open]").first
    first.focus()
    tab.page.keyboard.press("Enter")
    caption = tab.page.get_by_role("dialog").get_by_label("Caption")
    tab.shows(lambda: caption.is_visible() and tab.page.evaluate("document.activeElement.tagName") == "TEXTAREA")
    tab.page.keyboard.press("Control+A")
    tab.page.keyboard.type("sks, 星, edited")
    tab.page.keyboard.press("Control+Enter")
    dataset = trained.workspace / "projects" / "Star" / "versions" / "v1" / "dataset" / "processed"
    tab.shows(lambda: any("星, edited" in path.read_text(encoding="utf-8") for path in dataset.rglob("*.txt")))
    tab.page.keyboard.press("Escape")
    tab.shows(lambda: "sks, 星, edited" in tab.text("dataset"))
    assert first.evaluate("e => e === document.activeElement"), "the focus is back where it was"
    tab.page.get_by_role("button", name="Update Dataset").click()
    tab.page.wait_for_timeout(1500)
    tab.shows(lambda: "sks, 星, edited" in tab.text("dataset") and "Stop" not in tab.text("dataset"))
    tab.page.context.close()


@pytest.mark.parametrize(("locale", "language", "words"), [("ja-JP", "ja", "学習"), ("zh-CN", "zh-CN", "训练")])
@pytest.mark.sites("standalone")
def test_the_page_speaks_the_browsers_language(
    trained: Site, open_tab: Callable[..., Tab], locale: str, language: str, words: str
) -> None:
    tab = open_tab(trained, locale=locale)
    tab.shows(lambda: words in tab.page.locator("#train_tools_page").inner_text())
    tab.shows(lambda: tab.page.evaluate("document.documentElement.lang") == language)
    _wait_until_drawn(tab)
    _keep_screenshot(tab, f"standalone-{locale}")
    tab.page.context.close()


def _wait_until_drawn(tab: Tab) -> None:
    """Until our script has drawn the results, in local time, and every picture is there."""
    tab.shows(lambda: "UTC" not in tab.text("results"))
    # Again and again: what is drawn meanwhile is lazy, and never loads where nobody scrolls to it.
    is_all_there = """() => {
        for (const image of document.images) image.loading = 'eager';
        return [...document.images].every(image => image.complete);
    }"""
    tab.shows(lambda: tab.page.evaluate(is_all_there))


def _serious_violations(tab: Tab, selector: str) -> list[str]:
    axe = os.environ.get("TRAIN_TOOLS_AXE")
    if not axe:
        pytest.skip("TRAIN_TOOLS_AXE does not say where axe.min.js is")
    if not tab.page.evaluate("'axe' in window"):
        tab.page.add_script_tag(path=axe)
    found = tab.page.evaluate("selector => axe.run(selector)", selector)["violations"]
    return [
        f"{violation['id']}: {violation['help']}: {[node['target'] for node in violation['nodes']]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


def _keep_screenshot(tab: Tab, name: str, *, full: bool = True) -> None:
    folder = os.environ.get("TRAIN_TOOLS_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tab.page.screenshot(path=Path(folder) / f"{name}.png", full_page=full)
