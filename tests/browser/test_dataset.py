"""Pictures dropped, cropped, captioned, checked, and regularisation pictures drawn: step 1 of the page."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from lora_train.core.captioners import find_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.assets.hubs import Hub
    from tests.browser.conftest import Kind, Site, Tab

QUESTION = "What is to describe pictures that have no caption?"


def test_the_one_question_is_asked_once(site: Site, open_tab: Callable[..., Tab], photos: list[Path]) -> None:
    (site.workspace / "captioning.json").unlink(missing_ok=True)
    tab = open_tab(site)
    tab.make("Asked")
    assert QUESTION not in tab.text("captioning"), "nothing is asked before there is something to describe"
    tab.drop(photos[:2])
    tab.shows(lambda: QUESTION in tab.text("captioning"))
    assert len(re.findall(r"\d+ MB to download", tab.text("captioning"))) >= 2, "what each one costs"
    tab.id("dataset_update").click()
    tab.shows(lambda: "Choose first what is to describe the pictures" in tab.text("message"))
    assert _count(tab, "512 × 512") < 2

    tab.live("captioning").get_by_role("button", name="No captions").click()
    tab.shows(lambda: _count(tab, "512 × 512") == 2)
    assert QUESTION not in tab.text("captioning")

    tab.make_version("v2")
    tab.drop(photos[2:])
    tab.shows(lambda: _figures(tab) >= 1 and "waiting" in tab.text("dataset"))
    tab.open()
    tab.shows(lambda: "waiting" in tab.text("dataset"))
    assert QUESTION not in tab.text("captioning"), "the answer is kept"
    tab.id("dataset_update").click()
    tab.shows(lambda: "waiting" not in tab.text("dataset") and _count(tab, "512 × 512") > 0)
    assert not tab.errors


def test_a_zip_is_opened_and_a_text_that_calls_itself_a_picture_is_told(
    site: Site, open_tab: Callable[..., Tab], concept_files: list[Path], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "写真.zip", "w") as archive:
        for path in concept_files[:4]:
            archive.write(path, f"猫/{path.name}")
    (tmp_path / "broken.png").write_text("no picture", encoding="utf-8")
    tab = open_tab(site)
    tab.make("Zipped")
    tab.drop([tmp_path / "写真.zip"])
    tab.shows(lambda: _figures(tab) == 2)
    assert "sks, white background" in tab.text("dataset"), "captions come along"
    tab.drop([tmp_path / "broken.png"])
    tab.shows(lambda: "broken.png" in tab.text("message"))
    assert tab.live("message").locator("p").count() == 1, tab.text("message")
    assert _figures(tab) == 2
    assert "Traceback" not in tab.page.locator("body").inner_text()


def test_ways_to_crop_open_their_settings_and_long_pictures_become_several(
    site: Site, open_tab: Callable[..., Tab], tmp_path: Path
) -> None:
    _noise((1536, 512)).save(tmp_path / "long.png")
    (tmp_path / "long.txt").write_text("a long picture", encoding="utf-8")
    tab = open_tab(site)
    tab.make("Crops")
    tab.open_group("Cropping")
    opened = {
        "split": "split_overlap",
        "focal_crop": "focal_face_weight",
        "multicrop": "multicrop_max_side_px",
    }
    tab.id("dataset_split").wait_for(state="visible")
    for tick, setting in opened.items():
        assert not tab.id(f"dataset_{setting}").is_visible()
        tab.tick(f"dataset_{tick}", True)
        tab.id(f"dataset_{setting}").wait_for(state="visible")
        tab.tick(f"dataset_{tick}", False)
        tab.id(f"dataset_{setting}").wait_for(state="hidden")

    tab.tick("dataset_split", True)
    tab.fill("dataset_split_overlap", "0")
    tab.drop([tmp_path / "long.png", tmp_path / "long.txt"])
    tab.shows(lambda: _figures(tab) == 1)
    tab.id("dataset_update").click()
    tab.shows(lambda: _count(tab, "512 × 512") == 3)
    assert tab.live("dataset").get_by_text("a long picture").count() == 3, "every tile has the caption"

    tab.open()
    tab.open_group("Cropping")
    tab.id("dataset_split_overlap").wait_for(state="visible")
    assert tab.id("dataset_split").locator("input").is_checked()
    assert tab.field("dataset_split_overlap").input_value() == "0"
    assert not tab.id("dataset_focal_face_weight").is_visible()
    assert not tab.errors


@pytest.mark.sites("standalone")
def test_a_tagger_writes_captions_from_the_page(
    site: Site, open_tab: Callable[..., Tab], tmp_path: Path, taggers: Any
) -> None:
    for name in ("red", "blue"):
        Image.new("RGB", (512, 512), name).save(tmp_path / f"{name}.png")
    folder = taggers.make_colour_tagger(tmp_path / "タガー")
    tab = open_tab(site)
    tab.make("Tagged")
    tab.drop([tmp_path / "red.png", tmp_path / "blue.png"])
    tab.open_group("Captioning")
    tab.fill("caption_wd14_model", str(folder))
    tab.tick("caption_use_wd14", True)
    tab.shows(lambda: "Captions will be written by: WD14 tagger" in tab.text("captioning"))
    tab.id("dataset_update").click()
    tab.shows(lambda: _count(tab, "red rose, rose (ruby), >_<") == 1 and _count(tab, "blue sky, >_<") == 1)
    tab.wait_for_update()

    tab.choose("caption_policy", "append")
    tab.fill("caption_excluded_tags", "blue sky, >_<")
    tab.open_group("Caption editor")
    tab.live("captions").get_by_role("checkbox", name=re.compile("blue")).check()
    tab.choose("captions_scope", "chosen pictures")
    tab.tick("caption_wd14_rating", True)
    tab.id("captions_write").click()
    tab.shows(lambda: _count(tab, "general, blue sky, >_<") == 1)
    assert _count(tab, "red rose, rose (ruby), >_<") == 1, "only the chosen one is described"
    assert "general" not in next(_captions(site, "Tagged", "red"))
    assert not tab.errors


@pytest.mark.sites("standalone")
def test_a_tagger_of_the_hub_is_fetched_when_asked_for(
    kind: Kind, new_site: Callable[..., Site], open_tab: Callable[..., Tab], tmp_path: Path, taggers: Any, hub: Hub
) -> None:
    Image.new("RGB", (512, 512), "red").save(tmp_path / "red.png")
    folder = taggers.make_colour_tagger(tmp_path / "colours")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files["model.onnx"] += b"\x32\xc0\xc3\x5e" + b"." * 1_548_736  # its doc_string, so that it takes a while
    hub.offer(find_model("somebody/colours", "wd14"), files)
    hub.large, hub.pause_s = {"model.onnx"}, 0.1
    tab = open_tab(new_site(kind))
    tab.make("Fetched")
    tab.drop([tmp_path / "red.png"])
    tab.open_group("Captioning")
    tab.fill("caption_wd14_model", "somebody/colours")
    tab.tick("caption_use_wd14", True)
    offer = tab.live("captioning").get_by_role("button", name="Download", exact=True)
    tab.shows(lambda: "somebody/colours to download" in tab.text("captioning") and offer.count() == 1)
    assert hub.asked == [], "nothing is fetched without being asked"
    offer.click()
    tab.shows(lambda: re.search(r"Downloading somebody/colours [\d.]+ .?B / 1\.\d MB", tab.text("captioning")))
    tab.shows(lambda: "Captions will be written by: WD14 tagger" in tab.text("captioning"))
    tab.id("dataset_update").click()
    tab.shows(lambda: _count(tab, "red rose, rose (ruby), >_<") == 1)
    assert not tab.errors


def test_the_health_check_leads_to_the_pictures_it_is_about(
    site: Site, open_tab: Callable[..., Tab], photos: list[Path], tmp_path: Path
) -> None:
    coffee = Image.open(photos[0])
    files = [tmp_path / name for name in ("coffee.png", "again.jpg", "tiny.png")]
    coffee.save(files[0])
    coffee.save(files[1], quality=60)
    Image.open(photos[2]).resize((100, 100)).save(files[2])
    for path in list(files):
        path.with_suffix(".txt").write_text(f"sks, {path.stem}", encoding="utf-8")
        files.append(path.with_suffix(".txt"))
    tab = open_tab(site)
    tab.make("Checked")
    tab.make_dataset(files)
    tab.open_group("Health check")
    findings = tab.live("health").locator("section")
    small, alike = (findings.filter(has_text=text) for text in ("enlarged a lot", "look almost the same"))
    tab.shows(lambda: small.count() == 1 and alike.count() == 1)
    assert small.locator("[data-open*=tiny]").count() == 1
    assert alike.locator("[data-open]").count() == 2

    alike.locator("[data-open]").first.click()
    dialog = tab.page.get_by_role("dialog")
    assert dialog.get_by_label("Caption").input_value() in ("sks, again", "sks, coffee")
    dialog.get_by_role("button", name="Remove").click()
    tab.shows(lambda: alike.count() == 0 and small.count() == 1)
    assert _figures(tab) == 2
    tab.live("message").get_by_role("button", name="Undo").click()
    tab.shows(lambda: alike.count() == 1)
    assert not tab.errors


def test_regularisation_pictures_are_drawn_and_removed(
    site: Site, open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    tab = open_tab(site)
    tab.make("Regular")
    tab.make_dataset(concept_files[:4])
    tab.choose("train_base_model", "tiny_sd.safetensors")
    tab.shows(lambda: "steps" in tab.text("sum"))
    tab.open_group("Regularisation pictures")
    tab.id("regularisation_generate").wait_for(state="visible")
    tab.id("regularisation_generate").click()
    tab.shows(lambda: "Type a class prompt first" in tab.text("message"))
    for name, text in {"class_name": "person", "prompt": "a photo of a person", "count": "2"}.items():
        tab.fill(f"regularisation_{name}", text)
    panel = tab.id("regularisation").first
    tab.shows(lambda: "without any 320 steps · with so many more 640 steps" in panel.inner_text())
    tab.id("regularisation_generate").click()
    live = tab.live("regularisation")
    tab.shows(lambda: live.get_by_role("progressbar").count() == 1)
    tab.shows(lambda: "person" in tab.text("regularisation") and "2 pictures × 1 repeat" in tab.text("regularisation"))
    tab.shows(lambda: "regularisation pictures" in tab.text("sum"))
    tab.shows(lambda: live.get_by_role("progressbar").count() == 0)
    assert re.search("without any 320 steps · with these 640 steps", tab.text("regularisation"))
    assert tab.live("dataset").locator("figure", has_text="regularisation").count() == 2

    live.get_by_role("button", name="Remove").click()
    tab.shows(lambda: "There are no regularisation pictures" in tab.text("regularisation"))
    tab.shows(lambda: "regularisation" not in tab.text("sum"))
    tab.live("message").get_by_role("button", name="Undo").click()
    tab.shows(lambda: "2 pictures × 1 repeat" in tab.text("regularisation"))
    assert not tab.errors


def _figures(tab: Tab) -> int:
    return tab.live("dataset").locator("figure").count()


def _count(tab: Tab, text: str) -> int:
    """How many pictures of the gallery show a text."""
    return tab.live("dataset").locator("figure", has_text=text).count()


def _noise(size_px: tuple[int, int]) -> Image.Image:
    return Image.effect_noise(size_px, 64).convert("RGB")


def _captions(site: Site, project: str, stem: str) -> Any:
    processed = site.workspace / "projects" / project / "versions" / "v1" / "dataset" / "processed"
    return (path.read_text(encoding="utf-8") for path in processed.rglob(f"*{stem}*.txt"))
