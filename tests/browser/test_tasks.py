"""What takes longer than a click: told while it goes on, and what came of it at its end, also after a reload.

Another program holds the workspace meanwhile, so that every change has to wait.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_train.core.files import wait_for_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.browser.conftest import Site, Tab


@contextmanager
def _held(site: Site) -> Iterator[None]:
    lock = wait_for_lock(site.workspace / "changes.lock", 10)
    assert lock is not None
    with lock:
        yield


def test_what_takes_long(site: Site, open_tab: Callable[..., Tab], concept_files: list[Path]) -> None:
    tab = open_tab(site)
    tab.make("Long")
    tab.make_dataset(concept_files[:6])
    tab.open_group("Caption editor")
    tab.fill("captions_text", "zebra")
    shown = tab.live("dataset").get_by_text("zebra")

    with _held(site):
        tab.id("captions_apply").click()
        tab.shows(lambda: "Apply" in tab.text("tasks"))
        assert tab.live("tasks").get_by_role("progressbar").count() == 1
        assert shown.count() == 0
        tab.fill("captions_filter", "gray background")  # all else can be used meanwhile
        tab.shows(lambda: tab.live("captions").get_by_role("checkbox").count() == 1)
    tab.shows(lambda: "captions changed" in tab.text("message"))
    tab.shows(lambda: tab.text("tasks") == "")
    assert shown.count() > 0

    count = tab.live("dataset").locator("figure").count()
    with _held(site):  # a button of the page's script
        tab.live("dataset").locator("[data-open]").first.click()
        tab.page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        tab.shows(lambda: "Working" in tab.text("tasks"))
        assert tab.live("dataset").locator("figure").count() == count
    tab.shows(lambda: tab.live("dataset").locator("figure").count() == count - 1)
    tab.shows(lambda: tab.text("tasks") == "")

    with _held(site):
        tab.id("captions_undo").click()
        tab.shows(lambda: "Undo" in tab.text("tasks"))
        tab.open()
        tab.shows(lambda: "Undo" in tab.text("tasks"))
    tab.shows(lambda: "Undo is done." in tab.text("tasks"))
    assert tab.live("dataset").get_by_text("zebra").count() == 0
    tab.live("tasks").get_by_role("button", name="Close").click()
    tab.shows(lambda: tab.text("tasks") == "")
    assert not tab.errors
