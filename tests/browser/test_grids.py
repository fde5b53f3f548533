"""Previews of all LoRAs: the table in which they are compared, by mouse and by keyboard, while others are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw

from lora_train.app import App
from lora_train.core import events as ev
from lora_train.core.config import TrainSettings
from lora_train.core.grids import cells, grid_file
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import GridSpec, TrainSpec
from lora_train.core.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.conftest import Site, Tab

PREVIEW = {"weights": "0, 0.5, 1", "seeds": "1, 2", "cfg_scales": "3, 7", "steps": "4", "width_px": 64, "height_px": 96}


def make_job(site: Site, project: str, *, most: int | None = None, **preview: object) -> JobFolder:
    """A version whose LoRA was drawn, as far as `most` cells; nobody works."""
    app = App(Workspace(site.workspace))
    app.projects.create(project)
    selection = app.projects.create_version(project, "v1")
    folder = app.workspace.find_version(selection.project, selection.version)
    train = JobFolder(folder.trains_dir / f"{project}-v1")
    settings = TrainSettings(base_model="demo")
    train.create(TrainSpec(name=train.path.name, dataset="", dataset_fingerprint="", trash="", settings=settings))
    file = f"{project}-v1.safetensors"
    train.path.joinpath(file).write_bytes(b"no LoRA")
    tell(train, ev.Started(pid=0, step=0), ev.Saved(file, step=1, epoch=1), ev.Finished(step=1))
    assert app.settings.save(selection.project, selection.version, preview={**PREVIEW, **preview}) == []
    (job,) = app.grids.begin_all(selection.project, selection.version)
    app.grids.stop(job)
    made = JobFolder(app.workspace.find_job(job))
    draw(made, most)
    tell(made, ev.Started(pid=0), ev.Finished() if most is None else ev.Stopped(step=0))
    return made


def tell(job: JobFolder, *events: ev.Event) -> None:
    writer = ev.EventWriter(job.events_path)
    writer.write(*events)
    writer.close()


def draw(job: JobFolder, most: int | None = None) -> None:
    """Every cell in a colour of its own."""
    spec = job.read_spec()
    assert isinstance(spec, GridSpec)
    for cell in [*cells(spec)][:most]:
        picture = Image.new("RGB", (64, 96), (20 * cell.index % 256, 60, 160))
        ImageDraw.Draw(picture).text((20, 40), str(cell.index), fill="white")
        path = job.path / cell.files[0]
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    if most is None:
        Image.new("RGB", (400, 300)).save(job.path / grid_file(Path(spec.loras[0]).stem))


def open_panel(tab: Tab, project: str) -> None:
    tab.shows(lambda: tab.chosen("project_choice") == project)
    tab.open_group("Previews of all LoRAs")
    tab.live("grids").get_by_role("button", name="Compare pictures").wait_for()


def focused(tab: Tab) -> str:
    """What a screen reader says of the picture that has the focus."""
    return tab.page.evaluate("document.activeElement.querySelector('img')?.alt ?? ''")


def test_pictures_are_compared_by_keyboard(site: Site, open_tab: Callable[..., Tab]) -> None:
    make_job(site, "Compared 猫")
    tab = open_tab(site)
    open_panel(tab, "Compared 猫")
    assert "12 pictures (1 LoRA)" in tab.text("grids_sum")
    opener = tab.live("grids").get_by_role("button", name="Compare pictures")
    opener.focus()
    tab.page.keyboard.press("Enter")
    table = tab.page.locator("#train_tools_grid")
    tab.shows(lambda: focused(tab) == "CFG scale: 3, Seed: 1, Lora multiplier: 0")
    assert table.get_by_role("columnheader").all_inner_texts() == ["0", "0.5", "1"]
    assert table.get_by_role("rowheader").all_inner_texts() == ["1", "2"]
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown"):
        tab.page.keyboard.press(key)
    assert focused(tab) == "CFG scale: 3, Seed: 2, Lora multiplier: 1"
    over = table.locator("img.train-tools-over")
    assert "00003-0.png" in over.get_attribute("data-file"), "seed 2, weight 0"
    tab.page.keyboard.press("p")
    assert table.locator("td.train-tools-pinned").count() == 1
    tab.page.keyboard.press("ArrowUp")
    assert "00005-0.png" in over.get_attribute("data-file"), "the pinned one"

    tab.page.keyboard.press("Enter")
    big = tab.page.locator("#train_tools_grid_big")
    big.wait_for()
    assert big.locator("h3").inner_text() == "CFG scale: 3, Seed: 1, Lora multiplier: 1"
    assert "Compared with: CFG scale: 3, Seed: 2, Lora multiplier: 1" in " ".join(big.inner_text().split())
    assert big.get_by_role("button", name="Right", exact=True).is_disabled()
    tab.page.keyboard.press("ArrowLeft")
    assert big.locator("h3").inner_text() == "CFG scale: 3, Seed: 1, Lora multiplier: 0.5"
    assert big.get_by_role("img").first.get_attribute("alt") == "CFG scale: 3, Seed: 1, Lora multiplier: 0.5"
    tab.page.keyboard.down("c")
    assert (
        big.locator(".train-tools-grid-big").evaluate("e => e.style.getPropertyValue('--train-tools-share')") == "100%"
    )
    tab.page.keyboard.up("c")
    tab.page.keyboard.press("Escape")
    tab.shows(lambda: focused(tab) == "CFG scale: 3, Seed: 1, Lora multiplier: 0.5")
    assert table.is_visible()

    table.get_by_label("CFG scale", exact=True).select_option("7")
    table.get_by_label("Rows", exact=True).select_option("0")
    assert table.get_by_role("rowheader").all_inner_texts() == ["3", "7"]
    assert table.get_by_label("Seed", exact=True).count() == 1
    tab.page.keyboard.press("Escape")
    tab.shows(lambda: opener.evaluate("element => element === document.activeElement"))
    assert not tab.errors


def test_new_pictures_come_while_the_table_is_open(site: Site, open_tab: Callable[..., Tab]) -> None:
    """At the width of a phone, in the dark; nothing has to be scrolled sideways but the table itself."""
    job = make_job(site, "Drawn", most=2, include_sub_pictures=True)
    tab = open_tab(site, theme="dark", viewport={"width": 390, "height": 844})
    open_panel(tab, "Drawn")
    assert tab.live("grids").get_by_role("button", name="Go on").count() == 1
    tab.live("grids").locator("[data-file]").nth(1).click()
    big = tab.page.locator("#train_tools_grid_big")
    tab.shows(lambda: big.locator("h3").inner_text() == "CFG scale: 3, Seed: 1, Lora multiplier: 0.5")
    tab.page.keyboard.press("ArrowLeft")
    tab.page.keyboard.press("Escape")
    tab.shows(lambda: focused(tab) == "CFG scale: 3, Seed: 1, Lora multiplier: 0")
    table = tab.page.locator("#train_tools_grid")
    assert table.get_by_role("img").count() >= 2
    assert table.evaluate("element => element.scrollWidth <= element.clientWidth")
    draw(job)
    tab.shows(lambda: table.locator("td button").count() == 6)
    assert focused(tab) == "CFG scale: 3, Seed: 1, Lora multiplier: 0", "the focus stays where it was"
    tab.page.keyboard.press("ArrowDown")
    assert focused(tab) == "CFG scale: 3, Seed: 2, Lora multiplier: 0"
    table.get_by_role("button", name="Close").click()
    assert not tab.errors


def test_grids_are_deleted_and_come_back(site: Site, open_tab: Callable[..., Tab]) -> None:
    make_job(site, "Deleted")
    tab = open_tab(site)
    open_panel(tab, "Deleted")
    with tab.page.expect_popup() as popup:
        tab.live("grids").get_by_role("link").click()
    assert "grids/picture" in popup.value.url
    popup.value.close()
    tab.live("grids").get_by_role("button", name="Delete").click()
    tab.shows(lambda: tab.text("grids") == "Grids of pictures appear here.")
    tab.live("message").get_by_role("button", name="Undo").click()
    tab.shows(lambda: "12 / 12" in tab.text("grids"))
    tab.id("preview_delete_all").click()
    tab.shows(lambda: tab.text("grids") == "Grids of pictures appear here.")
    assert not tab.errors


@pytest.mark.sites("standalone")
def test_a_lora_is_drawn_from_its_card(site: Site, open_tab: Callable[..., Tab]) -> None:
    """What is no LoRA can't be drawn: its job says why, and can be deleted."""
    make_job(site, "Card")
    tab = open_tab(site)
    open_panel(tab, "Card")
    tab.live("results").get_by_role("button", name="Generate preview", exact=True).click()
    tab.shows(lambda: "Card-v1.safetensors" in tab.text("grids"))
    assert "The previews could not be drawn." in tab.text("grids")
    assert tab.live("grids").get_by_role("button", name="Compare pictures").count() == 0, (
        "the earlier ones were deleted"
    )
