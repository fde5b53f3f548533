"""The caption editor: captions and tags, what an edit would change, and what can be undone."""

from __future__ import annotations

from typing import get_args

import msgspec

from lora_train.app.captions import CaptionChange, CaptionRow, CaptionsSnapshot, StepTitle
from lora_train.app.snapshot import Selection
from lora_train.data.caption_edits import (
    AddTags,
    AppendText,
    DedupeTags,
    Operation,
    PrependText,
    RemoveTags,
    Replace,
    SetText,
    SortTags,
    TriggerFirst,
    title,
)
from lora_train.data.caption_tags import TagCount
from lora_train.ui import view, view_captions

_OPERATIONS: tuple[Operation, ...] = (
    AddTags("cat"),
    RemoveTags("dog"),
    Replace("grey", "gray"),
    PrependText("a photo"),
    AppendText("outside"),
    SortTags(),
    DedupeTags(),
    TriggerFirst(),
    SetText("sks cat"),
)
_OF_ONE_PICTURE = "Caption"
"""The step of a caption that is written in the picture's own editor (`app.datasets`)."""


def _row(number: int, **changes: object) -> CaptionRow:
    row = CaptionRow(
        file=f"9_Cat/{number:05d}-0-cat.png",
        caption="sks cat, grass",
        tags=["sks cat", "grass"],
        tokens=6,
        cut_tokens=0,
        is_regularisation=False,
        stamp=f"{number:012x}",
    )
    return msgspec.structs.replace(row, **changes)


def _snapshot(rows: list[CaptionRow], **changes: object) -> CaptionsSnapshot:
    snapshot = CaptionsSnapshot(
        rows=rows,
        total=len(rows),
        tags=[TagCount("sks cat", 18), TagCount("grass", 3)],
        common=["sks cat"],
        one_off=["gras"],
        trigger_word="sks cat",
        max_tokens=75,
    )
    return msgspec.structs.replace(snapshot, **changes)


def _steps() -> list[tuple[str, str]]:
    """What and detail of everything that can be undone."""
    assert {type(operation) for operation in _OPERATIONS} == set(get_args(Operation))
    return [*map(title, _OPERATIONS), (_OF_ONE_PICTURE, "9_Cat/00001-0-cat.png")]


def _undo_states() -> dict[str, str]:
    found: dict[str, str] = {}
    for what, detail in _steps():
        step = StepTitle(what, detail, 7, 1_700_000_000.0)
        found[f"undo of {what}"] = view.captions_html(_snapshot([_row(1)], undo=step), Selection("Cat", "v1"), "T")
        found[f"redo of {what}"] = view.captions_html(_snapshot([_row(1)], redo=step), Selection("Cat", "v1"), "T")
    return found


def caption_states() -> dict[str, str]:
    kinds = [_row(1), _row(2, caption="", tags=[]), _row(3, tokens=91, cut_tokens=16)]
    problem = "The history of the captions can't be read: no such disk."
    snapshots = {
        "no captions": CaptionsSnapshot(),
        "captions": _snapshot([*kinds, _row(4, is_regularisation=True)]),
        "one caption of one tag": _snapshot([_row(1)], tags=[TagCount("sks cat", 1)]),
        "captions behind a filter": _snapshot(kinds, total=18),
        "captions all hidden": _snapshot([], total=18),
        "many captions": _snapshot([_row(number) for number in range(201)]),
        "captions of many tags": _snapshot(kinds, tags=[TagCount(f"tag {number}", 1) for number in range(81)]),
        "captions that can't be counted": _snapshot([_row(1, tokens=None)], problems=[problem]),
    }
    changes = [CaptionChange(f"9_Cat/{number}.png", "cat", "sks cat") for number in range(51)]
    return {
        **{name: view.captions_html(its, Selection("Cat", "v1"), "T") for name, its in snapshots.items()},
        **_undo_states(),
        "no change": view_captions.changes_html([]),
        "one change": view_captions.changes_html(changes[:1]),
        "many changes": view_captions.changes_html(changes),
        "one caption changed": view.counted_message_html(1, "caption changed.", "captions changed."),
        "captions changed": view.counted_message_html(16, "caption changed.", "captions changed."),
    }
