"""The preset of a version and a person's own presets, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from lora_train.app.snapshot import PresetEntry, PresetRow, PresetState, Selection
from lora_train.core.purposes import PURPOSES
from lora_train.ui.html import BASE, attributes_text, number_text, paragraph, post_button, sentence, value, words

AGAIN = "train_tools_preset_again"
"""The button that fills the form with the saved settings."""

LABELS = {name: name.capitalize() for name in PURPOSES}
"""What the presets of Train Tools are called on the page."""


def preset_html(state: PresetState, selection: Selection) -> str:
    """The preset in use with what it changed and why, what it has for another base model, or the one proposed."""
    body = {"project": selection.project, "version": selection.version}
    if not state.name:
        return _proposal(state, body)
    undo = post_button("Undo", "presets/undo", body, done="The settings are as they were.", then=AGAIN)
    head = f"{words('Preset in use:')} {preset_name(state.name)} {words('for')} {value(state.family)} {undo}"
    parts = [paragraph(head)]
    if state.about:
        parts.append(paragraph(sentence(state.about), "train-tools-quiet"))
    if state.is_gone:
        parts.append(paragraph(words("It was deleted or renamed since; the settings stay."), "train-tools-quiet"))
    if state.saved_for:
        doubt = words("Rates and steps may not suit this base model.")
        parts.append(paragraph(f"{words('It was saved for')} {value(state.saved_for)}. {doubt}", "train-tools-quiet"))
    if state.other_family:
        parts.append(_offer(state, body))
    parts.append(_table("preset", "What it changed, and why", state.changed))
    return "".join(parts)


def preset_name(name: str) -> str:
    """Of Train Tools' presets words, of others what their person typed."""
    return words(LABELS[name]) if name in LABELS else value(name)


def own_presets_html(entries: Sequence[PresetEntry], token: str) -> str:
    """A person's own presets with their files to download; nothing where there are none."""
    rows: list[str] = []
    for entry in entries:
        if not entry.is_own:
            continue
        query = urlencode({"name": entry.name, **({"token": token} if token else {})})
        link = attributes_text({"href": f"{BASE}presets/file?{query}", "data-key": f"preset {entry.name}"})
        told = f' <span class="train-tools-warning">{sentence(entry.problem)}</span>' if entry.problem else ""
        rows.append(f"<li>{value(entry.name)} <a download{link}>{words('Download')}</a>{told}</li>")
    return f'<ul class="train-tools-list">{"".join(rows)}</ul>' if rows else ""


def _proposal(state: PresetState, body: dict[str, str]) -> str:
    if not state.proposed:
        return ""
    apply = post_button(
        "Apply", "presets/apply", {**body, "name": state.proposed}, done="The preset is applied.", then=AGAIN
    )
    head = f"{words('Proposed, as before in this project:')} {preset_name(state.proposed)} {apply}"
    return paragraph(head) + paragraph(sentence(state.proposed_about), "train-tools-quiet")


def _offer(state: PresetState, body: dict[str, str]) -> str:
    """The base model is of another family now."""
    told = f"{words('The base model is another one now:')} {value(state.other_family)}."
    if not state.offered:
        return paragraph(f"{told} {words('The preset has the same values for it.')}", "train-tools-quiet")
    take = post_button(
        "Take its values", "presets/apply", {**body, "name": state.name}, done="The preset is applied.", then=AGAIN
    )
    head = paragraph(f"{told} {words('The preset has other values for it.')} {take}")
    table = _table("preset offer", "What would change, and why", state.offered)
    return f'<div class="train-tools-box train-tools-warning">{head}{table}</div>'


def _table(key: str, title: str, rows: Sequence[PresetRow]) -> str:
    if not rows:
        return paragraph(words("It changed nothing: all settings were so already."), "train-tools-quiet")
    cells = "".join(map(_row, rows))
    summary = f"<summary>{words(title)}</summary>"
    return (
        f'<details class="train-tools-details" data-key="{key}">{summary}'
        f'<table class="train-tools-table">{cells}</table></details>'
    )


def _row(row: PresetRow) -> str:
    change = f"{value(_shown(row.before))} {value('→')} {value(_shown(row.value))}"
    return f"<tr><th>{sentence(row.label)}</th><td>{change}</td><td>{sentence(row.why)}</td></tr>"


def _shown(setting: Any) -> str:
    if isinstance(setting, bool):
        return "✓" if setting else "✗"
    if isinstance(setting, float):
        return number_text(setting)
    if isinstance(setting, list | tuple):
        return ", ".join(number_text(part) if isinstance(part, float) else str(part) for part in setting) or "–"
    return str(setting) or "–"
