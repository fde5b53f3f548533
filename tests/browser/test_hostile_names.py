"""Names, captions and words that are HTML stay words on the page: nothing of them is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Site = Any
Tab = Any

RUN = "<img src=x onerror=\"document.title='run'\">"
NAME = "<img src=x onerror=alert(1)>"
CAPTION = f"a cat, {RUN}, \"><script>alert(2)</script>, <svg onload=alert(3)>, ' onfocus=alert(4) autofocus='"


@pytest.fixture
def dialogs() -> Iterator[list[str]]:
    """What scripts have asked of the person, which nothing may."""
    asked: list[str] = []
    yield asked
    assert asked == []


@pytest.mark.parametrize("language", ["en-US", "ja-JP"])
def test_names_and_captions_are_never_run(
    site: Site, open_tab: Callable[..., Tab], dialogs: list[str], language: str
) -> None:
    tab = open_tab(site, locale=language)
    tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    tab.make(f"{NAME} {language}", f"{NAME} v1")
    version = next((site.workspace / "projects").glob(f"*{language}*/versions/*"))
    _put_pictures(version / "dataset" / "processed" / "1_'onerror='alert(5)'")
    tab.id("refresh").click()
    tab.shows(lambda: tab.live("dataset").locator("img").count() == 2)
    tab.page.locator("#train_tools_captions .label-wrap").first.click()
    tab.shows(lambda: "onfocus=alert(4)" in tab.text("captions"))
    tab.live("dataset").locator("[data-open]").first.click()
    caption = tab.page.get_by_role("dialog").locator("textarea")
    tab.shows(lambda: "onfocus=alert(4)" in caption.input_value())
    assert tab.page.locator("#train_tools_page :is([onerror], [onload], [onfocus], img[src=x], script)").count() == 0
    assert tab.page.title() != "run"
    assert tab.errors == []


def _put_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("<img src=x onerror=alert(6)>", '"><b onmouseover=alert(7)>'):
        Image.new("RGB", (64, 64), "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(CAPTION, encoding="utf-8")
