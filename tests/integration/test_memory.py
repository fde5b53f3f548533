"""A training that is fitted to its device: a trial before it, less memory in its middle, and the same is learned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from lora_train.core import events as ev
from lora_train.core.errors import DeviceMemoryError
from lora_train.core.jobs import JobFolder
from lora_train.core.limits import Limits, write_limits
from lora_train.core.memory import MemoryPlan, ladder, read_memory
from lora_train.core.specs import TrainSpec
from lora_train.data.epochs import Batch, View
from lora_train.engine import devices, results, setup, trial
from lora_train.engine.loading import BaseModel
from lora_train.engine.step import losses_of
from tests.integration.test_nan import train_here

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio

SETTINGS: dict[str, Any] = {"batch_size": 4, "epochs": 2, "repeats": 2, "learning_rate": 1e-3, "save_precision": "fp32"}
"""Of 4 pictures: 2 steps an epoch."""


ROUNDING, PACKING = 1e-5, 1e-2
"""Relative, of all weights of a LoRA together. Measured: 2.5e-7 in parts and with checkpoints, 1.3e-3 with int8."""


class FakeGauge:
    """A device on which every plan but some is too large; it counts what is asked."""

    device_bytes = 12_000
    budget_bytes = 10_000

    def __init__(self, peaks: list[int] | None = None) -> None:
        self.peaks = peaks or [5_000]
        self.tries = 0

    def restart(self) -> None:
        self.tries += 1

    def peak_bytes(self) -> int:
        return self.peaks[min(self.tries, len(self.peaks)) - 1]


def pictures(studio: Studio) -> Path:
    return studio.pictures(
        "pictures", ["red", "a blue thing", "green", "a thing of many words"], sizes_px=[(64, 64), (80, 48)]
    )


@pytest.fixture
def images(studio: Studio) -> Path:
    return pictures(studio)


def notes(job: JobFolder, word: str) -> list[str]:
    return [event.message for event in job.events() if isinstance(event, ev.Note) and word in event.message]


def losses(job: JobFolder) -> dict[int, float]:
    """The last one told of each step."""
    return {event.step: event.loss for event in job.events() if isinstance(event, ev.Step)}


def use(monkeypatch: pytest.MonkeyPatch, gauge: FakeGauge) -> None:
    monkeypatch.setattr(setup, "open_gauge", lambda _: gauge)


def difference(files: type[Files], job: JobFolder, other: JobFolder) -> float:
    """Of all weights of two LoRAs together, relative."""
    ours, theirs = load_file(files.final(job)), load_file(files.final(other))
    assert ours.keys() == theirs.keys()
    apart = sum(float((tensor - theirs[name]).double().square().sum()) for name, tensor in ours.items())
    return (apart / sum(float(tensor.double().square().sum()) for tensor in theirs.values())) ** 0.5


@pytest.fixture(scope="module")
def plain(shared_studio: Studio) -> JobFolder:
    """The straight run that the others are compared with."""
    job = shared_studio.plan(pictures(shared_studio), **SETTINGS)
    train_here(job)
    assert read_memory(job.path) is None  # a CPU is not measured
    return job


@pytest.mark.parametrize("optimizer", ["AdamW", "Prodigy"])
def test_a_trial_changes_nothing(
    studio: Studio, files: type[Files], images: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    if optimizer == "Prodigy":
        pytest.importorskip("prodigyopt")
    settings = {**SETTINGS, "optimizer": optimizer, "ema_decay": 0.9, "network_dropout": 0.1}
    plain = studio.plan(images, **settings)
    train_here(plain)
    tried = studio.plan(images, **settings)
    use(monkeypatch, FakeGauge())
    train_here(tried)
    assert losses(tried) == losses(plain)
    assert files.tensor_bytes(files.final(tried)) == files.tensor_bytes(files.final(plain))
    facts = read_memory(tried.path)
    assert facts is not None
    assert facts.plan == MemoryPlan()
    assert facts.budget_bytes == 10_000
    assert facts.fitting is not None
    assert facts.fitting.peak_bytes == 5_000
    assert facts.fitting.s_per_step > 0
    assert facts.predicted is not None
    assert facts.predicted.total_bytes > 0
    assert len(notes(tried, "Fits the memory")) == 1


def test_rungs_are_tried_until_one_fits(
    studio: Studio, files: type[Files], images: Path, plain: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first needs too much; in the second the driver moves something into main memory."""
    gauge, full = FakeGauge([20_000, 9_000, 9_000]), [True]
    use(monkeypatch, gauge)
    monkeypatch.setattr(devices, "spills", lambda _: bool(full) and full.pop())
    job = studio.plan(images, **SETTINGS)
    ran: list[MemoryPlan] = []

    def spied(run: Any, inputs: Any) -> torch.Tensor:
        ran.append(run.plan)
        assert len(inputs.latents) <= (run.plan.views_at_once or 4)
        return losses_of(run, inputs)

    monkeypatch.setattr("lora_train.engine.step.losses_of", spied)
    train_here(job)
    facts = read_memory(job.path)
    assert facts is not None
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    rungs = ladder(spec.settings, on_cpu=True)
    assert [trial.plan for trial in facts.trials] == list(rungs[:3])
    assert [trial.why_not for trial in facts.trials] == ["over_budget", "spilled", ""]
    assert facts.plan == rungs[2] == MemoryPlan(views_at_once=1)
    assert ran[-1] == facts.plan
    assert difference(files, job, plain) < ROUNDING


def test_one_trial_a_job(studio: Studio, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeGauge([20_000, 9_000]))
    job = studio.plan(images, **SETTINGS)
    write_limits(job.path, Limits(pause_at_step=1))
    assert train_here(job) == "paused"
    first = read_memory(job.path)
    write_limits(job.path, Limits())
    gauge = FakeGauge([20_000])
    use(monkeypatch, gauge)
    plans = out_of_memory_at(monkeypatch)
    assert train_here(job) == "finished"
    assert gauge.tries == 0
    assert set(plans) == {MemoryPlan(views_at_once=2)}
    assert read_memory(job.path) == first


def test_where_nothing_fits_the_need_and_the_budget_are_told(
    studio: Studio, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FakeGauge([11_000_000_000]))
    job = studio.plan(images, **SETTINGS)
    with pytest.raises(DeviceMemoryError, match=r"10\.2 GB") as caught:
        train_here(job)
    assert "resolution" in caught.value.hint
    assert read_memory(job.path) is None


def test_unfitted_settings_stay_as_they_are(studio: Studio, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gauge = FakeGauge([20_000])
    use(monkeypatch, gauge)
    job = studio.plan(images, fit_to_gpu=False, **SETTINGS)
    assert train_here(job) == "finished"
    assert gauge.tries == 0


def out_of_memory_at(monkeypatch: pytest.MonkeyPatch, *calls: int) -> list[MemoryPlan]:
    """Let memory run out in these of all calls that compute losses, counted from 1; returns the plans of all calls."""
    plans: list[MemoryPlan] = []

    def spied(run: Any, inputs: Any) -> torch.Tensor:
        plans.append(run.plan)
        if len(plans) in calls:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return losses_of(run, inputs)

    monkeypatch.setattr("lora_train.engine.step.losses_of", spied)
    return plans


@pytest.mark.parametrize("rung", range(5))
def test_memory_that_runs_out_costs_a_rung_and_no_more(
    studio: Studio, files: type[Files], images: Path, plain: JobFolder, monkeypatch: pytest.MonkeyPatch, rung: int
) -> None:
    """All rungs but the packed one, the last, give the straight run within rounding."""
    job = studio.plan(images, **SETTINGS)
    plans = out_of_memory_at(monkeypatch, *range(2, 3 + rung))
    assert train_here(job) == "finished"
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    rungs = ladder(spec.settings, on_cpu=True)
    assert plans[-1] == rungs[rung + 1]
    facts = read_memory(job.path)
    assert facts is not None
    assert facts.plan == rungs[rung + 1]
    assert [trial.why_not for trial in facts.trials] == ["out_of_memory"] * (rung + 1)
    assert len(notes(job, "Memory ran out at step")) == rung + 1
    assert losses(job).keys() == losses(plain).keys()
    for step, loss in losses(plain).items():
        assert losses(job)[step] == pytest.approx(loss, rel=1e-5 if rung < 4 else 1e-2)
    assert difference(files, job, plain) < (ROUNDING if rung < 4 else PACKING)


def test_packed_from_the_start_or_later_is_the_same(
    studio: Studio, files: type[Files], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed worker reads the base model packed where the one before packed it under way. Previews are drawn with
    it, and the LoRA is as long and as precise as any."""
    settings = {**SETTINGS, "gradient_checkpointing": True, "batch_size": 1, "generate_previews": True}
    settings |= {"preview_prompts": ["a thing"], "preview_steps": 2, "hold_out": 1, "base_weights": "int8"}
    from_the_start = studio.plan(images, **settings)
    assert train_here(from_the_start) == "finished"
    later = studio.plan(images, **{**settings, "base_weights": "full"})
    out_of_memory_at(monkeypatch, 1)
    write_limits(later.path, Limits(pause_at_step=2))
    assert train_here(later) == "paused"
    write_limits(later.path, Limits())
    assert train_here(later) == "finished"
    assert files.tensor_bytes(files.final(later)) == files.tensor_bytes(files.final(from_the_start))
    assert list(later.samples_dir.glob("*-grid.png"))


def test_offloading_on_a_cpu_is_told_to_be_nothing(
    studio: Studio, files: type[Files], images: Path, plain: JobFolder
) -> None:
    job = studio.plan(images, **SETTINGS, offload_share=0.5)
    assert train_here(job) == "finished"
    assert len(notes(job, "main memory")) == 1
    assert files.tensor_bytes(files.final(job)) == files.tensor_bytes(files.final(plain))


def test_the_end_of_the_ladder(studio: Studio, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = studio.plan(images, **SETTINGS)
    out_of_memory_at(monkeypatch, *range(2, 100))
    with pytest.raises(DeviceMemoryError, match=r"2\.00 GiB"):
        train_here(job)
    assert len(notes(job, "Memory ran out at step")) == 5


def test_previews_that_do_not_fit_are_left_out(
    studio: Studio, files: type[Files], images: Path, plain: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training goes on, without the VAE that was loaded for them."""
    vaes: list[object] = []

    def too_large(model: Any, *_: object) -> Any:
        assert model.vae is not None
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(results, "draw_previews", too_large)
    drop_vae = BaseModel.drop_vae
    monkeypatch.setattr(BaseModel, "drop_vae", lambda model: (drop_vae(model), vaes.append(model._vae)))
    job = studio.plan(images, **SETTINGS, generate_previews=True, preview_prompts=["a thing"], save_every_epochs=1)
    assert train_here(job) == "finished"
    assert len(notes(job, "previews")) == 2
    assert vaes == [None] * 3, "after encoding, and after each save"
    assert files.tensor_bytes(files.final(job)) == files.tensor_bytes(files.final(plain))


def test_other_errors_stay_what_they_are(studio: Studio, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Any, inputs: Any) -> torch.Tensor:
        raise RuntimeError("expected scalar type Half")

    monkeypatch.setattr("lora_train.engine.step.losses_of", broken)
    job = studio.plan(images, **SETTINGS)
    with pytest.raises(RuntimeError, match="Half"):
        train_here(job)
    use(monkeypatch, FakeGauge())
    tried = studio.plan(images, **SETTINGS)
    with pytest.raises(RuntimeError, match="Half"):
        train_here(tried)


def test_the_largest_batch() -> None:
    """10,240 pixels, more than 2 x 4,096 and 2 x 4,608, and the longest caption of all."""

    def batch(size: tuple[int, int], *captions: str) -> Batch:
        return Batch(size, tuple(View(0, 0, index, False, caption) for index, caption in enumerate(captions)))

    chosen = trial.largest_batch([batch((64, 64), "a", "b"), batch((128, 80), "c"), batch((64, 72), "d", "long")], len)
    assert chosen == batch((128, 80), "long")
