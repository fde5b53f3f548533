"""What the page and the API are told of sweeps (ids as in `app.snapshot`; a sweep's is its folder's, as a job's)."""

from __future__ import annotations

import msgspec

from lora_train.core.halving import Basis
from lora_train.core.jobs import JobStatus
from lora_train.core.sweep_record import Ending


class PlanRow(msgspec.Struct, frozen=True):
    """One rung of a plan: so many runs are trained up to this step."""

    runs: int
    steps_from: int
    steps_to: int
    """Smaller and larger where runs have different numbers of steps in all."""
    is_end: bool
    """Whether that is the last step."""
    seconds: float | None = None
    """At most; None before anything like it was measured on this machine."""


class SweepForecast(msgspec.Struct):
    """What *Begin sweep* would do now."""

    labels: list[str] = []
    """Of every run."""
    total_steps: int = 0
    """Of all runs, if each goes to its end."""
    seconds: float | None = None
    """At most; None before anything like it was measured on this machine."""
    disk_bytes: int = 0
    """At most."""
    finish_by: float = 0.0
    """Unix seconds; 0 where there is no such time."""
    plan: list[PlanRow] = []
    """Rung by rung; where nobody knows how fast runs go, the rung alone that measures it."""
    problems: list[str] = []
    """Why it can't begin, those of single runs behind their labels."""
    warnings: list[str] = []


class SweepRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run in the table of a sweep."""

    job: str
    """Empty where the training was deleted."""
    name: str
    label: str
    status: JobStatus
    is_waiting: bool = False
    """Whether it is in the queue, or will be."""
    is_dropped: bool = False
    """Whether it was among the weaker ones of a rung."""
    lora: str = ""
    """The judge's file, or else the last one; empty where there is none yet."""
    judge_score: float | None = None
    judge_weight: float | None = None
    is_best: bool = False


class SweepSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep that was begun."""

    id: str
    created: float
    ended: Ending
    """Empty as long as it goes on."""
    rows: list[SweepRow]
    finish_by: float = 0.0
    rung: int = 0
    """The present one in `plan`."""
    plan: list[PlanRow] = []
    basis: Basis | str = ""
    """By what the weaker half was told; empty where none was yet."""
    notes: list[str] = []
