"""The curves of a training as data: every step and every validation, none left out or averaged."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec

from lora_train.core import events as ev


class CurveRow(msgspec.Struct):
    """What was measured after a step; None where nothing was."""

    step: int
    epoch: int | None = None
    loss: float | None = None
    lr: float | None = None
    s_per_step: float | None = None
    validation_loss: float | None = None
    """On the held-out pictures."""
    base_loss: float | None = None
    """Of the base model alone, likewise."""


CSV_START = f"{','.join(CurveRow.__struct_fields__)}\n"
JSON_START = "{\n"
"""How the files begin."""


def curve_rows(events_path: Path) -> list[CurveRow]:
    """Every row in the order of steps. Steps that a resume did again are those of the last time."""
    rows: dict[int, CurveRow] = {}
    for event in (event for events, _ in ev.each_event(events_path) for event in events):
        if isinstance(event, ev.Step):
            row = rows.setdefault(event.step, CurveRow(event.step))
            row.epoch, row.loss, row.lr, row.s_per_step = event.epoch, event.loss, event.lr, event.s_per_step
        elif isinstance(event, ev.Validated):
            row = rows.setdefault(event.step, CurveRow(event.step))
            row.validation_loss, row.base_loss = event.loss, event.base_loss
        elif isinstance(event, ev.Started) and event.step is not None:
            rows = {step: row for step, row in rows.items() if step <= event.step}
    return [rows[step] for step in sorted(rows)]


def curve_csv(rows: list[CurveRow]) -> str:
    """With a heading; empty cells for what was not measured."""
    stream = io.StringIO()
    stream.write(CSV_START)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows(msgspec.structs.astuple(row) for row in rows)
    return stream.getvalue()


def curve_json(name: str, rows: list[CurveRow]) -> str:
    """`{"train": name, "points": [{"step": 1, ...}, ...]}`, null for what was not measured."""
    told = {"train": name, "points": rows}
    return msgspec.json.format(msgspec.json.encode(told), indent=1).decode("utf-8") + "\n"
