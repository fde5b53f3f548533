"""What the judge is asked to do with a training, checked before anything is made."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from lora_train.core.errors import ConfigError, JobError
from lora_train.core.jobs import JobFolder, status_from_events
from lora_train.core.judgement import PICTURES, WEIGHTS
from lora_train.core.specs import JudgeSpec, TrainSpec
from lora_train.core.workspace import Workspace

_HEAVIEST = 4.0
_ORDINARY_PROMPTS = ("a photo of a house", "a photo of a tree", "a photo of a car", "a photo of a person")


def judge_spec(
    workspace: Workspace,
    train: JobFolder,
    *,
    weights: Sequence[float] = WEIGHTS,
    pictures: int = PICTURES,
    encoder: str = "",
) -> JudgeSpec:
    """The spec of a job in `workspace.new_job_dir("judge")` that judges all LoRAs of a training that are there.

    Raises ConfigError for numbers that can't be, JobError where `train` is no training or has no LoRA.
    """
    spec = train.read_spec()
    if not isinstance(spec, TrainSpec):
        raise JobError(f"{train.path} is not a training.", "Give the folder that `lora-train train` printed first.")
    if not weights or not all(math.isfinite(weight) and weight and abs(weight) <= _HEAVIEST for weight in weights):
        raise ConfigError([f"weights: each is a number from -{_HEAVIEST:g} to {_HEAVIEST:g} other than 0"])
    loras = tuple(name for name in status_from_events(train.events()).saved if (train.path / name).is_file())
    if not loras:
        raise JobError(f"{train.path} has no LoRA yet.", "Let the training save one first.")
    return JudgeSpec(
        train=Path(os.path.relpath(train.path, workspace.root / "jobs" / "judge")).as_posix(),
        loras=loras,
        weights=tuple(weights),
        prompts=(),
        ordinary_prompts=_ORDINARY_PROMPTS,
        pictures=pictures,
        encoder=encoder,
        settings=spec.settings,
    )
