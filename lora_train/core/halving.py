"""Successive halving: many runs begin, the weaker half is dropped at each rung, and the last ones run to their end
before a given time.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from lora_train.core.errors import ConfigError

_TRIAL_STEPS = 20
"""Steps of a rung that measures how fast its runs go; the first few are those of warming up."""
_FEWEST_STEPS = 10
"""Fewer tell next to nothing about a run, so a first rung has more unless there is no time."""
_TRIES = 64
"""Lengths of the first rung that are tried between the shortest and the longest."""

Basis = Literal["validation and judge", "validation", "judge", "loss"]


class RunCost(msgspec.Struct, frozen=True, kw_only=True):
    """What a run takes of the time."""

    total_steps: int
    done_steps: int = 0
    s_per_step: float
    start_s: float
    """Everything else of one start of a worker: loading, encoding, saving, validating."""


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """So many runs are trained up to this share of their steps; those of the next rung go on."""

    runs: int
    share: float
    """Of all steps of a run, more than 0 and up to 1, which is its end."""
    seconds: float | None = None
    """At most, whichever runs get so far; None where nobody knows yet how fast they go."""

    def limit(self, total_steps: int) -> int:
        """The step up to which a run of so many goes in this rung."""
        return total_steps if self.share >= 1 else max(1, round(self.share * total_steps))


class Strength(msgspec.Struct, frozen=True, kw_only=True):
    """How well a run has done so far."""

    validation: float | None = None
    """Loss on the held-out pictures as a share of the base model's: smaller is better."""
    judge: float | None = None
    """Score: larger is better."""
    loss: float | None = None
    """Smoothed loss of training: smaller is better."""


def deadline(text: str, now: float) -> float:
    """The next moment (unix seconds) at which the clock of this machine shows `HH:MM`: today, or else tomorrow.

    Raises ConfigError for what is no time of day.
    """
    plain = unicodedata.normalize("NFKC", text).strip()
    try:
        time_of_day = datetime.strptime(plain, "%H:%M").time()
    except ValueError:
        raise ConfigError([f"Finish by: {text!r} is not a time of day; write it as 07:30."]) from None
    today = datetime.fromtimestamp(now).date()
    moments = (datetime.combine(today + timedelta(days=days), time_of_day).timestamp() for days in (0, 1, 2))
    return next(moment for moment in moments if moment > now)


def trial_rung(total_steps: Sequence[int]) -> Rung:
    """The first rung where nobody knows how fast runs of so many steps go: some steps of each, and none is dropped."""
    return Rung(runs=len(total_steps), share=min(1.0, _TRIAL_STEPS / min(total_steps)))


def halving_plan(runs: Sequence[RunCost], seconds: float) -> list[Rung]:
    """The rungs from now on that take at most `seconds`, whichever runs turn out to be the stronger ones.

    All runs go to their end at once where there is time for it. Else the first rung is as long as may be, and the
    rungs after it grow by the same factor up to the end; where even the shortest first rung leaves no time for the
    end, all of them are shortened. Empty where there is no time for a single step of each.
    """
    begun = max(run.done_steps / run.total_steps for run in runs)
    counts = _halved(len(runs))
    shortest = min(1.0, begun + max(_FEWEST_STEPS / run.total_steps for run in runs))
    for first in _between(shortest, 1.0):
        if plan := _fitting(runs, counts, [first ** (1 - place) for place in _places(counts)], seconds):
            return plan
    for last in _between(begun + 1 / max(run.total_steps for run in runs), 1.0):
        first = begun + (shortest - begun) * (last - begun) / (1 - begun) if begun < 1 else 1.0
        if plan := _fitting(runs, counts, [first * (last / first) ** place for place in _places(counts)], seconds):
            return plan
    return []


def seconds_of(rungs: Sequence[Rung]) -> float | None:
    """How long they take at most; None where a rung does not know it."""
    known = [rung.seconds for rung in rungs if rung.seconds is not None]
    return sum(known) if len(known) == len(rungs) else None


def strongest_first(runs: Sequence[Strength]) -> tuple[list[int], Basis]:
    """The places of the runs in `runs`, the strongest first, and by what they were compared: what all of them have.

    With validation and judge, the sum of a run's two ranks decides, then validation.
    """
    everyone = range(len(runs))
    validations = [run.validation for run in runs if run.validation is not None]
    judges = [-run.judge for run in runs if run.judge is not None]
    losses = [float("inf") if run.loss is None else run.loss for run in runs]
    if len(validations) == len(judges) == len(runs):
        by_both = [_rank(validations, place) + _rank(judges, place) for place in everyone]
        return sorted(everyone, key=lambda place: (by_both[place], validations[place])), "validation and judge"
    if len(validations) == len(runs):
        return sorted(everyone, key=validations.__getitem__), "validation"
    if len(judges) == len(runs):
        return sorted(everyone, key=judges.__getitem__), "judge"
    return sorted(everyone, key=losses.__getitem__), "loss"


def _rank(values: Sequence[float], place: int) -> int:
    return sum(value < values[place] for value in values)


def _halved(count: int) -> list[int]:
    counts = [count]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // 2))
    return counts


def _places(counts: Sequence[int]) -> list[float]:
    """0 for the first rung, 1 for the last one."""
    return [rung / max(1, len(counts) - 1) for rung in range(len(counts))]


def _between(low: float, high: float) -> list[float]:
    """From high to low, by equal factors."""
    low = min(low, high)
    return [high * (low / high) ** (number / (_TRIES - 1)) for number in range(_TRIES)]


def _fitting(runs: Sequence[RunCost], counts: Sequence[int], shares: Sequence[float], seconds: float) -> list[Rung]:
    """The rungs of these shares, one for each length; empty where they take longer, or are no longer than the runs."""
    rungs: list[Rung] = []
    before = [run.done_steps for run in runs]
    for count, share in zip(counts, shares, strict=True):
        share = min(1.0, share)
        rung = Rung(runs=count, share=share)
        limits = [rung.limit(run.total_steps) for run in runs]
        costs = [
            (limit - done) * run.s_per_step + run.start_s if limit > done else 0.0
            for run, limit, done in zip(runs, limits, before, strict=True)
        ]
        rungs.append(msgspec.structs.replace(rung, seconds=sum(sorted(costs, reverse=True)[:count])))
        before = [max(limit, done) for limit, done in zip(limits, before, strict=True)]
        if share == 1.0:  # all that come so far are at their end: there is nothing to go on with
            break
    total = seconds_of(rungs) or 0.0
    goes_on = any(rungs[0].limit(run.total_steps) > run.done_steps for run in runs)
    return rungs if goes_on and total <= seconds else []
