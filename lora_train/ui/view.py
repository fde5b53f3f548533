"""Everything that the page shows beside its controls: plain structs in, HTML text out, no gradio.

All that comes from outside is escaped. Buttons carry what they do (`data-post`, `data-body`); the page's script
does it.
"""

from __future__ import annotations

from typing import Literal

from lora_train.app.snapshot import Undo
from lora_train.ui.chart import SMOOTHING
from lora_train.ui.html import live, paragraph, post_button, sentence, value, words
from lora_train.ui.view_dataset import dataset_html, model_html, sum_html
from lora_train.ui.view_health import health_html
from lora_train.ui.view_progress import progress_html, queue_html
from lora_train.ui.view_results import results_html

__all__ = [
    "SMOOTHING",
    "dataset_html",
    "health_html",
    "live",
    "message_html",
    "model_html",
    "progress_html",
    "queue_html",
    "results_html",
    "sum_html",
]


def message_html(text: str, hint: str = "", kind: Literal["info", "error"] = "info", undo: Undo | None = None) -> str:
    """A message with what to do; of something deleted with the button that brings it back. Empty without both."""
    if not text and undo is None:
        return ""
    lines = [paragraph(sentence(line)) for line in (*text.splitlines(), *hint.splitlines())]
    if undo is not None:
        button = post_button("Undo", "trash/restore", {"entry": undo.entry}, done="It is back.")
        lines.append(paragraph(f"{words('Deleted:')} {value(undo.what)} {button}"))
    close = '<button type="button" class="train-tools-close" data-close aria-label="Close" title="Close">×</button>'
    return f'<div class="train-tools-message train-tools-{kind}">{close}<div>{"".join(lines)}</div></div>'
