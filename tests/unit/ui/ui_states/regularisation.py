"""Regularisation pictures by class, a drawing of some, and what they do to the steps."""

from __future__ import annotations

from lora_train.app.snapshot import RegularisationClass, RegularisationForecast, RegularisationSnapshot, Selection
from lora_train.core.jobs import JobStatus
from lora_train.ui import view

_CLASSES = [RegularisationClass("../reg/1_cat", "cat", 1, 20), RegularisationClass("../reg", "", 2, 1)]


def _drawing_states() -> dict[str, RegularisationSnapshot]:
    drawings = {
        "drawing waits": (JobStatus(state="waiting"), True),
        "drawing": (JobStatus(state="running", phase_done=3, phase_total=20), True),
        "drawing begins": (JobStatus(state="running"), True),
        "drawing failed": (JobStatus(state="failed", message="The card is full.", hint="Stop what uses it."), False),
        "drawing with notes": (JobStatus(state="finished", notes=["The end was cut off.\n77 / 75: a cat"]), False),
        "drawing finished": (JobStatus(state="finished"), False),
    }
    return {
        name: RegularisationSnapshot(classes=_CLASSES, job="jobs/9", status=status, is_drawing=is_drawing)
        for name, (status, is_drawing) in drawings.items()
    }


def _effect_states() -> dict[str, RegularisationForecast]:
    steps = {"training_views": 162, "total_steps": 1620, "total_steps_without": 1620}
    drawn = {"pictures": 20, "used_per_epoch": 20, "training_views": 162}
    return {
        "effect unknown": RegularisationForecast(problems=["There are no pictures yet."]),
        "effect of none": RegularisationForecast(**steps),
        "effect of those there are": RegularisationForecast(**drawn, total_steps=3240, total_steps_without=1620),
        "effect of more": RegularisationForecast(**steps, count=20, total_steps_with=3240, seconds=90.0),
        "effect of one step": RegularisationForecast(total_steps=1, total_steps_without=1),
    }


def regularisation_states() -> dict[str, str]:
    snapshots = {
        "no regularisation": RegularisationSnapshot(),
        "regularisation": RegularisationSnapshot(classes=_CLASSES),
        **_drawing_states(),
    }
    return {
        **{name: view.regularisation_html(snapshot, Selection("Cat", "v1")) for name, snapshot in snapshots.items()},
        **{name: view.effect_html(forecast) for name, forecast in _effect_states().items()},
    }
