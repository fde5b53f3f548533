"""What the judge said about the LoRAs of a training, and what its person chose instead, read from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from lora_train.core.jobs import JobFolder
from lora_train.core.judgement import CHOICE_NAME, FILE_NAME, Choice, Judgement
from lora_train.core.records import read_json

_NO_JUDGEMENT = Judgement(rows=())
_NO_CHOICE = Choice(lora="", weight=1.0)


class Best(NamedTuple):
    """The LoRA that is taken where nobody names one."""

    file: str
    """Empty where there is neither a recommendation nor a choice."""
    weight: float = 1.0
    reason: str = ""
    """Why the judge recommends it; empty where its person chose another."""
    sample: str = ""
    """The picture of it that is best for its card, relative to the training's folder; empty where there is none."""


def read_judgement(job: JobFolder, saved: Sequence[str]) -> Judgement | None:
    """The table with those rows whose LoRA is still there; None where nothing was judged, or the file is damaged.

    Nothing is recommended any more where the recommended LoRA is gone.
    """
    judgement = read_json(job.path / FILE_NAME, Judgement, _NO_JUDGEMENT)
    rows = tuple(row for row in judgement.rows if row.lora in saved and (job.path / row.lora).is_file())
    if not rows:
        return None
    if judgement.lora not in [row.lora for row in rows]:
        is_gone = bool(judgement.lora)
        reason = "The LoRA that was recommended is gone." if is_gone else judgement.reason
        return msgspec.structs.replace(judgement, rows=rows, lora="", weight=1.0, reason=reason)
    return msgspec.structs.replace(judgement, rows=rows)


def read_choice(job: JobFolder, saved: Sequence[str]) -> Choice | None:
    """What was chosen instead of the recommendation; None where nothing was, or it is gone."""
    choice = read_json(job.path / CHOICE_NAME, Choice, _NO_CHOICE)
    return choice if choice.lora in saved and (job.path / choice.lora).is_file() else None


def best_of(job: JobFolder, saved: Sequence[str]) -> Best:
    """The choice, or else the recommendation."""
    judgement = read_judgement(job, saved)
    choice = read_choice(job, saved)
    if choice is not None:
        is_recommended = judgement is not None and (judgement.lora, judgement.weight) == (choice.lora, choice.weight)
        reason = judgement.reason if judgement is not None and is_recommended else ""
        return Best(choice.lora, choice.weight, reason, _sample(job, judgement, choice.lora, choice.weight))
    if judgement is None or not judgement.lora:
        return Best("")
    sample = _sample(job, judgement, judgement.lora, judgement.weight)
    return Best(judgement.lora, judgement.weight, judgement.reason, sample)


def _sample(job: JobFolder, judgement: Judgement | None, lora: str, weight: float) -> str:
    """Of this LoRA at this weight; of several the one that is least a copy of a training picture, the first of them."""
    for row in judgement.rows if judgement is not None else ():
        if (row.lora, row.weight) == (lora, weight):
            copies = dict(zip(row.samples, row.copies, strict=False))
            there = [sample for sample in row.samples if (job.path / sample).is_file()]
            return min(there, key=lambda sample: copies.get(sample, 0.0), default="")
    return ""
