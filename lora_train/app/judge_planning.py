"""What the judge is asked to do with a training, checked before anything is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_train.app.datasets import Datasets
from lora_train.app.planning import check_base_model
from lora_train.app.version_settings import train_settings
from lora_train.core import presets
from lora_train.core.errors import ConfigError, JobError, WorkspaceError
from lora_train.core.files import relative_path
from lora_train.core.jobs import JobFolder, StatusReader
from lora_train.core.judgement import PICTURES, WEIGHTS, judge_prompts
from lora_train.core.specs import JudgeSpec, TrainSpec
from lora_train.core.workspace import Workspace

if TYPE_CHECKING:
    from lora_train.data.dataset import Dataset

MOST_PICTURES = 64
MOST_WEIGHTS = 16
HEAVIEST = 4.0


def judge_spec(
    workspace: Workspace,
    datasets: Datasets,
    train: JobFolder,
    *,
    weights: Sequence[float] = WEIGHTS,
    pictures: int = PICTURES,
    encoder: str | None = None,
    only: str = "",
) -> JudgeSpec:
    """The spec of a job in `workspace.new_job_dir("judge")` that judges all LoRAs of a training that are there, or a
    single one of them, with the encoder that its version's settings name where none is given.

    Raises ConfigError with all that is wrong, JobError where `train` is no training or has no LoRA, ModelError where
    its base model is gone.
    """
    spec, loras = what_is_judged(train, StatusReader(train).read().saved)
    loras = (only,) if only in loras else loras
    if encoder is None:
        encoder = _encoder_of_version(workspace, train)
    problems = [*_wrong_numbers(weights, pictures), *_wrong_encoder(encoder)]
    if problems:
        raise ConfigError(problems)
    facts = check_base_model(spec.settings)
    is_small = presets.is_small_model(facts.model_channels)
    return JudgeSpec(
        train=relative_path(train.path, workspace.jobs_dir / "judge"),
        loras=loras,
        weights=tuple(dict.fromkeys(weights)),
        prompts=_prompts(
            datasets.of_train(train, spec),
            spec,
            presets.SMALL_MODEL_CONTEXTS if is_small else presets.CONTEXTS,
            pictures,
        ),
        ordinary_prompts=presets.DEMO_ORDINARY_PROMPTS if is_small else presets.ORDINARY_PROMPTS,
        pictures=pictures,
        encoder=str(Path(encoder).absolute()) if encoder else "",
        settings=spec.settings,
    )


def what_is_judged(train: JobFolder, saved: Sequence[str]) -> tuple[TrainSpec, tuple[str, ...]]:
    """A training and those of its `saved` LoRAs that are there. Raises JobError as `judge_spec`."""
    spec = train.read_spec()
    if not isinstance(spec, TrainSpec):
        raise JobError(f"{train.path} is not a training.", "Give the folder that `lora-train train` printed first.")
    loras = tuple(name for name in saved if (train.path / name).is_file())
    if not loras:
        raise JobError(f"{train.path} has no LoRA yet.", "Let the training save one first.")
    return spec, loras


def _prompts(dataset: Dataset, spec: TrainSpec, contexts: Sequence[str], count: int) -> tuple[str, ...]:
    """Captions as they are trained, and the concept in other surroundings (see `core.judgement.judge_prompts`)."""
    from lora_train.data.captions import common_tag, with_trigger_word
    from lora_train.data.plan import captions_of

    settings, held_out = spec.settings, set(spec.held_out)
    captions = [
        with_trigger_word(caption or picture.concept or spec.concept, settings.trigger_word)
        for picture, caption in zip(dataset.pictures, captions_of(dataset, settings), strict=True)
        if not picture.is_regularisation and picture.path not in held_out
    ]
    concept = settings.trigger_word.strip() or common_tag(captions) or spec.concept
    return judge_prompts(captions, concept, contexts, count)


def _wrong_numbers(weights: Sequence[float], pictures: int) -> list[str]:
    problems: list[str] = []
    if not 1 <= len(weights) <= MOST_WEIGHTS:
        problems.append(f"weights: give 1 to {MOST_WEIGHTS} of them")
    if not all(math.isfinite(weight) and weight and abs(weight) <= HEAVIEST for weight in weights):
        problems.append(f"weights: each is a number from -{HEAVIEST:g} to {HEAVIEST:g} other than 0")
    if not 2 <= pictures <= MOST_PICTURES:
        problems.append(f"pictures: {pictures} is not a whole number from 2 to {MOST_PICTURES}")
    return problems


def _encoder_of_version(workspace: Workspace, train: JobFolder) -> str:
    try:
        version = workspace.version_of(train.path)
    except (WorkspaceError, IndexError):  # a training that lies elsewhere
        return ""
    return train_settings(version).judge_encoder


def _wrong_encoder(encoder: str) -> list[str]:
    if not encoder:
        return []
    path = Path(encoder)
    if path.is_dir():
        return [] if (path / "config.json").is_file() else [f"encoder: {path} has no config.json"]
    if not path.is_file():
        return [f"encoder: {path} does not exist"]
    return [] if path.suffix.lower() == ".onnx" else [f"encoder: {path} is neither a folder nor an .onnx file"]
