"""Sweeps that finish by a time: the weaker runs are dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from lora_train.app import sweep_planning
from lora_train.core.errors import ConfigError, JobError
from lora_train.core.jobs import JobFolder
from lora_train.core.records import write_json
from lora_train.core.sweep_record import read_sweep

if TYPE_CHECKING:
    pass

from tests.unit.app.floor import BEGUN, RATES, Floor, knows_pace


def test_the_weaker_halves_are_dropped_in_time(floor: Floor) -> None:
    """4 runs of 40 steps of 1 s and starts of 10 s would take 200 s; there are 168."""
    knows_pace(floor, 1.0, 10.0)
    sweep = floor.begin(168, learning_rates=RATES)
    plan = floor.shown(sweep).plan
    assert [row.runs for row in plan] == [4, 2, 1]
    assert plan[-1].is_end
    assert sum(row.seconds or 0 for row in plan) <= 168
    floor.train_all()
    assert floor.now <= BEGUN + 168
    rows = floor.rows(sweep)
    assert {label: (row.status.state, row.is_dropped) for label, row in rows.items()} == {
        "0.001": ("stopped", True),
        "0.002": ("stopped", True),
        "0.003": ("stopped", True),
        "0.004": ("finished", False),
    }
    assert rows["0.001"].status.step == rows["0.002"].status.step < rows["0.003"].status.step < 40
    assert all((floor.desk.job(row.job).path / row.lora).is_file() for row in rows.values())
    assert rows["0.004"].is_best
    shown = floor.shown(sweep)
    assert (shown.ended, shown.basis) == ("finished", "validation")
    assert len(floor.order) == 4 + 2 + 1


def test_the_judge_is_asked_at_every_rung(floor: Floor) -> None:
    """Four runs are judged, two of them again, each by its newest LoRA; the last one is compared with nobody."""
    knows_pace(floor, 1.0, 10.0)
    assert floor.desk.app.settings.save("cat", "v1", sweep={"judge": True}) == []
    floor.judge_s = 1.0
    sweep = floor.begin(175, learning_rates=RATES)
    record = read_sweep(floor.desk.workspace.root / sweep)
    assert record is not None
    assert record.judges
    floor.train_all()
    names = [row.name for row in floor.shown(sweep).rows]
    assert [name for name, _ in floor.judged[:4]] == names
    assert len(floor.judged) == 6
    assert all(len(loras) == 1 for _, loras in floor.judged)
    shown = floor.shown(sweep)
    assert (shown.ended, shown.basis) == ("finished", "validation and judge")
    assert floor.queue.waiting() == []
    assert floor.now <= floor.finish_by


def test_judging_is_a_part_of_the_plan(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 + 2 + 1 judgements of 6 s come on top, at most."""
    knows_pace(floor, 1.0, 10.0)
    monkeypatch.setattr(sweep_planning, "expected_judging_s", lambda *_: 6.0)
    lists = {"learning_rates": RATES, "finish_by": "12:00"}
    seconds = []
    for judge in (False, True):
        floor.finish_by = BEGUN + 1000
        assert floor.desk.app.settings.save("cat", "v1", sweep={**lists, "judge": judge}) == []
        seconds.append(floor.desk.app.sweeps.forecast("cat", "v1").seconds)
    assert seconds == [4 * (40 + 10), 4 * (40 + 10 + 6)]


def test_a_run_that_can_not_be_judged_stops_nothing(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise JobError("The base model is gone.")

    monkeypatch.setattr(floor.desk.app.judging, "begin", refuse)
    knows_pace(floor, 1.0, 10.0)
    assert floor.desk.app.settings.save("cat", "v1", sweep={"judge": True}) == []
    sweep = floor.begin(168, learning_rates=RATES)
    floor.train_all()
    assert (floor.shown(sweep).ended, floor.shown(sweep).basis) == ("finished", "validation")


def test_without_a_time_every_run_is_judged_at_its_end(floor: Floor) -> None:
    assert floor.desk.app.settings.save("cat", "v1", sweep={"judge": True}) == []
    floor.begin(learning_rates="0.001,0.002")
    settings = [floor.desk.job(job).read_spec().settings for job in floor.queue.waiting()]
    assert [each.judge_when_finished for each in settings] == [True, True]


def test_an_unknown_pace_is_measured_first(floor: Floor) -> None:
    sweep = floor.begin(190, learning_rates=RATES)
    (first,) = floor.shown(sweep).plan
    assert (first.runs, first.steps_to, first.seconds) == (4, 20, None)
    floor.train_all()
    assert floor.now <= BEGUN + 190
    assert floor.rows(sweep)["0.004"].status.step == 40
    assert floor.rows(sweep)["0.001"].status.step == 20


def test_the_judge_is_asked_too_where_time_gets_short_after_the_trial(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four trials of 20 steps take 120 s of 194: no time for all four, but for asking about them (8 s at most)."""
    monkeypatch.setattr(sweep_planning, "expected_judging_s", lambda *_: 2.0)
    assert floor.desk.app.settings.save("cat", "v1", sweep={"judge": True}) == []
    floor.judge_s = 1.0
    sweep = floor.begin(194, learning_rates=RATES)
    floor.train_all()
    assert [name for name, _ in floor.judged[:4]] == [row.name for row in floor.shown(sweep).rows]
    assert floor.shown(sweep).basis == "validation and judge"
    assert floor.now <= floor.finish_by


def test_the_judge_is_not_asked_where_that_takes_most_of_the_time(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_planning, "expected_judging_s", lambda *_: 12.0)
    assert floor.desk.app.settings.save("cat", "v1", sweep={"judge": True}) == []
    sweep = floor.begin(194, learning_rates=RATES)
    floor.train_all()
    assert len(floor.order) > 4
    assert floor.shown(sweep).rows[0].status.step == 20
    assert not {name for name, _ in floor.judged} & {floor.shown(sweep).rows[0].name}


@pytest.mark.parametrize("slowness", [0.3, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("finish_in_s", [90, 150, 190, 400])
def test_never_later_than_the_time(floor: Floor, slowness: float, finish_in_s: float) -> None:
    """However wrong the pace was that the plan was made with: at most one step and one start come after the time."""
    knows_pace(floor, 1.0, 10.0)
    floor.s_per_step, floor.start_s = slowness, 10.0 * slowness
    sweep = floor.begin(finish_in_s, learning_rates=RATES)
    floor.train_all()
    assert floor.now <= BEGUN + finish_in_s + slowness * 11
    shown = floor.shown(sweep)
    assert shown.ended
    assert "paused" not in floor.states(sweep)
    assert all(row.lora for row in shown.rows if row.status.step)
    if slowness <= 1 and finish_in_s >= 150:
        assert "finished" in floor.states(sweep)


def test_failed_and_stopped_runs_count_as_dropped(floor: Floor) -> None:
    knows_pace(floor, 1.0, 10.0)
    floor.fails = {"cat-v1-r4"}
    sweep = floor.begin(150, learning_rates=RATES)
    floor.train_all()
    rows = floor.rows(sweep)
    assert [row.status.state for row in rows.values()] == ["stopped", "stopped", "finished", "failed"]
    assert not rows["0.004"].is_dropped


def test_a_person_s_stop_is_respected(floor: Floor) -> None:
    knows_pace(floor, 1.0, 10.0)
    sweep = floor.begin(150, learning_rates=RATES)
    best = floor.rows(sweep)["0.004"].job
    floor.desk.app.training.stop(best)  # it waits: it leaves the queue
    floor.train_all()
    assert floor.rows(sweep)["0.004"].status.step == 0
    assert floor.rows(sweep)["0.003"].status.state == "finished"


def test_a_dropped_run_can_be_resumed_by_hand(floor: Floor) -> None:
    knows_pace(floor, 1.0, 10.0)
    sweep = floor.begin(150, learning_rates=RATES)
    floor.train_all()
    job = floor.rows(sweep)["0.001"].job
    floor.desk.app.training.resume(job)
    floor.train_all()
    assert floor.rows(sweep)["0.001"].status.state == "finished"


def test_all_goes_on_after_a_restart(floor: Floor) -> None:
    """At every turn another program takes over; once the last one of a rung ended while nobody watched."""
    knows_pace(floor, 1.0, 10.0)
    sweep = floor.begin(200, learning_rates=RATES)
    told = 0
    while (turn := floor.queue.take_next()) is not None:
        job = JobFolder(floor.desk.workspace.root / turn.job)
        floor.work(job)
        floor.desk.app = floor.desk.again()
        floor.desk.app.sweeps.go_on_all()
        floor.desk.app.sweeps.on_end(job)
        floor.queue.finish(turn.job)
        floor.desk.app.sweeps.go_on_all()
        told += 1
    assert told >= 5
    assert floor.rows(sweep)["0.004"].status.state == "finished"
    assert floor.now <= BEGUN + 200


def test_a_crash_between_plan_and_queue_is_made_good(floor: Floor) -> None:
    knows_pace(floor, 1.0, 10.0)
    sweep = floor.begin(150, learning_rates=RATES)
    record = read_sweep(floor.desk.workspace.root / sweep)
    assert record is not None
    jobs = [row.job for row in floor.shown(sweep).rows]
    for job in jobs[2:]:
        floor.desk.app.queue.cancel(job)
    record.to_hand_out = [run.train for run in record.runs]  # as it was written before any was queued
    write_json(floor.desk.workspace.root / sweep / "sweep.json", record)
    floor.desk.again().sweeps.go_on_all()
    assert floor.queue.waiting() == jobs


def test_reopened_after_the_time(floor: Floor) -> None:
    knows_pace(floor, 1.0, 10.0)
    sweep = floor.begin(150, learning_rates=RATES)
    floor.train_next()
    floor.now += 1000
    floor.desk.again().sweeps.go_on_all()
    assert not any("trains" in job for job in floor.queue.waiting())
    assert (floor.shown(sweep).ended, floor.states(sweep)[0]) == ("out of time", "stopped")


def test_no_time_at_all_is_told(floor: Floor) -> None:
    knows_pace(floor, 1.0, 10.0)
    with pytest.raises(ConfigError, match="no time for a single step"):
        floor.begin(30, learning_rates=RATES)


def test_a_plan_is_a_struct_on_the_disk(floor: Floor) -> None:
    knows_pace(floor, 1.0, 10.0)
    sweep = floor.begin(150, learning_rates=RATES)
    content = msgspec.json.decode((floor.desk.workspace.root / sweep / "sweep.json").read_bytes())
    assert [rung["runs"] for rung in content["rungs"]] == [4, 2, 1]
    assert content["runs"][0]["values"] == {"learning_rate": 0.001}
