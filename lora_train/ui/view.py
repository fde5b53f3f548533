"""Everything that the page shows beside its controls: plain structs in, HTML text out, no gradio.

All that comes from outside is escaped. Buttons carry what they do (`data-post`, `data-body`); the page's script
does it.
"""

from __future__ import annotations

from typing import Literal

from lora_train.app.snapshot import Undo
from lora_train.ui.chart import SMOOTHING
from lora_train.ui.html import counted, live, paragraph, post_button, sentence, value, words
from lora_train.ui.view_captioning import captioning_html
from lora_train.ui.view_captions import captions_html
from lora_train.ui.view_dataset import dataset_html, model_html, sum_html
from lora_train.ui.view_doctor import doctor_html
from lora_train.ui.view_grids import grids_html, grids_sum_html
from lora_train.ui.view_health import health_html
from lora_train.ui.view_history import comparison_html, history_row
from lora_train.ui.view_judge import judge_html
from lora_train.ui.view_optimizers import optimizers_html
from lora_train.ui.view_presets import own_presets_html, preset_html
from lora_train.ui.view_progress import progress_html, queue_html
from lora_train.ui.view_regularisation import effect_html, regularisation_html
from lora_train.ui.view_results import results_html
from lora_train.ui.view_sweeps import sweep_sum_html, sweeps_html
from lora_train.ui.view_tasks import tasks_html

__all__ = [
    "SMOOTHING",
    "captioning_html",
    "captions_html",
    "comparison_html",
    "counted_message_html",
    "dataset_html",
    "doctor_html",
    "effect_html",
    "grids_html",
    "grids_sum_html",
    "health_html",
    "history_row",
    "judge_html",
    "live",
    "message_html",
    "model_html",
    "optimizers_html",
    "own_presets_html",
    "preset_html",
    "progress_html",
    "queue_html",
    "regularisation_html",
    "results_html",
    "sum_html",
    "sweep_sum_html",
    "sweeps_html",
    "tasks_html",
]


def message_html(text: str, hint: str = "", kind: Literal["info", "error"] = "info", undo: Undo | None = None) -> str:
    """A message with what to do; of something deleted with the button that brings it back. Empty without both."""
    if not text and undo is None:
        return ""
    lines = [paragraph(sentence(line)) for line in (*text.splitlines(), *hint.splitlines())]
    if undo is not None:
        button = post_button("Undo", "trash/restore", {"entry": undo.entry}, done="It is back.")
        lines.append(paragraph(f"{words('Deleted:')} {value(undo.what)} {button}"))
    return _box("".join(lines), kind)


def counted_message_html(number: int, one: str, many: str) -> str:
    """`16 captions changed.`"""
    return _box(paragraph(counted(number, one, many)), "info")


def _box(inner: str, kind: Literal["info", "error"]) -> str:
    close = '<button type="button" class="train-tools-close" data-close aria-label="Close" title="Close">×</button>'
    return f'<div class="train-tools-message train-tools-{kind}">{close}<div>{inner}</div></div>'
