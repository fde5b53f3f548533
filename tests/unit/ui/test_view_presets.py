"""Presets on the page: what changed and why, buttons that do what they say, and nothing foreign as HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from typing import Any

from lora_train.app.snapshot import Forecast, PresetEntry, PresetRow, PresetState, Selection
from lora_train.ui import view

EVIL = "\"'><script>alert(1)</script>&"
SHOWN = Selection("cat", "v1")
ROWS = [
    PresetRow("learning_rate", "Learning rate", 5e-5, 1e-4, "Slow."),
    PresetRow("flip", "Flip", True, False, "More views."),
    PresetRow("optimizer_args", "Optimizer arguments", ("a=1", "b=2"), (), ""),
]


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def buttons(html: str) -> dict[str, tuple[str, dict[str, Any], str]]:
    """Text -> route, body and what is pressed afterwards."""
    found: dict[str, tuple[str, dict[str, Any], str]] = {}
    for attributes, text in re.findall(r"<button([^>]*)>([^<]*)</button>", html):
        told = {name: unescape(content) for name, content in re.findall(r'(data-[a-z]+)="([^"]*)"', attributes)}
        found[text] = told["data-post"], json.loads(told["data-body"]), told.get("data-then", "")
    return found


def test_nothing_foreign_becomes_html(page_words: Callable[[str], set[str]]) -> None:
    row = PresetRow(EVIL, EVIL, EVIL, EVIL, EVIL)
    for html in (
        view.preset_html(
            PresetState(EVIL, EVIL, True, EVIL, EVIL, [row], other_family=EVIL, offered=[row]), Selection(EVIL, EVIL)
        ),
        view.preset_html(PresetState(proposed=EVIL, proposed_about=EVIL), Selection(EVIL, EVIL)),
        view.own_presets_html([PresetEntry(EVIL, EVIL, is_own=True, problem=EVIL)], EVIL),
    ):
        assert "<script" not in html
        assert not any("alert" in text for text in page_words(html))


def test_what_changed_and_why() -> None:
    html = view.preset_html(PresetState("style", "How it is drawn.", family="SDXL", changed=ROWS), SHOWN)
    text = text_of(html)
    assert "Preset in use: Style for SDXL Undo How it is drawn." in text
    assert "Learning rate 0.0001 → 0.00005 Slow." in text
    assert "Flip ✗ → ✓ More views." in text
    assert "Optimizer arguments – → a=1, b=2" in text
    assert buttons(html) == {"Undo": ("presets/undo", {"project": "cat", "version": "v1"}, "train_tools_preset_again")}


def test_another_base_model() -> None:
    state = PresetState("mine", family="SDXL", other_family="Stable Diffusion 1.x", offered=ROWS[:1])
    html = view.preset_html(state, SHOWN)
    assert "The base model is another one now: Stable Diffusion 1.x . The preset has other values" in text_of(html)
    route, body, then = buttons(html)["Take its values"]
    assert (route, body) == ("presets/apply", {"project": "cat", "version": "v1", "name": "mine"})
    assert then == "train_tools_preset_again"
    same = view.preset_html(PresetState("mine", family="SDXL", other_family="Stable Diffusion 1.x"), SHOWN)
    assert list(buttons(same)) == ["Undo"]


def test_a_proposal() -> None:
    html = view.preset_html(PresetState(proposed="pose", proposed_about="How a body stands."), SHOWN)
    assert buttons(html)["Apply"][1]["name"] == "pose"
    assert view.preset_html(PresetState(), SHOWN) == ""


def test_files_to_give_away() -> None:
    entries = [PresetEntry("style", "x"), PresetEntry("自作 & more", is_own=True)]
    html = view.own_presets_html(entries, "T")
    assert 'href="./train-tools/v1/presets/file?name=%E8%87%AA%E4%BD%9C+%26+more&amp;token=T"' in html
    assert "style" not in text_of(html)
    assert view.own_presets_html(entries[:1], "T") == ""


def test_the_sum_tells_what_repeats_are_for() -> None:
    told = Forecast(pictures=10, repeats=32, views_per_epoch=320, epochs=10, total_steps=1600, batch_size=2)
    assert "chosen for" not in text_of(view.sum_html(told))
    told.aimed_steps = 1600
    assert text_of(view.sum_html(told)).endswith("The repeats are chosen for 1600 steps .")
    told.is_over_aim = True
    text = text_of(view.sum_html(told))
    assert "already make more than is aimed at: 1600 steps . Choose fewer epochs or a larger batch." in text
