"""How fast trainings and drawing went on this machine, to tell how long the next ones will take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from lora_train.core.config import TrainSettings
from lora_train.core.events import Event, Phase
from lora_train.core.jobs import JobStatus
from lora_train.core.judgement import JUDGING
from lora_train.core.specs import DRAWING_REGULARISATION, JudgeSpec, RegularisationSpec, TrainSpec
from lora_train.core.workspace import read_json, write_json

_FEWEST_STEPS = 10
"""Before, the time of a step is that of warming up."""


class _Paces(msgspec.Struct):
    """`paces.json`: what decides the time of a step -> seconds of the last training that was like it."""

    s_per_step: dict[str, float] = {}
    s_per_picture: dict[str, float] = {}
    s_per_judged: dict[str, float] = {}


def remember_pace(root: Path, spec: TrainSpec, status: JobStatus) -> None:
    """Keep the seconds per step that a training had in the end."""
    if status.s_per_step is None or status.step < _FEWEST_STEPS:
        return
    paces = _read(root)
    paces.s_per_step[_key(spec.settings)] = status.s_per_step
    write_json(root / "paces.json", paces)


def expected_s_per_step(root: Path, settings: TrainSettings) -> float | None:
    """Seconds per step of the last training like this one; None where there was none."""
    return _read(root).s_per_step.get(_key(settings))


def remember_drawing_pace(root: Path, spec: RegularisationSpec, events: Sequence[Event]) -> None:
    """Keep the seconds per picture that a job took, also one that was stopped."""
    _remember(root, "s_per_picture", spec.settings, _pace(events, DRAWING_REGULARISATION))


def expected_s_per_picture(root: Path, settings: TrainSettings) -> float | None:
    """Seconds per picture of the last drawing like this one; None where there was none."""
    return _read(root).s_per_picture.get(_drawing_key(settings))


def remember_judging_pace(root: Path, spec: JudgeSpec, events: Sequence[Event]) -> None:
    """Keep the seconds per picture, drawn and measured, that a judge took, also one that was stopped."""
    _remember(root, "s_per_judged", spec.settings, _pace(events, JUDGING))


def expected_s_per_judged(root: Path, settings: TrainSettings) -> float | None:
    """Seconds per picture of the last judge like this one; None where there was none."""
    return _read(root).s_per_judged.get(_drawing_key(settings))


def _pace(events: Sequence[Event], phase: str) -> float | None:
    """Seconds for each `done` of a phase; None where nothing was done in it."""
    told = [event for event in events if isinstance(event, Phase) and event.name == phase]
    if not told or told[-1].done <= told[0].done:
        return None
    return (told[-1].t - told[0].t) / (told[-1].done - told[0].done)


def _remember(
    root: Path, what: Literal["s_per_picture", "s_per_judged"], settings: TrainSettings, pace: float | None
) -> None:
    if pace is None:
        return
    paces = _read(root)
    getattr(paces, what)[_drawing_key(settings)] = pace
    write_json(root / "paces.json", paces)


def _read(root: Path) -> _Paces:
    return read_json(root / "paces.json", _Paces, _Paces())


def _key(settings: TrainSettings) -> str:
    """The base model's size is not known to other files of it: its name stands for it."""
    parts = (
        Path(settings.base_model).name,
        settings.resolution,
        settings.batch_size,
        settings.gradient_accumulation_steps,
        settings.train_text_encoder,
        settings.train_sdxl_text_encoders,
        settings.gradient_checkpointing,
        settings.precision,
        settings.device,
    )
    return "|".join(str(part) for part in parts)


def _drawing_key(settings: TrainSettings) -> str:
    parts = (
        Path(settings.base_model).name,
        settings.preview_size_px,
        settings.preview_sampler,
        settings.preview_steps,
        settings.precision,
        settings.device,
    )
    return "|".join(str(part) for part in parts)
