"""A loss that is not finite: back to the last good state with half the rate, at most twice, and nothing bad is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import TrainSpec
from lora_train.engine import step, way_back
from lora_train.engine import train as engine
from lora_train.engine.reporting import Reporter

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio

EXPLODES: dict[str, Any] = {"learning_rate": 10, "text_encoder_lr": 10, "alpha": 1024}
"""AdamW's first step changes every weight by the rate; the third step's loss is then NaN, also at a quarter of it."""

EXPLODES_AT_FIRST: dict[str, Any] = {
    "learning_rate": 4,
    "rank": 4,
    "alpha": 8,
    "train_text_encoder": False,
    "lr_scheduler": "constant",
    "weight_decay": 0,
    "epochs": 1,
    "repeats": 3,
}
"""Measured on processors of two makers: NaN at step 7 to 9 with a rate of 4, at step 12 or later with 2 (there are 12),
and never in 20 with 1."""


@pytest.fixture
def images(studio: Studio) -> Path:
    return studio.pictures("pictures", ["a red thing", "a blue thing", "a green thing", "a thing"])


def train_here(job: JobFolder) -> engine.Ending:
    """Run a job in this process."""
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    events = ev.EventWriter(job.events_path)
    try:
        with Reporter(job, events) as report:
            return engine.train(spec, job, report)[0]
    finally:
        events.close()


def roll_backs(job: JobFolder) -> list[str]:
    return [event.message for event in job.events() if isinstance(event, ev.Note) and "half the" in event.message]


def test_an_absurd_rate_fails_after_two_roll_backs(studio: Studio, files: type[Files], images: Path) -> None:
    job = studio.plan(images, epochs=3, repeats=5, save_every_epochs=1, state_every_s=1, **EXPLODES)
    process = studio.start(job)
    status = studio.end(job, process)
    assert process.returncode == 1
    assert status.state == "failed"
    assert "NaN or infinite" in status.message
    assert "third time" in status.message
    assert "learning rate" in status.hint
    assert "Traceback" not in status.message + status.hint

    notes = roll_backs(job)
    assert ["1 of 2" in notes[0], "2 of 2" in notes[1]] == [True, True]
    assert len(notes) == 2
    rates = [event.lr for event in job.events() if isinstance(event, ev.Step) and event.step == 1]
    assert rates == [10, 5, 2.5]
    kept = list(job.path.rglob("*.safetensors"))
    assert kept, "the state it went back to is still there"
    assert all(files.are_finite(path) for path in kept)
    assert studio.app.publish_result(job) is None


@pytest.mark.parametrize("ema_decay", [0, 0.9])
def test_half_the_rate_can_be_enough(studio: Studio, files: type[Files], images: Path, ema_decay: float) -> None:
    """And then the LoRA is the one that the lower rate gives from the start, also as an average."""
    settings = {**EXPLODES_AT_FIRST, "ema_decay": ema_decay}
    job = studio.plan(images, **settings)
    assert train_here(job) == "finished"
    count = len(roll_backs(job))
    assert 1 <= count <= 2
    rate = EXPLODES_AT_FIRST["learning_rate"] / 2**count
    lower = studio.plan(images, **{**settings, "learning_rate": rate})
    assert train_here(lower) == "finished"
    assert not roll_backs(lower)
    assert files.tensor_bytes(files.final(job)) == files.tensor_bytes(files.final(lower))


def test_no_state_is_written_from_broken_weights(
    studio: Studio, files: type[Files], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are read some time after their step; a state that is due in between may not keep what they broke."""
    bad_step = 6
    written: list[tuple[int, bool]] = []
    losses_of = step.losses_of
    save_state = way_back.save_state
    state = {"step": 0, "is_broken": False}

    def broken_once(run: Any, inputs: Any) -> torch.Tensor:
        state["step"] += 1
        losses = losses_of(run, inputs)
        return losses * float("nan") if state["step"] == bad_step else losses

    def spied_save(folder: Path, facts: Any, tensors: Any) -> None:
        save_state(folder, facts, tensors)
        written.append((facts.clock.step, all(bool(t.isfinite().all()) for t in tensors.values())))

    monkeypatch.setattr(step, "losses_of", broken_once)
    monkeypatch.setattr(way_back, "save_state", spied_save)
    # A state is due after every step; losses come in far later.
    monkeypatch.setattr("lora_train.engine.reporting._SEND_EVERY_S", 1000)
    monkeypatch.setattr(way_back.WayBack, "state_at", property(lambda _: -1e9, lambda _, __: None), raising=False)
    job = studio.plan(images, epochs=1, repeats=3, state_every_s=1)
    assert train_here(job) == "finished"

    assert len(roll_backs(job)) == 1
    assert f"at step {bad_step}" in roll_backs(job)[0]
    assert f"back to step {bad_step - 1}" in roll_backs(job)[0]
    assert all(is_finite for _, is_finite in written)
    assert len(written) >= 12
    assert files.are_finite(files.final(job))


def test_the_step_that_breaks_the_weights_may_be_the_last(
    studio: Studio, files: type[Files], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is of the weights before it; what it did to them shows in the weights alone."""
    calls: list[int] = []

    def breaking(run: Any, group: Any) -> torch.Tensor:
        loss = step(run, group)
        calls.append(1)
        if len(calls) == run.total_steps:
            with torch.no_grad():
                next(iter(run.network.parameters())).fill_(float("inf"))
        return loss

    step = engine.train_step
    monkeypatch.setattr(engine, "train_step", breaking)
    job = studio.plan(images, epochs=1, repeats=1)
    assert train_here(job) == "finished"
    assert len(roll_backs(job)) == 1
    assert files.are_finite(files.final(job))
