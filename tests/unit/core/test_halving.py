"""The plan of a sweep that finishes by a time, and the order of its runs."""

from __future__ import annotations

import itertools
import math
import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_train.core.errors import ConfigError
from lora_train.core.halving import (
    RunCost,
    Strength,
    deadline,
    halving_plan,
    seconds_of,
    strongest_first,
    trial_rung,
)

COSTS = st.lists(
    st.builds(
        RunCost,
        total_steps=st.integers(1, 5000),
        s_per_step=st.floats(0.01, 10),
        start_s=st.floats(0, 120),
    ),
    min_size=1,
    max_size=20,
)


def spent_s(runs: list[RunCost], survivors: list[int], plan: list) -> float:
    """What the plan takes when the runs survive in the order of `survivors`."""
    done = [run.done_steps for run in runs]
    total = 0.0
    for rung in plan:
        for place in survivors[: rung.runs]:
            run, limit = runs[place], rung.limit(runs[place].total_steps)
            if limit > done[place]:
                total += (limit - done[place]) * run.s_per_step + run.start_s
                done[place] = limit
    return total


@given(runs=COSTS, seconds=st.floats(0, 100_000), order=st.randoms(use_true_random=False))
def test_never_later_than_the_time(runs: list[RunCost], seconds: float, order: object) -> None:
    """Whoever survives: the plan counts the most expensive ones."""
    plan = halving_plan(runs, seconds)
    survivors = list(range(len(runs)))
    order.shuffle(survivors)  # type: ignore[attr-defined]
    assert spent_s(runs, survivors, plan) <= seconds + 1e-6
    assert (seconds_of(plan) or 0.0) <= seconds


@given(runs=COSTS, seconds=st.floats(0, 100_000))
def test_halves_are_dropped_and_steps_grow(runs: list[RunCost], seconds: float) -> None:
    plan = halving_plan(runs, seconds)
    if not plan:
        return
    assert plan[0].runs == len(runs)
    assert all(later.runs == math.ceil(rung.runs / 2) for rung, later in itertools.pairwise(plan))
    assert all(rung.share <= later.share for rung, later in itertools.pairwise(plan))
    assert plan[-1].runs == 1 or plan[-1].share == 1, "it goes on until one is left, or all are at their end"
    for run in runs:
        assert all(1 <= rung.limit(run.total_steps) <= run.total_steps for rung in plan)


@given(runs=COSTS)
def test_all_run_to_their_end_where_there_is_time(runs: list[RunCost]) -> None:
    needed = sum(run.total_steps * run.s_per_step + run.start_s for run in runs)
    (only,) = halving_plan(runs, needed * 1.001)
    assert (only.runs, only.share) == (len(runs), 1.0)
    assert only.seconds == pytest.approx(needed)


def test_by_hand() -> None:
    """8 runs of 400 steps of a second, no other cost: in 1600 s half of a full sweep."""
    plan = halving_plan([RunCost(total_steps=400, s_per_step=1.0, start_s=0.0)] * 8, 1600)
    limits = [rung.limit(400) for rung in plan]
    assert [rung.runs for rung in plan] == [8, 4, 2, 1]
    assert limits[-1] == 400
    # 8 a + 4 (b - a) + 2 (c - b) + (400 - c) with equal factors between a, b, c and 400.
    assert 1500 < 8 * limits[0] + 4 * (limits[1] - limits[0]) + 2 * (limits[2] - limits[1]) + 400 - limits[2] <= 1600
    factors = [later / rung for rung, later in itertools.pairwise(limits)]
    assert max(factors) - min(factors) < 0.1


def test_no_time_for_an_end_shortens_all() -> None:
    plan = halving_plan([RunCost(total_steps=1000, s_per_step=1.0, start_s=0.0)] * 4, 500)
    assert [rung.runs for rung in plan] == [4, 2, 1]
    assert plan[-1].share < 0.5
    assert plan[0].limit(1000) < plan[1].limit(1000) < plan[2].limit(1000)


def test_no_time_for_starts_is_no_plan() -> None:
    assert halving_plan([RunCost(total_steps=1000, s_per_step=1.0, start_s=100.0)] * 4, 390) == []


def test_what_is_done_is_not_paid_again() -> None:
    """Two runs at step 500 of 1000: 1000 steps are left."""
    runs = [RunCost(total_steps=1000, done_steps=500, s_per_step=1.0, start_s=0.0)] * 2
    (only,) = halving_plan(runs, 1000)
    assert (only.share, only.seconds) == (1.0, 1000.0)
    first, last = halving_plan(runs, 700)
    assert first.limit(1000) > 500
    assert (last.runs, last.share) == (1, 1.0)


def test_a_trial_has_twenty_steps() -> None:
    rung = trial_rung([400, 100])
    assert (rung.runs, rung.limit(100), rung.seconds) == (2, 20, None)
    assert trial_rung([5]).limit(5) == 5


# --- the time ---


def test_a_time_that_is_over_means_tomorrow() -> None:
    now = datetime(2026, 5, 4, 22, 0).timestamp()
    assert datetime.fromtimestamp(deadline("07:30", now)) == datetime(2026, 5, 5, 7, 30)
    assert datetime.fromtimestamp(deadline("23:05", now)) == datetime(2026, 5, 4, 23, 5)
    assert datetime.fromtimestamp(deadline("22:00", now)) == datetime(2026, 5, 5, 22, 0), "now is no time at all"
    assert datetime.fromtimestamp(deadline(" ７：３０ ", now)) == datetime(2026, 5, 5, 7, 30), (
        "as a Japanese keyboard types"
    )


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process can't be changed on Windows")
@pytest.mark.parametrize(
    ("begins", "hours"), [((2026, 3, 28, 22, 0), 8.5), ((2026, 10, 24, 22, 0), 10.5), ((2026, 5, 4, 22, 0), 9.5)]
)
def test_the_clock_may_change_at_night(
    monkeypatch: pytest.MonkeyPatch, begins: tuple[int, int, int, int, int], hours: float
) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        now = datetime(*begins).timestamp()
        assert deadline("07:30", now) - now == hours * 3600
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "7", "25:00", "07:60", "soon", "07:30:00"])
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="Finish by"):
        deadline(text, 0.0)


# --- the order ---


def test_by_what_all_of_them_have() -> None:
    plain = [Strength(loss=0.3), Strength(loss=0.1), Strength(loss=None), Strength(loss=0.2, validation=0.1)]
    assert strongest_first(plain) == ([1, 3, 0, 2], "loss")
    validated = [Strength(loss=0.1, validation=0.9), Strength(loss=0.2, validation=0.8, judge=0.1)]
    assert strongest_first(validated) == ([1, 0], "validation")
    judged = [Strength(judge=0.1, validation=0.5), Strength(judge=0.7)]
    assert strongest_first(judged) == ([1, 0], "judge")


def test_two_opinions_count_as_much() -> None:
    """Ranks: 0 + 2, 1 + 0, 2 + 1."""
    runs = [
        Strength(validation=0.1, judge=0.1),
        Strength(validation=0.2, judge=0.9),
        Strength(validation=0.3, judge=0.5),
    ]
    assert strongest_first(runs) == ([1, 0, 2], "validation and judge")
    assert strongest_first([Strength(validation=0.2, judge=0.9), Strength(validation=0.1, judge=0.1)])[0] == [1, 0]
