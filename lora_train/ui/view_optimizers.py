"""What stands below the choice of an optimizer: why some can't be chosen, and what adds them."""

from __future__ import annotations

from collections.abc import Sequence

from lora_train.app.snapshot import OptimizerEntry
from lora_train.ui.html import apart, paragraph, sentence, value, words


def optimizers_html(entries: Sequence[OptimizerEntry], chosen: str) -> str:
    """What is known of the chosen one, if its package is an optional one, and a closed list of those not installed."""
    mine = next((entry for entry in entries if entry.name == chosen), None)
    parts: list[str] = []
    if mine is not None and mine.problem:
        parts.append(paragraph(sentence(mine.problem), "train-tools-warning"))
    elif mine is not None:
        text = "is being tried out" if mine.state == "checking" else "works here"
        parts.append(paragraph(f"{value(mine.name)} {words(text)}", "train-tools-quiet"))
    return "".join(parts) + _absent([entry for entry in entries if entry.state == "absent"])


def _absent(entries: Sequence[OptimizerEntry]) -> str:
    """Package by package: the optimizers that it has, and what to type."""
    if not entries:
        return ""
    rows: list[str] = []
    for command in dict.fromkeys(entry.command for entry in entries):
        names = apart(value(entry.name) for entry in entries if entry.command == command)
        rows.append(f"<li>{names} {value(command, 'train-tools-command')}</li>")
    names = value(", ".join(entry.name for entry in entries))
    summary = f"<summary>{words('Not installed:')} {names}</summary>"
    hint = paragraph(words("This adds them, typed into a terminal:"), "train-tools-quiet")
    listed = f'<ul class="train-tools-list">{"".join(rows)}</ul>'
    return f'<details class="train-tools-details" data-key="optimizers">{summary}{hint}{listed}</details>'
