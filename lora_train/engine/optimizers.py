"""Optimizers by the names the page shows, all of them legal at a learning rate of 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lora_train.core.config import Optimizer, TrainSettings

_BETAS = {"AdamW": (0.9, 0.999), "Adam": (0.9, 0.999), "Lion": (0.9, 0.99)}
_SGD_MOMENTUM = 0.9
_DEFAULT_RATE = 1.0
"""Never used, as every group has its own rate; but diffusers' polynomial schedule works relative to it."""


def make_optimizer(
    settings: TrainSettings, groups: dict[str, list[nn.Parameter]], *, fused: bool
) -> torch.optim.Optimizer:
    """The optimizer of `settings`; `groups` has the parameters of "unet" and, when trained, of the text encoders."""
    named: list[dict[str, Any]] = [
        {"params": parameters, "lr": settings.learning_rate if part == "unet" else settings.text_encoder_lr}
        for part, parameters in groups.items()
    ]
    return _make(settings.optimizer, named, settings.weight_decay, fused=fused)


def _make(name: Optimizer, groups: list[dict[str, Any]], weight_decay: float, *, fused: bool) -> torch.optim.Optimizer:
    if name == "Lion":
        return _make_lion(groups, weight_decay)
    if name == "SGDNesterov":
        return torch.optim.SGD(
            groups, lr=_DEFAULT_RATE, momentum=_SGD_MOMENTUM, nesterov=True, weight_decay=weight_decay
        )
    kind = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}[name]
    extra = {"fused": True} if fused else {}
    return kind(groups, lr=_DEFAULT_RATE, betas=_BETAS[name], weight_decay=weight_decay, **extra)


def _make_lion(groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
    """lion-pytorch refuses a rate of 0 when it is made, but works with one: so it is set afterwards."""
    from lion_pytorch import Lion

    rates = [group["lr"] for group in groups]
    groups = [{"params": group["params"]} for group in groups]
    optimizer = Lion(groups, lr=_DEFAULT_RATE, betas=_BETAS["Lion"], weight_decay=weight_decay)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return optimizer


def make_schedule(
    settings: TrainSettings, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """diffusers' learning-rate schedule of this name over `total_steps` optimizer steps."""
    from diffusers.optimization import get_scheduler

    return get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=total_steps,
        num_cycles=settings.lr_cycles,
    )


def halve_rates(optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    """Half the learning rate from now on, also in what the schedule will set."""
    schedule.base_lrs = [rate / 2 for rate in schedule.base_lrs]
    for group in optimizer.param_groups:
        group["lr"] /= 2
        group["initial_lr"] /= 2
