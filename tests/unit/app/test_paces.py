"""How long trainings will take, by those that were like them."""

from __future__ import annotations

from pathlib import Path

from lora_train.app.paces import Pace, expected_pace, measured_pace, remember_pace, with_tried_pace
from lora_train.core import events as ev
from lora_train.core.config import TrainSettings
from lora_train.core.jobs import JobStatus
from lora_train.core.memory import MemoryFacts, MemoryPlan, Trial
from lora_train.core.specs import TrainSpec


def remember(root: Path, settings: TrainSettings, s_per_step: float, start_s: float | None = None) -> None:
    spec = TrainSpec(name="x", dataset="", dataset_fingerprint="", trash="", settings=settings)
    measured = None if start_s is None else Pace(s_per_step, start_s)
    remember_pace(root, spec, JobStatus(s_per_step=s_per_step, step=40), measured)


def test_the_same_optimizer_and_rank_count_before_others(tmp_path: Path) -> None:
    remember(tmp_path, TrainSettings(optimizer="Lion", rank=8), 1.0, 5.0)
    remember(tmp_path, TrainSettings(optimizer="Prodigy", rank=64), 3.0, 7.0)
    assert expected_pace(tmp_path, TrainSettings(optimizer="Lion", rank=8)) == Pace(1.0, 5.0)
    assert expected_pace(tmp_path, TrainSettings(optimizer="AdamW", rank=8)) == Pace(3.0, 7.0), "the last like it"
    assert expected_pace(tmp_path, TrainSettings(optimizer="Lion", rank=8, batch_size=2)) is None


def test_a_start_that_was_not_measured_is_unknown(tmp_path: Path) -> None:
    remember(tmp_path, TrainSettings(), 1.0)
    assert expected_pace(tmp_path, TrainSettings()) == Pace(1.0, None)


def test_the_last_start_is_what_is_measured() -> None:
    """It took 20 s: two steps of 4 s, and 12 s of everything else."""
    events: list[ev.Event] = [
        ev.Started(pid=1, t=100.0),
        ev.Started(pid=1, step=0, t=101.0),
        ev.Step(step=1, epoch=1, loss=0.1, lr=0.1, s_per_step=50.0, t=150.0),
        ev.Paused(step=1, t=151.0),
        ev.Started(pid=2, t=200.0),
        ev.Started(pid=2, step=1, t=208.0),
        ev.Step(step=2, epoch=1, loss=0.1, lr=0.1, s_per_step=4.0, t=212.0),
        ev.Step(step=3, epoch=1, loss=0.1, lr=0.1, s_per_step=4.0, t=216.0),
        ev.Finished(step=3, t=220.0),
    ]
    assert measured_pace(events) == Pace(4.0, 12.0, steps=2)
    assert measured_pace(events[:1]) is None
    assert measured_pace([]) is None


def test_a_training_that_saves_memory_has_a_pace_of_its_own(tmp_path: Path) -> None:
    remember(tmp_path, TrainSettings(), 1.0)
    assert expected_pace(tmp_path, TrainSettings(base_weights="int8")) is None
    remember(tmp_path, TrainSettings(base_weights="int8"), 2.0)
    assert expected_pace(tmp_path, TrainSettings(base_weights="int8")) == Pace(2.0)
    assert expected_pace(tmp_path, TrainSettings()) == Pace(1.0)


def test_of_a_training_that_ended_early_the_trial_counts(tmp_path: Path) -> None:
    spec = TrainSpec(name="x", dataset="", dataset_fingerprint="", trash="", settings=TrainSettings())
    remember_pace(tmp_path, spec, JobStatus(s_per_step=9.0, step=3))
    assert expected_pace(tmp_path, TrainSettings()) is None
    remember_pace(tmp_path, spec, JobStatus(s_per_step=9.0, step=3), tried_s_per_step=0.5)
    assert expected_pace(tmp_path, TrainSettings()) == Pace(0.5)
    remember_pace(tmp_path, spec, JobStatus(s_per_step=0.7, step=10), tried_s_per_step=0.5)
    assert expected_pace(tmp_path, TrainSettings()) == Pace(0.7)


def test_before_the_first_step_the_trial_tells_how_long_it_will_take() -> None:
    plan = MemoryPlan(checkpointing="all")
    tried = (Trial(plan=MemoryPlan(), s_per_step=9.0, why_not="spilled"), Trial(plan=plan, s_per_step=0.5))
    memory = MemoryFacts(plan=plan, trials=tried)
    begun = JobStatus(state="running", step=20, total_steps=100)
    told = with_tried_pace(begun, memory)
    assert (told.s_per_step, told.eta_s) == (0.5, 40.0)
    for status in (JobStatus(state="running", s_per_step=2.0), JobStatus(state="finished")):
        assert with_tried_pace(status, memory) == status
    assert with_tried_pace(begun, None) == begun
    assert with_tried_pace(begun, MemoryFacts(plan=plan)) == begun
