"""The tutorial's story, told by its words, to the published file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.conftest import Kind, Site, Tab

TRAIN_S = 180
"""44 steps of the small model and two previews take about 20 s on one slow core."""


def test_from_a_name_to_a_lora_in_the_host(
    kind: Kind, new_site: Callable[..., Site], open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    site = new_site(kind)
    tab = open_tab(site)
    tab.make("自作LORA")

    tab.make_dataset(concept_files)
    assert "sks, white background" in tab.text("dataset")

    tab.choose("train_base_model", "tiny_sd.safetensors")
    tab.shows(lambda: "Stable Diffusion 1.x" in tab.text("model"))
    for name, value in {"epochs": "4", "batch_size": "4", "save_every_epochs": "2", "learning_rate": "0.004"}.items():
        tab.fill(f"train_{name}", value)
    tab.fill("dataset_repeats", "3")
    tab.shows(lambda: re.search(r"14 pictures × 3 repeats × 4 epochs ÷ batch 4 → 44 steps", tab.text("sum")))

    tab.page.get_by_role("button", name="Begin Train").click()
    tab.shows(lambda: tab.live("progress").get_by_role("progressbar").count() > 0)
    tab.shows(lambda: tab.live("progress").get_by_role("button", name="Stop and save").count() == 1)
    tab.shows(lambda: "44" in tab.text("progress") and "finished" in tab.text("progress").lower(), TRAIN_S)

    train = site.workspace / "projects" / "自作LORA" / "versions" / "v1" / "trains" / "自作LORA-v1"
    assert {path.name for path in train.glob("*.safetensors")} == {
        "自作LORA-v1.safetensors",
        "自作LORA-v1-000002.safetensors",
    }
    steps = [json.loads(line) for line in (train / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert max(event["step"] for event in steps if event["kind"] == "step") == 44, "the sum is what the loop does"

    published = site.lora_dir / "自作LORA-v1.safetensors"
    tab.shows(published.with_suffix(".png").is_file)  # the last one of its files
    with safe_open(published, "pt") as file:
        assert file.metadata()["ss_output_name"] == "自作LORA-v1"
    card = json.loads(published.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["activation text"].split(", ")[0] == "sks"
    assert published.with_suffix(".png").read_bytes().startswith(b"\x89PNG"), "the card's thumbnail"
    tab.shows(lambda: tab.live("results").get_by_text("in models/Lora").count() == 1)
    assert tab.live("results").locator("img").count() >= 2
    assert not tab.errors


@pytest.mark.sites("webui")
def test_send_to_txt2img_and_the_hosts_cards(
    kind: Kind, new_site: Callable[..., Site], open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    """The card stands in the host's list without a restart, and the button writes the prompt."""
    site = new_site(kind)
    tab = open_tab(site)
    tab.make("Cat")
    _train_quickly(tab, concept_files)
    tab.live("results").get_by_role("button", name="Send to txt2img").first.click()
    prompt = tab.page.locator("#txt2img_prompt textarea")
    tab.shows(lambda: prompt.is_visible() and prompt.input_value() == "<lora:Cat-v1:1> sks")
    if kind.folder:  # a genuine one makes its cards when their tab is opened
        tab.page.locator("#txt2img_extra_tabs").get_by_role("button", name="Lora").click()
    tab.shows(lambda: tab.page.locator("#txt2img_lora_cards .card", has_text="Cat-v1").count() == 1)


def test_results_are_published_taken_back_deleted_and_restored(
    kind: Kind, new_site: Callable[..., Site], open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    site = new_site(kind)
    tab = open_tab(site)
    tab.make("Кот")
    _train_quickly(tab, concept_files)
    results, published = tab.live("results"), site.lora_dir / "Кот-v1.safetensors"
    own = site.workspace / "projects" / "Кот" / "versions" / "v1" / "trains" / "Кот-v1" / "Кот-v1.safetensors"
    foreign = site.lora_dir / "mine.safetensors"
    foreign.write_bytes(b"not ours")

    tab.shows(published.is_file)
    results.get_by_role("button", name="Un-publish").first.click()
    tab.shows(lambda: not published.exists() and own.is_file())
    tab.live("message").get_by_role("button", name="Undo").click()
    tab.shows(published.is_file)

    results.get_by_role("button", name="Delete", exact=True).first.click()
    tab.shows(lambda: not own.exists())
    assert published.is_file(), "the published copy stays"
    tab.live("message").get_by_role("button", name="Undo").click()
    tab.shows(own.is_file)

    with tab.page.expect_download() as download:
        results.get_by_role("link", name="Download").first.click()
    assert download.value.suggested_filename == "Кот-v1.safetensors"
    assert Path(download.value.path()).read_bytes() == own.read_bytes()
    assert foreign.read_bytes() == b"not ours"


def test_what_is_wrong_is_told_before_the_start(
    kind: Kind, site: Site, open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    (site.models_dir / "broken.safetensors").write_bytes(b"x" * 100)
    tab = open_tab(site)
    tab.make("Wrong")
    tab.id("train_base_model_refresh").click()
    tab.page.get_by_role("button", name="Begin Train").click()
    tab.shows(lambda: "base model" in tab.text("message") and "pictures" in tab.text("message"))
    tab.choose("train_base_model", "broken.safetensors")
    tab.shows(lambda: "broken.safetensors" in tab.text("model"))
    tab.drop([path for path in concept_files if path.suffix == ".txt"][:1])
    tab.fill("train_rank", "0")
    tab.shows(lambda: tab.page.get_by_text("0 is not a whole number from 1 to 1024").is_visible())
    assert "Traceback" not in tab.page.locator("body").inner_text()


def _train_quickly(tab: Tab, files: list[Path]) -> None:
    """One picture seen a few times; what it learns is no matter here."""
    tab.make_dataset(files[:2])
    tab.choose("train_base_model", "tiny_sd.safetensors")
    tab.fill("train_epochs", "2")
    tab.fill("dataset_repeats", "2")
    tab.shows(lambda: "= 4 steps" in tab.text("sum"))
    tab.page.get_by_role("button", name="Begin Train").click()
    tab.shows(lambda: "finished" in tab.text("progress").lower(), TRAIN_S)
    tab.shows(lambda: tab.live("results").get_by_text("in models/Lora").count() == 1)
