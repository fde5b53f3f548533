"""How fast trainings went on this machine, to tell how long the next one will take."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lora_train.core.config import TrainSettings
from lora_train.core.jobs import JobStatus, TrainSpec
from lora_train.core.workspace import read_json, write_json

_FEWEST_STEPS = 10
"""Before, the time of a step is that of warming up."""


class _Paces(msgspec.Struct):
    """`paces.json`: what decides the time of a step -> seconds of the last training that was like it."""

    s_per_step: dict[str, float] = {}


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
        settings.gradient_checkpointing,
        settings.precision,
        settings.device,
    )
    return "|".join(str(part) for part in parts)
