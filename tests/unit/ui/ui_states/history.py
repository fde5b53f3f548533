"""The history of a training: its row of buttons, and how it differs from another."""

from __future__ import annotations

from typing import get_args

from lora_train.app.history_snapshot import Comparison, HistoryNote
from lora_train.core.history_differences import PictureChange, PictureDifference, SettingDifference
from lora_train.ui.view_history import comparison_html, history_row


def history_states() -> dict[str, str]:
    job = "projects/cat/versions/v1/trains/cat-v1"
    torch = SettingDifference("torch", "torch", "2.9", "2.10")
    epochs = SettingDifference("epochs", "Number of epochs", "3", "4")
    every_kind = [PictureDifference(f"{kind}.png", kind, "1", "2") for kind in get_args(PictureChange)]
    many = [PictureDifference(f"{number}.png", "added") for number in range(300)]
    return {
        "history": history_row(job, HistoryNote(is_noted=True, others=[("other", "cat-v1-2")]), "other", "t"),
        "history versions": history_row(job, HistoryNote(is_noted=True, versions=[torch], can_undo=True), "", "t"),
        "history unknown": history_row(job, HistoryNote(), "", "t"),
        "comparison": comparison_html(Comparison(before="a", after="b", pictures=every_kind, settings=[epochs])),
        "comparison long": comparison_html(Comparison(before="a", after="b", pictures=many, versions=[torch])),
        "comparison same": comparison_html(Comparison(before="a", after="b")),
    }
