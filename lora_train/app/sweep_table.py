"""How the runs of a sweep did: what the table shows, and by what rungs compare them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from lora_train.app.sweep_snapshot import SweepRow
from lora_train.core.halving import Strength
from lora_train.core.jobs import JobFolder, JobStatus
from lora_train.core.recommendation import read_judgement
from lora_train.core.sweep_record import SweepRun


class Judged(NamedTuple):
    """What the judge said of a training."""

    lora: str
    """The recommended file; else the best of the table."""
    weight: float
    score: float
    has_newest: bool
    """Whether the training's last LoRA was among those that were judged."""


def judged(job: JobFolder, status: JobStatus) -> Judged | None:
    """None where nobody has judged the training."""
    judgement = read_judgement(job, status.saved)
    if judgement is None:
        return None
    best = judgement.rows[0]
    for row in judgement.rows:
        if (row.lora, row.weight) == (judgement.lora, judgement.weight):
            best = row
            break
    newest = status.saved[-1:]
    return Judged(best.lora, best.weight, best.score, any([row.lora] == newest for row in judgement.rows))


def strength_of(job: JobFolder, status: JobStatus) -> Strength:
    """What is known of a run at the end of a rung."""
    opinion = judged(job, status)
    return Strength(
        validation=_validation(status),
        judge=opinion.score if opinion is not None and opinion.has_newest else None,
        loss=status.loss,
    )


def row_of(run: SweepRun, job_id: str, job: JobFolder, status: JobStatus, *, is_waiting: bool) -> SweepRow:
    opinion = judged(job, status)
    is_there = opinion is not None and opinion.lora in status.saved
    return SweepRow(
        job=job_id,
        name=run.train,
        label=run.label,
        status=status,
        is_waiting=is_waiting,
        is_dropped=run.is_dropped,
        lora=opinion.lora if opinion is not None and is_there else next(reversed(status.saved), ""),
        judge_score=opinion.score if opinion is not None else None,
        judge_weight=opinion.weight if opinion is not None else None,
    )


def with_best(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """One of the runs that no rung dropped is marked: by the judge's score where all of them have one, else by the
    validation loss where all have that, else none.
    """
    compared = [row for row in rows if row.lora and not row.is_dropped]
    open_rows = [row for row in rows if not row.is_dropped and row.status.state in ("waiting", "running")]
    if (len(compared) < 2 and len(rows) == len(compared)) or not compared or open_rows:
        return list(rows)
    scores = [row.judge_score for row in compared if row.judge_score is not None]
    validations = [loss for row in compared if (loss := _validation(row.status)) is not None]
    if len(scores) == len(compared):
        best = compared[scores.index(max(scores))]
    elif len(validations) == len(compared):
        best = compared[validations.index(min(validations))]
    else:
        return list(rows)
    return [msgspec.structs.replace(row, is_best=row is best) for row in rows]


def _validation(status: JobStatus) -> float | None:
    """As a share of the base model's loss: so runs on different base models can be compared."""
    if status.validation_loss is None:
        return None
    return status.validation_loss / (status.base_validation_loss or 1.0)
