"""Optimizers by the names the page shows, all of them legal at a learning rate of 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import nn

from lora_train.core.config import Optimizer, TrainSettings
from lora_train.core.errors import ConfigError
from lora_train.core.optimizers import (
    OPTIMIZERS,
    absent_problem,
    argument_problems,
    broken_problem,
    is_absent,
    optimizer_arguments,
    sees_shapes,
)
from lora_train.engine.flat import FlatPart

_DEFAULT_RATE = 1.0
"""Never used, as every group has its own rate; but diffusers' polynomial schedule works relative to it."""
_FUSED = ("AdamW", "Adam")


def optimizer_parameters(settings: TrainSettings, parts: Mapping[str, FlatPart]) -> dict[str, list[nn.Parameter]]:
    """What the optimizer of `settings` is given of each part: one flat parameter, or its tensors one by one."""
    one_by_one = sees_shapes(settings)
    return {name: [*part.parameters.values()] if one_by_one else [part.weights] for name, part in parts.items()}


def make_optimizer(
    settings: TrainSettings, groups: Mapping[str, list[nn.Parameter]], *, fused: bool
) -> torch.optim.Optimizer:
    """The optimizer of `settings`; `groups` has the parameters of "unet" and, when trained, of the text encoders.

    fused   one kernel a step, where torch has one for the device and the optimizer

    Some libraries refuse a rate of 0 when an optimizer is made, though it works with one: so rates are set afterwards.
    Raises ConfigError when its package is not there or does not work, and for arguments that are wrong.
    """
    if problems := argument_problems(settings):
        raise ConfigError(problems)
    kind = _class_of(settings.optimizer)
    arguments: dict[str, Any] = optimizer_arguments(settings)
    if fused and settings.optimizer in _FUSED:
        arguments["fused"] = True
    try:
        optimizer = kind([{"params": own} for own in groups.values()], lr=_DEFAULT_RATE, **arguments)
    except Exception as error:  # a library of somebody else, with what a person wrote
        raise ConfigError([broken_problem(settings.optimizer, _first_line(error))]) from error
    for part, group in zip(groups, optimizer.param_groups, strict=True):
        group["lr"] = settings.learning_rate if part == "unet" else settings.text_encoder_lr
    if OPTIMIZERS[settings.optimizer].has_own_schedule:
        optimizer.train()
    return optimizer


def is_capturable(settings: TrainSettings) -> bool:
    """Whether a step of the optimizer reads nothing back from the device, and its rate may be a tensor there."""
    return settings.optimizer in (*_FUSED, "Lion")


def _class_of(name: Optimizer) -> Any:
    if is_absent(name):
        raise ConfigError([absent_problem(name)])
    module, _, of_class = OPTIMIZERS[name].path.rpartition(".")
    try:
        kind = getattr(import_module(module), of_class)
    except Exception as error:  # a package may be installed and broken in any way
        raise ConfigError([broken_problem(name, _first_line(error))]) from error
    return _part_by_part(kind) if OPTIMIZERS[name].finds_rate else kind


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


@cache
def _part_by_part(kind: Any) -> Any:
    """DAdaptation and Prodigy find one rate for all parameters, and refuse parts with rates of their own.

    UNet and text encoder want different ones: so each part takes its step as if it were alone. What such an optimizer
    finds out stands in the group. A part whose rate is 0 is then left as it is, weight decay included.
    """

    class PartByPart(kind):
        def step(self, closure: None = None) -> None:
            groups = self.param_groups
            try:
                for group in groups:
                    self.param_groups = [group]
                    super().step(closure)
            finally:
                self.param_groups = groups

    return PartByPart


def make_schedule(
    settings: TrainSettings, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """diffusers' learning-rate schedule of this name over `total_steps` optimizer steps.

    Constant for an optimizer with a schedule of its own, which knows of the warm-up too.
    """
    from diffusers.optimization import get_scheduler

    return get_scheduler(
        "constant" if OPTIMIZERS[settings.optimizer].has_own_schedule else settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=total_steps,
        num_cycles=settings.lr_cycles,
    )


@contextmanager
def rates_as(optimizer: torch.optim.Optimizer, rates: Sequence[float | torch.Tensor]) -> Iterator[None]:
    """Within, the groups have these rates, numbers or scalars on the device; what schedule and state know stays so."""
    kept = [{key: group[key] for key in ("lr", "capturable") if key in group} for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        if isinstance(rate, torch.Tensor) and "capturable" in group:
            group["capturable"] = rate.is_cuda
    try:
        yield
    finally:
        for group, own in zip(optimizer.param_groups, kept, strict=True):
            group.update(own)


def coming_rate(optimizer: torch.optim.Optimizer) -> float:
    """The UNet's learning rate at the next step, with the factor that the optimizer has found or warms up by."""
    group = optimizer.param_groups[0]
    warmup_steps = group.get("warmup_steps", 0)
    warm = min(1.0, (group["k"] + 1) / warmup_steps) if warmup_steps else 1.0
    return group["lr"] * group.get("d", 1.0) * warm


def halve_rates(optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    """Half the learning rate from now on, also in what the schedule will set.

    Of an optimizer that finds the rate, this halves the factor: what it has found it would find again.
    """
    schedule.base_lrs = [rate / 2 for rate in schedule.base_lrs]
    for group in optimizer.param_groups:
        group["lr"] /= 2
        group["initial_lr"] /= 2


@contextmanager
def resting_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Schedule-free optimizers learn at one point, and what is learned is another, their average: within, the
    parameters are that. Afterwards they are, to the last bit, what they were. Nothing changes for other optimizers.
    """
    if not hasattr(optimizer, "eval"):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [parameter.detach().clone() for parameter in parameters]
    averaging: Any = optimizer
    averaging.eval()
    try:
        yield
    finally:
        averaging.train()  # works the way back out again, and rounds
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)
