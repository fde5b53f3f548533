"""Measuring held-out pictures: nothing of the training changes, and the numbers are the same however often it ends."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora_train.core import events as ev
from lora_train.core.jobs import JobFolder, StatusReader
from lora_train.core.limits import Limits, write_limits
from lora_train.core.optimizers import is_absent
from lora_train.core.seeds import derive_seed
from lora_train.core.specs import TrainSpec
from lora_train.engine import setup
from lora_train.engine.reporting import Reporter
from lora_train.engine.state import load_state
from lora_train.engine.train import train
from lora_train.engine.validation import TIMESTEPS_EACH, Progress, validation_loss

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio

CAPTIONS = [f"a {color} {thing}" for color in ("red", "blue", "green", "grey") for thing in ("cat", "dog", "bird")]
SETTINGS: dict[str, Any] = {
    "hold_out": 2,
    "validate_every_steps": 4,
    "epochs": 3,
    "batch_size": 2,
    "save_every_epochs": 1,
}
"""12 pictures less 2, of two shapes, / batch 2 = 6 steps an epoch."""
STEPS = [0, 4, 6, 8, 12, 16, 18]
"""The base model, every fourth step, and every epoch's save."""


class EndsAt(Reporter):
    """Asks for an end right after a step, as a person might."""

    def __init__(self, job: JobFolder, events: ev.EventWriter, what: Any, step: int) -> None:
        super().__init__(job, events)
        self._what, self._at = what, step

    def step(self, *, step: int, **told: Any) -> None:
        super().step(step=step, **told)
        if step == self._at:
            self._job.request(self._what)
            self.request = self._what


def work(job: JobFolder, request: tuple[Any, int] | None = None) -> str:
    """Go on with a training in this process; returns how it ended."""
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    job.clear_requests()
    events = ev.EventWriter(job.events_path)
    with EndsAt(job, events, *request) if request else Reporter(job, events) as report:
        ending, _ = train(spec, job, report)
    events.close()
    return ending


def told(job: JobFolder) -> list[ev.Validated]:
    return [event for event in job.events() if isinstance(event, ev.Validated)]


def progress(job: JobFolder) -> Progress:
    state = load_state(job.state_dir)
    assert state is not None
    return state.facts.validation


@pytest.fixture(scope="module")
def images(shared_studio: Studio) -> Path:
    return shared_studio.pictures("pictures", CAPTIONS, sizes_px=((64, 64), (64, 96)))


@pytest.fixture(scope="module")
def straight(shared_studio: Studio, images: Path) -> JobFolder:
    """With text encoder, learning so fast that the loss turns."""
    job = shared_studio.plan(images, name="straight", **SETTINGS)
    assert work(job) == "finished"
    return job


def test_every_save_and_every_fourth_step(straight: JobFolder, files: type[Files]) -> None:
    assert [event.step for event in told(straight)] == STEPS
    first = told(straight)[0]
    assert first.loss == first.base_loss, "a LoRA that has learned nothing is the base model"
    assert {event.base_loss for event in told(straight)} == {first.base_loss}
    assert len({event.loss for event in told(straight)}) == len(STEPS)
    metadata = files.metadata(files.final(straight))
    assert (metadata["ss_num_validation_images"], metadata["ss_num_train_images"]) == ("2", "10")
    assert metadata["ss_validate_every_n_steps"] == "4"


def test_nothing_of_the_training_changes(studio: Studio, images: Path, files: type[Files]) -> None:
    """Dropout, averages and an optimizer that learns at another point than it shows: all would notice."""
    optimizer = "AdamW" if is_absent("AdamWScheduleFree") else "AdamWScheduleFree"
    settings = {
        **SETTINGS,
        "epochs": 1,
        "optimizer": optimizer,
        "ema_decay": 0.9,
        "network_dropout": 0.1,
        "module_dropout": 0.1,
        "flip": True,
        "caption_dropout": 0.2,
    }
    measured = studio.plan(images, **settings)
    seldom = studio.plan(images, **{**settings, "validate_every_steps": 0})
    spec = measured.read_spec()
    assert isinstance(spec, TrainSpec)
    rest = shutil.copytree(images, studio.root / "rest")
    for path in spec.held_out:
        for file in rest.glob(f"{Path(path).stem}.*"):
            file.unlink()
    without = studio.plan(rest, name="without", **{**settings, "hold_out": 0})
    for job in (measured, seldom, without):
        assert work(job) == "finished"
    assert [len(told(job)) for job in (measured, seldom, without)] == [3, 2, 0]
    contents = [files.tensor_bytes(files.final(job)) for job in (measured, seldom, without)]
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize(
    ("end", "step"),
    [("pause", 4), ("pause", 6), ("stop", 3), ("limit", 4), ("limit", 6)],
)
def test_ended_anywhere_it_counts_as_straight(
    studio: Studio, images: Path, straight: JobFolder, files: type[Files], end: str, step: int
) -> None:
    """At a validation, beside one, at an epoch's end; a stop and a limit measure once more, which does not count."""
    job = studio.plan(images, name="straight", **SETTINGS)
    if end == "limit":
        write_limits(job.path, Limits(pause_at_step=step))
        assert work(job) == "paused"
        write_limits(job.path, Limits())
    else:
        assert work(job, (end, step)) == {"pause": "paused", "stop": "stopped"}[end]
    before = progress(job)
    assert work(job) == "finished"
    points = StatusReader(job).validations()
    extra = [] if end == "pause" or step in STEPS else [step]
    assert [point.step for point in points] == sorted([*STEPS, *extra])
    expected = {point.step: point for point in StatusReader(straight).validations()}
    assert all(point == expected[point.step] for point in points if point.step in expected)
    assert progress(job) == progress(straight)
    assert before.since_best <= before.counted_step <= step
    assert files.tensor_bytes(files.final(job)) == files.tensor_bytes(files.final(straight))


def test_killed_it_measures_the_same_again(
    studio: Studio, images: Path, straight: JobFolder, files: type[Files]
) -> None:
    job = studio.plan(images, name="straight", **SETTINGS)
    process = studio.start(job)
    studio.wait_for_step(job, process, 6)
    process.kill()
    process.wait()
    assert studio.app.status(job, process).step < 18
    assert studio.run(job).state == "finished"
    assert StatusReader(job).validations() == StatusReader(straight).validations()
    assert progress(job) == progress(straight)
    assert files.tensor_bytes(files.final(job)) == files.tensor_bytes(files.final(straight))
    status = studio.app.status(job)
    last = told(straight)[-1]
    assert (status.validation_loss, status.base_validation_loss) == (last.loss, last.base_loss)


def test_early_stopping(studio: Studio, images: Path, files: type[Files]) -> None:
    """At a rate that only destroys, no validation is better than the base model; ended in between, patience goes on."""
    settings = {
        **SETTINGS,
        "epochs": 9,
        "learning_rate": 0.3,
        "early_stopping_patience": 3,
        "train_text_encoder": False,
    }
    job, paused = studio.plan(images, **settings), studio.plan(images, **settings)
    status = studio.run(job)
    assert (status.state, status.step, status.total_steps) == ("finished", 8, 54)
    assert [event.step for event in told(job)] == [0, 4, 6, 8]
    assert "has not improved since step 0" in status.notes[-1]
    assert files.final(job).is_file()
    assert files.metadata(files.final(job))["ss_steps"] == "8"

    assert work(paused, ("pause", 4)) == "paused"
    assert work(paused) == "finished"
    assert [event.step for event in told(paused) if event.step > 4] == [6, 8]
    assert progress(paused) == progress(job)
    assert files.tensor_bytes(files.final(paused)) == files.tensor_bytes(files.final(job))


def prepared(job: JobFolder) -> setup.Run:
    spec = job.read_spec()
    assert isinstance(spec, TrainSpec)
    events = ev.EventWriter(job.events_path)
    run = setup.prepare_run(spec, job.path, Reporter(job, events))
    events.close()
    return run


@torch.no_grad()
def by_hand(model: Any, path: Path, name: str, seed: int) -> float:
    """One picture of 64 x 64 px and its caption file, with diffusers and transformers alone."""
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = model.vae.encode(pixels).latent_dist.mean * model.vae_scale
    ids = model.tokenizers[0](path.with_suffix(".txt").read_text(encoding="utf-8")).input_ids
    padded = torch.tensor([ids + [49407] * (77 - len(ids))])
    text = model.text_encoders[0](padded).last_hidden_state
    bars = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    errors: list[float] = []
    for level in range(TIMESTEPS_EACH):
        step = int((level + 0.5) * 1000 / TIMESTEPS_EACH)
        generator = torch.Generator().manual_seed(derive_seed(seed, name, level, "validation"))
        noise = torch.randn(latents.shape[1:], generator=generator)[None]
        noisy = float(bars[step]) ** 0.5 * latents + (1 - float(bars[step])) ** 0.5 * noise
        prediction = model.unet(noisy, torch.tensor([step]), text).sample
        errors.append((prediction - noise).square().mean().item())
    return sum(errors) / len(errors)


def test_the_loss_by_hand(studio: Studio, demo_model: Any) -> None:
    images = studio.pictures("square", CAPTIONS)
    job = studio.plan(images, hold_out=1, batch_size=3, train_text_encoder=False, flip=True, noise_offset=0.1)
    run = prepared(job)
    assert run.held_out is not None
    (name,) = [picture.path for picture in run.held_out.dataset.pictures]
    found = validation_loss(run.held_out, run.model, run.alphas, run.settings)
    lasting = name.partition("_")[2]  # without the repeats
    expected = by_hand(demo_model, images / Path(name).name, lasting, run.settings.seed)
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_base_model_is_without_a_continued_text_encoder(studio: Studio, straight: JobFolder, images: Path) -> None:
    """Captions that are encoded ahead have the continued LoRA's text encoder in them; the base model's have not."""
    lora = straight.path / f"{straight.path.name}.safetensors"
    settings = {**SETTINGS, "epochs": 1, "train_text_encoder": False, "continue_from": str(lora)}
    job = studio.plan(images, name="straight", **settings)
    assert work(job) == "finished"
    first, last = told(job)[0], told(straight)[-1]
    assert first.base_loss == pytest.approx(last.base_loss, rel=1e-5)
    assert first.loss == pytest.approx(last.loss, rel=1e-2)  # the file's weights are rounded to fp16
    assert abs(first.loss - first.base_loss) > 1e-3 * first.loss


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("sdxl", {"masked_loss": True, "ema_decay": 0.9}),
        ("sdxl", {"train_sdxl_text_encoders": True, "gradient_checkpointing": True}),
        ("sd1-inpaint", {"masked_loss": True, "optimizer": "AdamWScheduleFree"}),
    ],
)
def test_other_families(
    studio: Studio, checkpoint_of: Callable[[str], Path], family: str, settings: dict[str, Any]
) -> None:
    if is_absent(settings.get("optimizer", "AdamW")):
        pytest.skip("the optimizer needs a package that is not installed")
    images = studio.pictures("seen", CAPTIONS[:10])
    for path in images.glob("*.png"):
        picture = Image.open(path).convert("RGBA")
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.save(path)
    shared = {"base_model": str(checkpoint_of(family)), "hold_out": 1, "batch_size": 3, "resolution": 64, "epochs": 1}
    job = studio.plan(images, **{**shared, **settings})
    assert work(job) == "finished"
    first, last = told(job)
    assert (first.step, last.step) == (0, 3)
    assert first.loss == first.base_loss == last.base_loss
    assert 0 < last.loss != first.loss
