"""One optimizer step: what it is computed from, its losses, and what they teach.

Legend: B views of a batch; latents (B, 4, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from lora_train.data.epochs import Batch
from lora_train.data.tokens import CHUNK_TOKENS
from lora_train.engine import diffusion, draws, losses
from lora_train.engine.denoiser import predict
from lora_train.engine.devices import to_device
from lora_train.engine.flat import clip, gradients
from lora_train.engine.optimizers import is_capturable, rates_as
from lora_train.engine.processes import reduce_gradients
from lora_train.engine.recomputing import without_random_state
from lora_train.engine.run import Run
from lora_train.engine.text import Embeddings
from lora_train.engine.texts import TokenIds


def train_step(run: Run, group: Sequence[Batch]) -> torch.Tensor:
    """One optimizer step over the batches of `group`; returns the mean loss over all their views, on the device."""
    for part in run.groups.values():
        part.refresh()
    views = sum(len(batch.views) for batch in group)
    total = torch.zeros((), device=run.device.torch)
    run.recordings.begin_step(run.total_steps - run.schedule.last_epoch)
    for batch in run.own_parts(group):
        run.network.before_batch(partial(draws.uniform, run, batch), most_places(run, batch))
        total += run.recordings.do("backward", partial(backward, run), (batch_inputs(run, batch), views))
    if run.processes is not None:
        total = reduce_gradients(run, total)
    run.snapshots.let_change()
    rates = tuple(group["lr"] for group in run.optimizer.param_groups)
    if is_capturable(run.settings) and run.scaler.asks_nothing(run.optimizer):
        run.recordings.do("update", partial(update, run), (rates,))
    else:
        update(run, rates)
    run.schedule.step()
    return total


def backward(run: Run, inputs: BatchInputs, views: int | torch.Tensor) -> torch.Tensor:
    """Add the gradients of a batch, whose optimizer step is over `views`, to those there are; returns its share of the
    step's mean loss.
    """
    with without_random_state():
        loss = losses_of(run, inputs).sum() / views
    run.scaler.scale(loss).backward()
    for part in run.groups.values():
        part.collect()
    return loss.detach()


def update(run: Run, rates: Sequence[float | torch.Tensor]) -> None:
    """Change the weights by their gradients, and forget these. `rates` are those of the optimizer's groups."""
    parts = run.groups.values()
    for part in parts:
        part.gather()
    run.scaler.unscale(gradients(parts))
    if run.settings.max_grad_norm:
        clip(parts, run.settings.max_grad_norm)
    with rates_as(run.optimizer, rates):
        run.scaler.step(run.optimizer, masks=is_capturable(run.settings))
    run.network.after_step()
    for part in parts:
        part.forget()


class BatchInputs(NamedTuple):
    """All that the losses of a batch are computed from, on the device; nothing random is left to draw.

    latents, noise  (B, 4, h, w) float32
    timesteps       (B,) int64
    text            of the captions; their token ids where text encoders are trained
    sizes           (B, 6), for SDXL
    inpaint         (1, 5, h, w), for inpainting models
    mask            (B, 1, h, w) weight of every place, for masked loss
    counts          (B,) how much each view counts, as a regularisation picture or not
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    text: Embeddings | TokenIds
    sizes: torch.Tensor | None
    inpaint: torch.Tensor | None
    mask: torch.Tensor | None
    counts: torch.Tensor


def batch_inputs(run: Run, batch: Batch) -> BatchInputs:
    """Draw all randomness for (seed, epoch, position, purpose), and look up what is cached."""
    device = run.device.torch
    shape = run.latents.latent_shape(batch.bucket)
    return BatchInputs(
        latents=run.latents.latents(batch, to_device(draws.normal(run, batch, "latent", shape), device)),
        noise=to_device(draws.noise(run, batch, shape), device),
        timesteps=to_device(draws.timesteps(run, batch), device),
        text=run.texts.look_up(batch),
        sizes=run.sizes.of(batch) if run.sizes is not None else None,
        inpaint=run.inpaint.get(batch.bucket),
        mask=run.masks.weights(batch) if run.masks is not None else None,
        counts=to_device(torch.tensor([_count(run, view.source) for view in batch.views]), device),
    )


def losses_of(run: Run, inputs: BatchInputs) -> torch.Tensor:
    """(B,) weighted loss of every view. Reads nothing but `inputs`, weights and settings."""
    settings, latents, noise = run.settings, inputs.latents, inputs.noise
    alpha_bar = run.alphas[inputs.timesteps]
    noisy = diffusion.add_noise(latents, noise, alpha_bar)
    text = run.texts.encoded(inputs.text)
    prediction = predict(run.model.unet, noisy, inputs.timesteps, text, inputs.sizes, inputs.inpaint)

    target = diffusion.target(latents, noise, alpha_bar, run.model.prediction)
    if settings.loss == "mse":
        errors = losses.squared_errors(prediction, target)
    else:
        c = losses.huber_c(inputs.timesteps, alpha_bar, settings.huber_schedule, settings.huber_c)
        errors = losses.robust_errors(prediction, target, settings.loss, c)
    if inputs.mask is not None:
        errors = errors * inputs.mask
    weights = (
        losses.debiased_weight(alpha_bar, run.model.prediction)
        if settings.debiased_estimation
        else losses.min_snr_weight(alpha_bar, settings.min_snr_gamma, run.model.prediction)
    )
    return losses.sample_losses(errors, weights * inputs.counts)


def _count(run: Run, source: int) -> float:
    return run.settings.prior_loss_weight if run.planner.sources[source].is_regularisation else 1.0


def most_places(run: Run, batch: Batch) -> int:
    """No layer of a model sees more of one view than its latents have pixels, or its caption tokens."""
    _, height, width = run.latents.latent_shape(batch.bucket)
    return max(height * width, run.settings.max_tokens // CHUNK_TOKENS * (CHUNK_TOKENS + 2))
