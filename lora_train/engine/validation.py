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
from lora_train.data.holding_out import lasting_name
from lora_train.engine import diffusion, losses
from lora_train.engine.cache import LatentCache
from lora_train.engine.denoiser import SizeTable, predict
from lora_train.engine.devices import to_device
from lora_train.engine.loading import BaseModel
from lora_train.engine.masks import MaskCache
from lora_train.engine.texts import CachedTexts, TrainedTexts

if TYPE_CHECKING:
    from lora_train.engine.processes import Processes
    from lora_train.engine.run import Run

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
    base_texts: TrainedTexts | CachedTexts
    """What the base model alone makes of the captions, once the network's multiplier is 0."""


class Progress(msgspec.Struct):
    """How the validations of a run went so far; part of its state."""

    base_loss: float | None = None
    """Of the base model alone; never changes."""
    at_step: int = -1
    """Of the last validation."""
    loss: float | None = None
    """What it found; None where that was not finite."""
    counted_step: int = -1
    """Of the last validation that counts for the patience."""
    best_loss: float | None = None
    best_step: int = 0
    since_best: int = 0
    """Validations after the best one, of those that count."""

    def count(self) -> None:
        """The last validation counts from now on, once."""
        if self.counted_step == self.at_step or self.loss is None:
            return
        self.counted_step = self.at_step
        if self.best_loss is None or self.loss < self.best_loss:
            self.best_loss, self.best_step, self.since_best = self.loss, self.at_step, 0
        else:
            self.since_best += 1


class Validator:
    """Measures a run from time to time, and knows how long there was no progress."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.progress = Progress()

    def is_due(self, step: int) -> bool:
        """Whether there is anything to measure that was not measured after this step."""
        return self._run.held_out is not None and self.progress.at_step != step

    def measure(self, step: int) -> Validated | Note:
        """The event that tells the loss after this step; a note where it is not finite."""
        run, held_out, progress = self._run, self._run.held_out, self.progress
        assert held_out is not None, "nothing is held out"
        if progress.base_loss is None:
            progress.base_loss = _finite(self._base_loss(held_out))
        progress.at_step = step
        progress.loss = _finite(validation_loss(held_out, run.model, run.alphas, run.settings, run.processes))
        return self.told() or Note("warning", f"The validation loss is not finite at step {step}.")

    def told(self) -> Validated | None:
        """The event of the last validation, to be told again where a run goes on; None where there is none."""
        progress = self.progress
        if progress.loss is None or progress.base_loss is None:
            return None
        return Validated(step=progress.at_step, loss=progress.loss, base_loss=progress.base_loss)

    def _base_loss(self, held_out: HeldOut) -> float:
        run = self._run
        kept, run.network.multiplier = run.network.multiplier, 0.0
        try:
            alone = held_out._replace(texts=held_out.base_texts)
            return validation_loss(alone, run.model, run.alphas, run.settings, run.processes)
        finally:
            run.network.multiplier = kept

    def is_out_of_patience(self) -> bool:
        """Whether the training is to end, because so many validations brought nothing better."""
        return 0 < self._run.settings.early_stopping_patience <= self.progress.since_best


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


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
def validation_loss(
    held: HeldOut,
    model: BaseModel,
    alphas: torch.Tensor,
    settings: TrainSettings,
    processes: Processes | None = None,
) -> float:
    """The mean squared error of the prediction over all views, noise levels counting alike; masked as training is.

    Several processes share the batches out; all get the same number, the one that each would find alone.
    """
    found = [
        _losses(held, batch, model, alphas, settings)
        if processes is None or index % processes.count == processes.number
        else torch.zeros(len(batch.views), device=alphas.device)
        for index, batch in enumerate(held.batches)
    ]
    together = torch.cat(found)
    if processes is not None:
        processes.sum(together)
    return together.mean().item()


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
    name = lasting_name(held.dataset.pictures[view.source].path)
    generator = torch.Generator().manual_seed(derive_seed(seed, name, view.position, "validation"))
    return torch.randn(shape, generator=generator)
