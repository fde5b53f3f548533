"""The loss on held-out pictures: with the same noise, timesteps, crops and captions every time, so that numbers of one
run, and of runs with other settings, can be compared.

Legend: B views; latents (B, 4, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import torch

from lora_train.core.config import TrainSettings
from lora_train.core.events import Note, Validated
from lora_train.core.seeds import derive_seed
from lora_train.data.dataset import Dataset
from lora_train.data.epochs import Batch, Bucket, View
from lora_train.engine import diffusion, losses
from lora_train.engine.cache import LatentCache
from lora_train.engine.denoiser import SizeTable, predict
from lora_train.engine.devices import to_device
from lora_train.engine.loading import BaseModel
from lora_train.engine.masks import MaskCache
from lora_train.engine.texts import CachedTexts, TrainedTexts

if TYPE_CHECKING:
    from lora_train.engine.setup import Run

TIMESTEPS_EACH = 8
"""Noise levels at which a picture is measured, spread evenly over those that are trained."""


class HeldOut(NamedTuple):
    """The held-out pictures, ready to be measured."""

    dataset: Dataset
    batches: list[Batch]
    latents: LatentCache
    sizes: SizeTable | None
    masks: MaskCache | None
    inpaint: Mapping[Bucket, torch.Tensor | None]
    texts: TrainedTexts | CachedTexts


class Progress(msgspec.Struct):
    """How the validations of a run went so far; part of its state."""

    at_step: int = -1
    """Of the last validation."""
    best_loss: float | None = None
    best_step: int = 0
    since_best: int = 0
    """Validations after the best one."""

    def take(self, step: int, loss: float) -> None:
        """One more validation."""
        self.at_step = step
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self.since_best = loss, step, 0
        else:
            self.since_best += 1


class Validator:
    """Measures a run from time to time, and knows how long there was no progress."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._base_loss: float | None = None
        self.progress = Progress()

    def is_due(self, step: int) -> bool:
        """Whether there is anything to measure that was not measured after this step."""
        return self._run.held_out is not None and self.progress.at_step != step

    def measure(self, step: int) -> Validated | Note:
        """The event that tells the loss after this step; a note where it is not finite."""
        run, held_out = self._run, self._run.held_out
        assert held_out is not None, "nothing is held out"
        loss = validation_loss(held_out, run.model, run.alphas, run.settings)
        if self._base_loss is None:
            kept, run.network.multiplier = run.network.multiplier, 0.0
            try:
                self._base_loss = validation_loss(held_out, run.model, run.alphas, run.settings)
            finally:
                run.network.multiplier = kept
        if not (math.isfinite(loss) and math.isfinite(self._base_loss)):
            return Note("warning", f"The validation loss is not finite at step {step}.")
        self.progress.take(step, loss)
        return Validated(step=step, loss=loss, base_loss=self._base_loss)

    def is_out_of_patience(self) -> bool:
        """Whether the training is to end, because so many validations brought nothing better."""
        return 0 < self._run.settings.early_stopping_patience <= self.progress.since_best


def validation_batches(buckets: Sequence[Bucket], captions: Sequence[str], batch_size: int) -> list[Batch]:
    """Every picture at every noise level (`View.position`), unmirrored, in batches of one bucket each."""
    batches: list[Batch] = []
    for bucket in sorted(set(buckets)):
        views = [
            View(source=source, epoch=0, position=level, flip=False, caption=captions[source])
            for source, own in enumerate(buckets)
            if own == bucket
            for level in range(TIMESTEPS_EACH)
        ]
        batches += [
            Batch(bucket, tuple(views[start : start + batch_size])) for start in range(0, len(views), batch_size)
        ]
    return batches


def timestep_of(level: int, settings: TrainSettings) -> int:
    """The middle of the `level`-th of TIMESTEPS_EACH equal parts of the trained timesteps."""
    low, high = settings.min_timestep, settings.max_timestep
    return low + int((level + 0.5) / TIMESTEPS_EACH * (high - low))


@torch.no_grad()
def validation_loss(held: HeldOut, model: BaseModel, alphas: torch.Tensor, settings: TrainSettings) -> float:
    """The mean squared error of the prediction over all views, noise levels counting alike; masked as training is."""
    found = [_losses(held, batch, model, alphas, settings) for batch in held.batches]
    return torch.cat(found).mean().item()


def _losses(
    held: HeldOut, batch: Batch, model: BaseModel, alphas: torch.Tensor, settings: TrainSettings
) -> torch.Tensor:
    """(B,) float32."""
    shape = held.latents.latent_shape(batch.bucket)
    noise = to_device(torch.stack([_noise(held, view, shape, settings.seed) for view in batch.views]), alphas.device)
    latents = held.latents.latents(batch, torch.zeros_like(noise))
    timesteps = torch.tensor([timestep_of(view.position, settings) for view in batch.views])
    timesteps = to_device(timesteps, alphas.device)
    alpha_bar = alphas[timesteps]
    noisy = diffusion.add_noise(latents, noise, alpha_bar)
    sizes = held.sizes.of(batch) if held.sizes is not None else None
    text, inpaint = held.texts.embeddings(batch), held.inpaint.get(batch.bucket)
    prediction = predict(model.unet, noisy, timesteps, text, sizes, inpaint)
    errors = losses.squared_errors(prediction, diffusion.target(latents, noise, alpha_bar, model.prediction))
    if held.masks is not None:
        errors = errors * held.masks.weights(batch)
    return errors.mean(dim=(1, 2, 3))


def _noise(held: HeldOut, view: View, shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    path = held.dataset.pictures[view.source].path
    generator = torch.Generator().manual_seed(derive_seed(seed, path, view.position, "validation"))
    return torch.randn(shape, generator=generator)
