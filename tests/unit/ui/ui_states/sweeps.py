"""What a sweep would do, and the table of one that was begun."""

from __future__ import annotations

from typing import get_args

from lora_train.app.sweep_snapshot import PlanRow, SweepForecast, SweepRow, SweepSnapshot
from lora_train.core.jobs import JobStatus, State
from lora_train.core.sweep_record import Ending
from lora_train.ui import view

_LABELS = ["Lion · 0.0001", "Lion · 0.0002", "AdamW · 0.0001", "AdamW · 0.0002"]
_PLAN = [PlanRow(4, 100, 120, False, 300.0), PlanRow(2, 200, 240, False, 300.0), PlanRow(1, 400, 480, True, 300.0)]
_MORNING = 1_700_000_000.0


def _forecasts() -> dict[str, SweepForecast]:
    known = {"labels": _LABELS, "total_steps": 1600, "disk_bytes": 400_000_000}
    timed = {**known, "finish_by": _MORNING}
    return {
        "empty": SweepForecast(
            problems=["Give two values or more in one of the lists: each combination becomes a run."]
        ),
        "problem of one run": SweepForecast(labels=_LABELS, problems=["AdamW · 0.0001: there are no pictures yet."]),
        "known": SweepForecast(**known, seconds=7800.0),
        "unknown time": SweepForecast(**known),
        "one run of one step": SweepForecast(labels=["a"], total_steps=1),
        "halving": SweepForecast(**timed, plan=_PLAN, seconds=900.0, warnings=["There is no time."]),
        "all to the end": SweepForecast(**timed, plan=[PlanRow(4, 400, 400, True, 300.0)], seconds=300.0),
        "trial": SweepForecast(**timed, plan=[PlanRow(4, 20, 20, False)]),
    }


def _row(state: State, **facts: object) -> SweepRow:
    status = JobStatus(state=state, step=7, total_steps=9, loss=0.1234)
    job = "-".join(["projects/Cat", state, *facts])
    return SweepRow(**{"job": job, "name": "Cat-v1", "label": state, "status": status, **facts})


def _snapshots() -> dict[str, SweepSnapshot]:
    validated = JobStatus(state="finished", validation_loss=0.08, base_validation_loss=0.1)
    rows = [
        *(_row(state) for state in get_args(State)),
        _row("waiting", is_waiting=True),
        _row("stopped", is_dropped=True, lora="Cat-v1-step000007.safetensors"),
        _row("finished", is_best=True, judge_score=0.81, judge_weight=0.8),
        _row("finished", status=validated),
        SweepRow(job="", name="Cat-v1-r2", label="deleted", status=JobStatus(validation_loss=0.2)),
    ]
    sweep = "projects/Cat/versions/v1/sweeps/20260101-000000"
    endings = {
        f"ended {ending}": SweepSnapshot(id=sweep, created=_MORNING, ended=ending, rows=rows[:1])
        for ending in get_args(Ending)
    }
    halving = SweepSnapshot(
        id=sweep, created=_MORNING, ended="", rows=rows, finish_by=_MORNING, rung=1, plan=_PLAN, notes=["Compared."]
    )
    return {**endings, "halving": halving}


def sweep_states() -> dict[str, str]:
    return {
        **{f"sweep sum, {name}": view.sweep_sum_html(forecast) for name, forecast in _forecasts().items()},
        **{f"sweep, {name}": view.sweeps_html([snapshot]) for name, snapshot in _snapshots().items()},
        "no sweep": view.sweeps_html([]),
    }
