"""Sweeps begun and kept going; their workers are a few lines, and the clock is ours."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from lora_train.app import planning, sweep_planning
from lora_train.app.paces import Pace, remember_pace
from lora_train.app.sweep_snapshot import SweepRow, SweepSnapshot
from lora_train.core import events as ev
from lora_train.core.errors import ConfigError, JobError, WorkspaceError
from lora_train.core.jobs import JobFolder, JobStatus
from lora_train.core.judgement import Judged, Judgement
from lora_train.core.limits import read_limits
from lora_train.core.specs import JudgeSpec, ProofSpec, TrainSpec
from lora_train.core.sweep_record import read_sweep
from lora_train.core.workspace import write_json
from lora_train.launch.queue import JobQueue

if TYPE_CHECKING:
    from tests.unit.app.conftest import Desk

RATES = "0.001,0.002,0.003,0.004"
BEGUN = 1_800_000_000.0


@dataclass
class Floor:
    """Works the queue off in this process: a run takes `s_per_step` and `start_s` of a clock that is moved by hand."""

    desk: Desk
    now: float = BEGUN
    s_per_step: float = 1.0
    start_s: float = 10.0
    validates: bool = True
    fails: set[str] = field(default_factory=set)
    """Names of trainings."""
    order: list[tuple[str, int]] = field(default_factory=list)
    """Which training was trained up to which step."""
    judge_s: float = 5.0
    judged: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    """Which training was judged, and which of its LoRAs."""

    @property
    def queue(self) -> JobQueue:
        return JobQueue(self.desk.workspace.root)

    def begin(self, finish_in_s: float = 0.0, **lists: Any) -> str:
        lists = lists or {"learning_rates": RATES}
        finish_by = "12:00" if finish_in_s else ""
        self.finish_by = BEGUN + finish_in_s
        assert self.desk.app.settings.save("cat", "v1", sweep={**lists, "finish_by": finish_by}) == []
        return self.desk.app.sweeps.begin("cat", "v1")

    def train_next(self) -> JobFolder | None:
        """One turn of the queue, as the runner takes it."""
        turn = self.queue.take_next()
        if turn is None:
            return None
        job = JobFolder(self.desk.workspace.root / turn.job)
        spec = job.read_spec()
        if isinstance(spec, ProofSpec):  # of what was published
            self.queue.finish(turn.job)
            return job
        if isinstance(spec, JudgeSpec):
            self.judge(job, spec)
        else:
            self.work(job)
        self.desk.app.sweeps.on_end(job)
        self.queue.finish(turn.job)
        return job

    def judge(self, job: JobFolder, spec: JudgeSpec) -> None:
        """What the judge's worker does: the lower the rate of a run, the better its LoRA."""
        self.now += self.judge_s
        train = JobFolder((job.path / spec.train).resolve())
        score = 1 - train.read_spec().settings.learning_rate
        rows = tuple(Judged(lora=lora, weight=1.0, likeness=score, score=score) for lora in spec.loras)
        write_json(train.path / "judgement.json", Judgement(rows=rows, lora=spec.loras[0], weight=1.0))
        self.judged.append((train.path.name, spec.loras))
        events = ev.EventWriter(job.events_path)
        events.write(ev.Started(pid=0), ev.Finished())
        events.close()

    def train_all(self) -> None:
        while self.train_next() is not None:
            pass

    def work(self, job: JobFolder) -> None:
        """What a worker does, by the same files."""
        spec = job.read_spec()
        assert isinstance(spec, TrainSpec)
        limits, before = read_limits(job.path), self.desk.app.status(job)
        total = before.total_steps or 40
        events = ev.EventWriter(job.events_path)
        events.write(ev.Started(pid=0))
        self.now += self.start_s
        if job.path.name in self.fails:
            events.write(ev.Failed("ModelError", "It is broken."))
            events.close()
            return
        events.write(ev.Started(pid=0, total_steps=total, epochs=1, step=before.step))
        step, is_late = before.step, False
        while step < total and not 0 < limits.pause_at_step <= step and not is_late:
            step += 1
            self.now += self.s_per_step
            rate = spec.settings.learning_rate
            events.write(ev.Step(step=step, epoch=1, loss=1 - rate, lr=rate, s_per_step=self.s_per_step))
            is_late = 0 < limits.stop_at <= self.now
        if self.validates:
            events.write(ev.Validated(step=step, loss=1 - spec.settings.learning_rate, base_loss=1.0))
        name = f"{spec.name}.safetensors" if step == total else f"{spec.name}-step{step:06d}.safetensors"
        self.desk.write_lora(job.path / name)
        events.write(ev.Saved(name, step=step, epoch=1))
        ending = ev.Finished(step) if step == total else ev.Stopped(step) if is_late else ev.Paused(step)
        events.write(ending)
        events.close()
        self.order.append((spec.name, step))

    def shown(self, sweep: str) -> SweepSnapshot:
        return self.desk.app.sweeps.snapshot(sweep)

    def rows(self, sweep: str) -> dict[str, SweepRow]:
        return {row.label: row for row in self.shown(sweep).rows}

    def states(self, sweep: str) -> list[str]:
        return [row.status.state for row in self.shown(sweep).rows]


@pytest.fixture
def floor(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Floor:
    """A version `cat v1` of 4 pictures, whose trainings have 40 steps."""
    opened = Floor(desk)
    desk.trained(*(f"1_cat/{number}.png" for number in range(4)))
    desk.app.settings.save("cat", "v1", train={"base_model": "demo", "epochs": 10, "save_every_epochs": 0})
    monkeypatch.setattr(time, "time", lambda: opened.now)
    monkeypatch.setattr(sweep_planning, "deadline", lambda text, now: opened.finish_by)
    return opened


def knows_pace(floor: Floor, s_per_step: float, start_s: float) -> None:
    """As after a training of these settings."""
    settings = floor.desk.app.settings.effective("cat", "v1")
    spec = TrainSpec(name="x", dataset="", dataset_fingerprint="", trash="", settings=settings)
    status = JobStatus(s_per_step=s_per_step, step=40)
    remember_pace(floor.desk.workspace.root, spec, status, Pace(s_per_step, start_s))


# --- before ---


def test_forecast_is_the_sum_of_the_runs(floor: Floor) -> None:
    knows_pace(floor, 2.0, 10.0)
    desk = floor.desk
    desk.app.settings.save("cat", "v1", sweep={"ranks": "8,16", "batch_sizes": "1,2"})
    forecast = desk.app.sweeps.forecast("cat", "v1")
    assert forecast.problems == []
    assert forecast.labels == ["rank 8 · batch 1", "rank 8 · batch 2", "rank 16 · batch 1", "rank 16 · batch 2"]
    assert forecast.total_steps == 2 * 40 + 2 * 20
    assert forecast.seconds is None, "nobody knows how fast batches of 2 are"
    desk.app.settings.save("cat", "v1", sweep={"batch_sizes": ""})
    forecast = desk.app.sweeps.forecast("cat", "v1")
    assert forecast.seconds == 2 * (40 * 2.0 + 10.0)
    # One LoRA each and a state of six times its size in three copies: 1.35 MB a rank.
    assert forecast.disk_bytes == (8 + 16) * 1_350_000 * 19


def test_one_run_is_no_sweep(floor: Floor) -> None:
    for lists in ({}, {"ranks": "8"}, {"ranks": "8,8"}):
        floor.desk.app.settings.save("cat", "v1", sweep={"ranks": "", **lists})
        assert "two values" in floor.desk.app.sweeps.forecast("cat", "v1").problems[0]
        with pytest.raises(ConfigError, match="two values"):
            floor.desk.app.sweeps.begin("cat", "v1")


def test_problems_are_told_by_label_and_nothing_is_written(floor: Floor, tmp_path: Path) -> None:
    desk = floor.desk
    desk.app.settings.save("cat", "v1", sweep={"base_models": ["demo", str(tmp_path / "none.safetensors")]})
    (problem,) = desk.app.sweeps.forecast("cat", "v1").problems
    assert problem.startswith("none: ")
    assert "does not exist" in problem
    with pytest.raises(ConfigError, match="none: "):
        desk.app.sweeps.begin("cat", "v1")
    desk.app.settings.save("cat", "v1", sweep={"presets": ["style", "gone"], "base_models": ["demo"]})
    assert desk.app.sweeps.forecast("cat", "v1").problems[0].startswith("gone: preset: there is none called 'gone'")
    trains = desk.workspace.find_version("cat", "v1").trains_dir
    assert not trains.exists()
    assert desk.app.queue.entries() == []


def test_what_is_wrong_with_all_is_told_once(floor: Floor) -> None:
    shutil.rmtree(floor.desk.workspace.find_version("cat", "v1").dataset_dir)
    floor.desk.app.settings.save("cat", "v1", sweep={"ranks": "8,16"})
    assert [p.partition(":")[0] for p in floor.desk.app.sweeps.forecast("cat", "v1").problems] == [
        "There are no pictures yet"
    ]


def test_presets_are_under_the_other_lists(floor: Floor) -> None:
    sweep = floor.begin(presets=["style", "character"], ranks="3,5")
    jobs = [floor.desk.job(row.job).read_spec() for row in floor.shown(sweep).rows]
    rows = floor.shown(sweep).rows
    assert [row.label for row in rows] == [
        "style · rank 3",
        "style · rank 5",
        "character · rank 3",
        "character · rank 5",
    ]
    style = floor.desk.app.presets.find("style").values("small")
    for job, rank, preset in zip(jobs, (3, 5, 3, 5), ("style", "style", "character", "character"), strict=True):
        assert isinstance(job, TrainSpec)
        assert job.settings.rank == rank
        assert job.settings.alpha == floor.desk.app.presets.find(preset).values("small")["alpha"]
    assert style["rank"] not in (3, 5), "the lists win"


def test_a_full_disk_is_told_before(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(floor.desk.root)._replace(free=1000)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda _: full)
    with pytest.raises(WorkspaceError, match="sweep of 4 runs"):
        floor.begin()


# --- without a time ---


def test_every_run_has_a_name_and_a_place(floor: Floor) -> None:
    sweep = floor.begin()
    rows = floor.shown(sweep).rows
    assert [row.name for row in rows] == ["cat-v1", "cat-v1-r2", "cat-v1-r3", "cat-v1-r4"]
    assert [entry.job for entry in floor.desk.app.queue.entries()] == [row.job for row in rows]
    floor.train_all()
    shown = floor.shown(sweep)
    assert (shown.ended, floor.states(sweep)) == ("finished", ["finished"] * 4)
    assert [row.label for row in shown.rows if row.is_best] == ["0.004"]
    loras = floor.desk.app.sweeps.comparison_loras(sweep)
    assert [path.name for path in loras] == [f"{row.name}.safetensors" for row in rows]


def test_a_failed_run_does_not_stop_the_rest(floor: Floor) -> None:
    floor.fails = {"cat-v1-r2"}
    sweep = floor.begin()
    floor.train_all()
    assert floor.states(sweep) == ["finished", "failed", "finished", "finished"]
    assert floor.shown(sweep).ended == "finished"


def test_the_judge_decides_where_all_are_judged(floor: Floor) -> None:
    floor.validates = False
    sweep = floor.begin()
    floor.train_all()
    assert not any(row.is_best for row in floor.shown(sweep).rows), "the training loss says too little"
    for row, score in zip(floor.shown(sweep).rows, (0.2, 0.9, 0.3, 0.1), strict=True):
        facts = Judged(lora=row.lora, weight=0.8, likeness=0.5, score=score)
        write_json(floor.desk.job(row.job).path / "judgement.json", Judgement(rows=(facts,), lora=row.lora, weight=0.8))
    best = [row for row in floor.shown(sweep).rows if row.is_best]
    assert [(row.label, row.judge_score, row.judge_weight) for row in best] == [("0.002", 0.9, 0.8)]


def test_stop_all_empties_the_queue(floor: Floor) -> None:
    sweep = floor.begin()
    floor.train_next()
    floor.desk.app.sweeps.stop_all(sweep)
    assert floor.desk.app.queue.entries() == []
    assert (floor.shown(sweep).ended, floor.states(sweep)) == ("stopped", ["finished", "waiting", "waiting", "waiting"])
    assert not any(row.is_waiting for row in floor.shown(sweep).rows)


def test_single_runs_taken_out_by_hand(floor: Floor) -> None:
    """The last one that waits is cancelled, and one that ended deleted: the sweep is over all the same."""
    sweep = floor.begin()
    jobs = [row.job for row in floor.shown(sweep).rows]
    floor.train_next()
    floor.desk.app.training.delete(jobs[0])
    for job in jobs[1:]:
        floor.desk.app.queue.cancel(job)
    (shown,) = floor.desk.app.sweeps.list("cat", "v1")
    assert shown.ended == "finished"
    assert [row.job for row in shown.rows] == ["", *jobs[1:]]


# --- finish by ---


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


def test_damaged_and_missing_sweeps_are_told(floor: Floor) -> None:
    sweep = floor.begin()
    (floor.desk.workspace.root / sweep / "sweep.json").write_text("{", encoding="utf-8")
    assert floor.desk.app.sweeps.list("cat", "v1") == []
    find: list[Callable[[str], object]] = [floor.desk.app.sweeps.stop_all, floor.desk.app.sweeps.snapshot]
    for call in find:
        for wrong in ("", "projects/cat/versions/v1/sweeps/../trains", f"{sweep}x", sweep):
            with pytest.raises(WorkspaceError):
                call(wrong)


def test_a_copy_of_a_version_has_its_lists_and_not_its_sweeps(floor: Floor) -> None:
    floor.begin(ranks="8,16")
    copy = floor.desk.app.projects.duplicate_version("cat", "v1", "v2").version
    assert floor.desk.app.settings.sweep("cat", copy)["ranks"] == (8, 16)
    assert floor.desk.app.sweeps.list("cat", copy) == []
