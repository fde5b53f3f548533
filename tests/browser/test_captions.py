"""The caption editor: filtered, edited at once, undone, and seen as the pictures are trained."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.conftest import Site, Tab

# The demo's 16 pictures: 6 on white, 5 on black, 5 on gray.


def test_captions_are_filtered_and_edited_at_once(
    site: Site, open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    tab = _opened(open_tab(site), "Edited", concept_files)
    captions = tab.live("captions")
    _show(tab, "white background", 6)
    tab.choose("captions_mode", "any of these")
    _show(tab, "white background, black background", 11)
    tab.choose("captions_mode", "all of these")
    tab.shows(lambda: _rows(tab) == 0)
    _show(tab, "", 16)

    chip = captions.locator(".train-tools-captions button", has_text="black background").first
    chip.click()
    tab.shows(lambda: _rows(tab) == 5 and tab.field("captions_filter").input_value() == "black background")
    captions.locator(".train-tools-captions button", has_text="black background").first.click()
    tab.shows(lambda: _rows(tab) == 16 and tab.field("captions_filter").input_value() == "")

    _show(tab, "black background", 5)
    tab.choose("captions_scope", "those that the filter shows")
    tab.fill("captions_text", "night")
    tab.id("captions_preview").click()
    changes = tab.id("captions_changes").first
    tab.shows(lambda: "5 captions would change" in changes.inner_text())
    assert changes.locator("ins").first.inner_text() == "sks, black background, night"
    assert not _with_text(site, "Edited", "night"), "a preview writes nothing"
    tab.id("captions_apply").click()
    tab.shows(lambda: "5 captions changed" in tab.text("message"))
    assert len(_with_text(site, "Edited", "night")) == 5
    tab.shows(lambda: tab.live("dataset").get_by_text("sks, black background, night").count() == 5)
    tab.shows(lambda: _rows(tab) == 5)

    tab.choose("captions_edit", "Replace")
    tab.id("captions_replacement").wait_for(state="visible")
    tab.fill("captions_text", "night")
    tab.fill("captions_replacement", "dark night")
    boxes = captions.get_by_role("checkbox")
    boxes.nth(0).check()
    boxes.nth(1).check()
    ticked = Image.open(BytesIO(boxes.nth(1).screenshot()))
    assert len(ticked.getcolors(10_000) or []) > 5, "a tick can be seen: it is not all of one colour"
    tab.choose("captions_scope", "chosen pictures")
    tab.id("captions_apply").click()
    tab.shows(lambda: "2 captions changed" in tab.text("message"))
    assert len(_with_text(site, "Edited", "dark night")) == 2

    tab.choose("captions_edit", "Remove tags")
    tab.id("captions_replacement").wait_for(state="hidden")
    tab.fill("captions_text", "night")
    tab.choose("captions_scope", "all pictures")
    tab.id("captions_apply").click()
    tab.shows(lambda: "3 captions changed" in tab.text("message"))
    assert len(_with_text(site, "Edited", "night")) == 2
    assert not tab.errors


def test_undo_and_redo_outlive_the_server(site: Site, open_tab: Callable[..., Tab], concept_files: list[Path]) -> None:
    tab = _opened(open_tab(site), "Undone", concept_files[:4])
    tab.fill("captions_text", "雪")
    tab.id("captions_apply").click()
    tab.shows(lambda: "2 captions changed" in tab.text("message"))
    tab.id("captions_undo").click()
    tab.shows(lambda: "Redo does again:" in tab.text("captions"))
    assert not _with_text(site, "Undone", "雪")
    tab.id("captions_redo").click()
    tab.shows(lambda: "Undo takes back:" in tab.text("captions"))
    assert len(_with_text(site, "Undone", "雪")) == 2

    site.kill()
    site.start()
    tab.open()
    tab.open_group("Caption editor")
    tab.shows(lambda: "Undo takes back:" in tab.text("captions"))
    tab.id("captions_undo").click()
    tab.shows(lambda: not _with_text(site, "Undone", "雪"))
    tab.shows(lambda: "雪" not in tab.live("captions").locator(".train-tools-captions").inner_text())
    tab.id("captions_redo").click()
    tab.shows(lambda: tab.live("dataset").locator("figure", has_text="雪").count() == 2)


def test_a_picture_opened_from_the_list_stays_in_the_list(
    site: Site, open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    tab = _opened(open_tab(site), "Listed", concept_files)
    _show(tab, "gray background", 5)
    tab.live("captions").locator("[data-open]").first.click()
    dialog = tab.page.get_by_role("dialog")
    caption, title = dialog.get_by_label("Caption"), dialog.locator("h3")
    tab.shows(lambda: re.search("Trained as: sks ?, gray background", dialog.inner_text()))
    assert dialog.get_by_role("button", name="Previous").is_disabled()
    seen = [title.inner_text()]
    for _ in range(4):
        dialog.get_by_role("button", name="Next").click()
        tab.shows(lambda: title.inner_text() not in seen)
        seen.append(title.inner_text())
        assert caption.input_value() == "sks, gray background"
    assert dialog.get_by_role("button", name="Next").is_disabled()
    dialog.get_by_role("button", name="Close").focus()
    tab.page.keyboard.press("ArrowLeft")
    tab.shows(lambda: title.inner_text() == seen[3])
    tab.page.keyboard.press("ArrowRight")
    tab.shows(lambda: title.inner_text() == seen[4])
    tab.page.keyboard.press("Escape")
    tab.shows(lambda: not dialog.is_visible())
    assert _rows(tab) == 5


def test_a_replaced_picture_keeps_its_caption(
    site: Site, open_tab: Callable[..., Tab], concept_files: list[Path], photos: list[Path]
) -> None:
    tab = _opened(open_tab(site), "Replaced", concept_files[:4])
    origin = site.workspace / "projects" / "Replaced" / "versions" / "v1" / "dataset" / "origin"
    old = (origin / "sks_00.png").read_bytes()
    tab.live("dataset").locator("[data-open*=sks_00]").click()
    dialog = tab.page.get_by_role("dialog")
    dialog.locator("input[type=file]").set_input_files(photos[1])
    tab.shows(lambda: not dialog.is_visible())
    tab.shows(lambda: "waiting" in tab.text("dataset"))
    assert (origin / "sks_00.png").read_bytes() == photos[1].read_bytes()
    tab.live("message").get_by_role("button", name="Undo").click()
    tab.shows(lambda: "It is back" in tab.text("message"))
    assert (origin / "sks_00.png").read_bytes() == old

    tab.live("dataset").locator("[data-open*=sks_00]").first.click()
    dialog.locator("input[type=file]").set_input_files(photos[1])
    tab.shows(lambda: not dialog.is_visible())
    tab.id("dataset_update").click()
    tab.shows(lambda: "waiting" not in tab.text("dataset") and "Stop" not in tab.text("dataset"))
    assert tab.live("dataset").locator("figure").count() == 2
    replaced = tab.live("dataset").locator("figure", has=tab.page.locator("[data-open*=sks_00]"))
    assert "sks, white background" in replaced.inner_text()
    assert not tab.errors


def _opened(tab: Tab, project: str, files: list[Path]) -> Tab:
    """A project with these pictures, and the caption editor opened."""
    tab.make(project)
    tab.make_dataset(files)
    tab.open_group("Caption editor")
    count = sum(path.suffix == ".png" for path in files)
    tab.shows(lambda: _rows(tab) == count)
    return tab


def _rows(tab: Tab) -> int:
    return tab.live("captions").locator(".train-tools-captions > li").count()


def _show(tab: Tab, text: str, count: int) -> None:
    tab.fill("captions_filter", text)
    tab.shows(lambda: _rows(tab) == count)


def _with_text(site: Site, project: str, text: str) -> list[Path]:
    """Caption files that have this text."""
    processed = site.workspace / "projects" / project / "versions" / "v1" / "dataset" / "processed"
    return [path for path in processed.rglob("*.txt") if text in path.read_text(encoding="utf-8")]
