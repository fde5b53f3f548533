"""Trainings whose steps are recorded and replayed, on a tape instead of a GPU: they end as plain ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder
from lora_train.core.memory import read_memory
from lora_train.core.specs import TrainSpec
from lora_train.engine import devices, setup, step
from lora_train.engine import train as engine
from lora_train.engine.recordings import RUNS_BEFORE, Recordings
from lora_train.engine.reporting import Reporter

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio

STEPS = 16


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain AdamW asks its step for its number; the fused one, which CUDA uses too, does not."""
    monkeypatch.setattr(devices, "has_fused_optimizers", lambda _: True)


def train(studio: Studio, name: str, images: Any, **settings: Any) -> tuple[JobFolder, list[ev.Event]]:
    shared = {"epochs": 2, "repeats": 4, "save_precision": "fp32", "state_every_s": 0, "lr_scheduler": "cosine"}
    job = studio.plan(images, name=name, **{**shared, **settings})
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    events = ev.EventWriter(job.events_path)
    with Reporter(job, events) as report:
        assert engine.train(spec, job, report)[0] == "finished"
    events.close()
    return job, job.events()


def record(monkeypatch: pytest.MonkeyPatch, recorder: Any) -> list[str]:
    """From now on steps are recorded; returns what is told."""
    notes: list[str] = []
    monkeypatch.setattr(setup, "recordings_of", lambda run, _: Recordings(recorder, run.device.torch, notes.append))
    return notes


def losses(events: list[ev.Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, ev.Step)]


def assert_alike(files: type[Files], plain: JobFolder, recorded: JobFolder) -> None:
    """Numbers of a recording are float32 scalars, where plain ones are doubles; a step moves a weight by 4e-3, and
    where gradients are next to nothing Adam makes much of their rounding.
    """
    wanted, found = load_file(files.final(plain)), load_file(files.final(recorded))
    assert wanted.keys() == found.keys()
    assert any(bool(tensor.any()) for name, tensor in wanted.items() if "lora_up" in name)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize(
    ("settings", "recordings"),
    [
        ({}, 2),
        ({"train_text_encoder": False, "scale_weight_norms": 0.05, "weight_decay": 0.1}, 2),
        ({"max_grad_norm": 0, "gradient_checkpointing": True}, 2),
        ({"gradient_accumulation_steps": 2, "optimizer": "Adam", "epochs": 4}, 2),
        ({"min_snr_gamma": 5, "loss": "huber", "huber_schedule": "snr", "ema_decay": 0.9}, 2),
        ({"optimizer": "SGDNesterov", "learning_rate": 1e-2}, 1),  # its steps are not recorded
    ],
)
def test_recorded_trainings_end_as_plain_ones(
    studio: Studio,
    files: type[Files],
    tapes: Any,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    recordings: int,
) -> None:
    images = studio.pictures("pictures", ["a red thing", "a blue thing"])
    plain, plain_events = train(studio, "plain", images, **settings)
    recorder = tapes.TapeRecorder()
    notes = record(monkeypatch, recorder)
    recorded, events = train(studio, "recorded", images, **settings)
    assert notes == []
    assert recorder.recordings == recordings
    batches = STEPS * settings.get("epochs", 2) // 2
    updates = STEPS if recordings == 2 else 0
    assert recorder.runs == recordings * RUNS_BEFORE
    assert recorder.replays == batches + updates - recorder.runs
    assert losses(events) == pytest.approx(losses(plain_events), rel=1e-3)
    assert_alike(files, plain, recorded)


def test_every_bucket_has_its_recording_and_rare_ones_none(
    studio: Studio, files: type[Files], tapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shapes of pictures with 17 and 9 batches an epoch; the last ones, of 2 and 1 pictures, come twice in all."""
    images = studio.pictures("pictures", ["red", "blue", "green"], sizes_px=[(64, 64), (64, 64), (96, 64)])
    settings = {"batch_size": 3, "epochs": 2, "repeats": 25}
    plain, _ = train(studio, "plain", images, **settings)
    recorder = tapes.TapeRecorder()
    record(monkeypatch, recorder)
    recorded, events = train(studio, "recorded", images, **settings)
    assert recorder.recordings == 3, "two shapes and the update"
    told = [event.message for event in events if isinstance(event, ev.Note) and "come up seldom" in event.message]
    assert told == ["Batches that come up seldom run without CUDA graphs.\n64 × 64 px × 2, 80 × 48 px × 1"]
    assert_alike(files, plain, recorded)


def test_recordings_are_made_anew_after_a_roll_back(
    studio: Studio, files: type[Files], tapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was recorded knows the gradients and the optimizer's state where they were."""
    images = studio.pictures("pictures", ["a red thing", "a blue thing"])
    spoilt = {"at": 0, "calls": 0}
    batch_inputs = step.batch_inputs

    def spoiling(run: Any, batch: Any) -> Any:
        spoilt["calls"] += 1
        inputs = batch_inputs(run, batch)
        is_it = spoilt["calls"] == spoilt["at"]
        return inputs._replace(latents=inputs.latents * float("nan")) if is_it else inputs

    monkeypatch.setattr(step, "batch_inputs", spoiling)
    jobs: list[JobFolder] = []
    for recorder in (None, tapes.TapeRecorder()):
        spoilt.update(at=20, calls=0)
        record(monkeypatch, recorder)
        job, events = train(studio, f"run-{len(jobs)}", images, epochs=4, save_every_epochs=1)
        assert any("half the learning rate" in event.message for event in events if isinstance(event, ev.Note))
        jobs.append(job)
        if recorder is not None:
            assert recorder.recordings == 4
            assert recorder.runs == 4 * RUNS_BEFORE
    assert_alike(files, *jobs)


def test_what_can_not_be_recorded_is_told_and_trained(
    studio: Studio, files: type[Files], tapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = studio.pictures("pictures", ["a red thing", "a blue thing"])
    plain, _ = train(studio, "plain", images)
    losses_of = step.losses_of

    def asking(run: Any, inputs: Any) -> torch.Tensor:
        assert inputs.timesteps[0].item() < 1000
        return losses_of(run, inputs)

    monkeypatch.setattr(step, "losses_of", asking)
    recorder = tapes.TapeRecorder()
    notes = record(monkeypatch, recorder)
    recorded, _ = train(studio, "recorded", images)
    assert len(notes) == 1
    assert "recording failed" in notes[0]
    assert recorder.replays == 0
    assert files.tensor_bytes(files.final(recorded)) == files.tensor_bytes(files.final(plain)), "all as without"


def test_memory_that_runs_out_costs_the_recordings_before_a_rung(
    studio: Studio, files: type[Files], tapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when pictures of another shape come up late: they can't use the memory of what was recorded."""
    images = studio.pictures("pictures", ["a red thing", "a blue thing"])
    plain, _ = train(studio, "plain", images)
    calls: list[int] = []
    batch_inputs = step.batch_inputs

    def too_much(run: Any, batch: Any) -> Any:
        calls.append(run.recordings.count)
        if len(calls) == 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return batch_inputs(run, batch)

    monkeypatch.setattr(step, "batch_inputs", too_much)
    notes = record(monkeypatch, tapes.TapeRecorder())
    job, events = train(studio, "recorded", images)
    assert notes == ["Steps run without CUDA graphs: their memory is needed for steps of other shapes."]
    (told,) = [event.message for event in events if isinstance(event, ev.Note) and "Memory ran out" in event.message]
    assert told == "Memory ran out at step 10: back to step 0."
    assert (calls[9], calls[10:]) == (2, [0] * STEPS)
    assert read_memory(job.path) is None, "the plan is the one that it was"
    assert files.tensor_bytes(files.final(job)) == files.tensor_bytes(files.final(plain)), "all as without"
