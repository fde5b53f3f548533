"""The curves of a training as rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_train.core import events as ev
from lora_train.core.curve_table import CurveRow, curve_csv, curve_json, curve_rows

if TYPE_CHECKING:
    from pathlib import Path


def written(path: Path, *events: ev.Event) -> Path:
    writer = ev.EventWriter(path)
    writer.write(*events)
    writer.close()
    return path


def test_every_step_and_validation(tmp_path: Path) -> None:
    path = written(
        tmp_path / "events.jsonl",
        ev.Started(pid=1, step=0),
        ev.Validated(0, 0.5, 0.5),
        ev.Step(1, 1, 0.25, 1e-4, 0.5),
        ev.Step(2, 1, 0.375, 1e-4, 0.5),
        ev.Validated(2, 0.4, 0.5),
        ev.Step(3, 2, 0.125, 5e-5, 0.5),
        ev.Started(pid=2, step=2),
        ev.Step(3, 2, 0.75, 5e-5, 1.0),
    )
    rows = curve_rows(path)
    assert rows == [
        CurveRow(0, validation_loss=0.5, base_loss=0.5),
        CurveRow(1, 1, 0.25, 1e-4, 0.5),
        CurveRow(2, 1, 0.375, 1e-4, 0.5, 0.4, 0.5),
        CurveRow(3, 2, 0.75, 5e-5, 1.0),
    ]
    assert curve_csv(rows).splitlines() == [
        "step,epoch,loss,lr,s_per_step,validation_loss,base_loss",
        "0,,,,,0.5,0.5",
        "1,1,0.25,0.0001,0.5,,",
        "2,1,0.375,0.0001,0.5,0.4,0.5",
        "3,2,0.75,5e-05,1.0,,",
    ]
    told = json.loads(curve_json("猫", rows))
    assert told["train"] == "猫"
    assert told["points"][2] == {
        "step": 2,
        "epoch": 1,
        "loss": 0.375,
        "lr": 1e-4,
        "s_per_step": 0.5,
        "validation_loss": 0.4,
        "base_loss": 0.5,
    }


def test_nothing_happened_yet(tmp_path: Path) -> None:
    assert curve_rows(tmp_path / "events.jsonl") == []
    assert curve_csv([]).count("\n") == 1
