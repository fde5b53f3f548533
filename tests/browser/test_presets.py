"""Presets, optimizers and other families: what a person chooses in the form of step 2, and what is told of it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.conftest import Kind, Site, Tab


def test_a_preset_tells_why_and_leads_back(site: Site, open_tab: Callable[..., Tab]) -> None:
    tab = _form(open_tab(site), "Painted")
    tab.open_group("Network")
    tab.id("train_conv_rank").wait_for(state="visible")
    tab.fill("train_rank", "7")
    tab.choose("preset_choice", "Style")
    tab.shows(lambda: _value(tab, "rank") == "32" and _value(tab, "conv_rank") == "8")
    assert tab.text("preset").startswith("Preset in use: Style for the small demo model")
    _open_reasons(tab)
    row = tab.live("preset").locator("tr", has_text="Net dim (rank)")
    assert "7 → 32" in row.inner_text()
    reasons = tab.live("preset").locator("td:last-child").all_inner_texts()
    assert len(reasons) > 5
    assert all(reason.endswith(".") for reason in reasons), "a sentence beside every value"

    tab.open()
    tab.shows(lambda: tab.chosen("preset_choice") == "Style" and _value(tab, "rank") == "32")
    _open_reasons(tab)
    tab.open_group("Network")
    tab.shows(lambda: _value(tab, "conv_rank") == "8")
    tab.live("preset").get_by_role("button", name="Undo").click()
    tab.shows(lambda: _value(tab, "rank") == "7" and _value(tab, "conv_rank") == "0")
    tab.shows(lambda: tab.chosen("preset_choice") == "None" and "Preset in use" not in tab.text("preset"))
    assert not tab.errors


def test_an_own_preset_is_saved_shared_and_taken_in_again(
    site: Site, open_tab: Callable[..., Tab], tmp_path: Path
) -> None:
    tab = _form(open_tab(site), "Shared")
    tab.fill("train_rank", "11")
    tab.open_group("Your own presets")
    tab.fill("preset_name", "夜の絵")
    tab.id("preset_save").click()
    tab.shows(lambda: "The preset is saved." in tab.text("message") and "夜の絵" in tab.text("presets"))
    with tab.page.expect_download() as download:
        tab.live("presets").get_by_role("link", name="Download").click()
    shared = tmp_path / download.value.suggested_filename
    download.value.save_as(shared)
    assert "夜の絵" in shared.name

    tab.choose("preset_own", "夜の絵")
    tab.id("preset_delete").click()
    tab.shows(lambda: "夜の絵" not in tab.text("presets"))
    tab.drop([shared], "preset_upload")
    tab.shows(lambda: "夜の絵" in tab.text("presets"))
    tab.fill("train_rank", "5")
    tab.choose("preset_choice", "夜の絵")
    tab.shows(lambda: _value(tab, "rank") == "11")
    assert not tab.errors


def test_what_an_optimizer_needs_and_what_is_hardly_meant_is_told(
    kind: Kind, site: Site, open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    tab = _form(open_tab(site), "Warned", concept_files[:2])
    tab.choose("train_optimizer", "SGDNesterov8bit" if _has(kind, "bitsandbytes") else "AdamW8bit (not installed)")
    if not _has(kind, "bitsandbytes"):
        tab.shows(lambda: "needs the Python package bitsandbytes" in tab.text("optimizers"))
        assert tab.live("optimizers").get_by_text("pip install").count(), "the command that adds it"
    tab.choose("train_optimizer", "Prodigy" if _has(kind, "prodigyopt") else "Prodigy (not installed)")
    told = "Learning rate: Prodigy finds the rate itself" if _has(kind, "prodigyopt") else "needs the Python package"
    tab.shows(lambda: told in tab.text("sum"))
    tab.choose("train_optimizer", "AdamW")
    tab.shows(lambda: "Prodigy" not in tab.text("sum"))
    assert not tab.errors


def test_options_of_sd_scripts_are_taken_or_refused_by_name(
    site: Site, open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    tab = _form(open_tab(site), "Options", concept_files[:2])
    tab.open_group("Learning rate and optimizer")
    tab.fill("train_sd_script_args", "--network_dims=9")
    refused = "--network_dims is not known here (did you mean --network_dim?)"
    tab.shows(lambda: refused in tab.page.locator("#train_tools_page").inner_text())
    tab.fill("train_sd_script_args", "--network_dim=9")
    tab.shows(lambda: "Net dim (rank): 9 instead of 16, by the sd_script args." in tab.text("sum"))
    assert refused not in tab.page.locator("#train_tools_page").inner_text()
    assert not tab.errors


@pytest.mark.sites("standalone")
def test_an_sdxl_lora_is_trained_from_the_page(
    site: Site, open_tab: Callable[..., Tab], concept_files: list[Path], checkpoint_of: Callable[[str], Path]
) -> None:
    (site.models_dir / "wide.safetensors").write_bytes(checkpoint_of("sdxl").read_bytes())
    tab = open_tab(site)
    tab.make("Wide")
    tab.make_dataset(concept_files[:4])
    tab.id("train_base_model_refresh").click()
    tab.choose("train_base_model", "wide.safetensors")
    tab.shows(lambda: "SDXL" in tab.text("model") and "clip skip has no effect" in tab.text("model"))
    tab.open_group("Resolution and memory")
    for name, value in {"train_resolution": "64", "train_epochs": "1", "dataset_repeats": "1"}.items():
        tab.fill(name, value)
    tab.tick("train_generate_previews", False)
    tab.shows(lambda: "= 2 steps" in tab.text("sum"))
    tab.id("train_begin").click()
    tab.shows(lambda: "finished" in tab.text("progress").lower())
    tab.shows(lambda: "Wide-v1" in tab.text("results") and "SDXL" in tab.text("results"))
    tab.shows((site.lora_dir / "Wide-v1.safetensors").is_file)
    assert not tab.errors


def _form(tab: Tab, project: str, files: list[Path] | None = None) -> Tab:
    """A new project with the small model chosen, and pictures where they are needed."""
    tab.make(project)
    if files:
        tab.make_dataset(files)
    tab.choose("train_base_model", "tiny_sd.safetensors")
    tab.shows(lambda: "Stable Diffusion 1.x" in tab.text("model"))
    return tab


def _value(tab: Tab, setting: str) -> str:
    """Empty as long as it is not drawn: gradio 6 makes what is in an accordion when that is opened."""
    field = tab.field(f"train_{setting}")
    return field.input_value() if field.count() else ""


def _open_reasons(tab: Tab) -> None:
    tab.live("preset").get_by_text("What it changed, and why").click()


def _has(kind: Kind, package: str) -> bool:
    """Whether the Python that serves the page has a package."""
    look = f"import importlib.util as u; raise SystemExit(u.find_spec({package!r}) is None)"
    return subprocess.run([kind.python, "-c", look], check=False).returncode == 0
