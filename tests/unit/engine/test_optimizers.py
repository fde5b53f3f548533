"""Optimizers against their papers and against steps worked out by hand; schedules; who gets which setting."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

from lora_train.core.config import Optimizer, Scheduler, TrainSettings
from lora_train.core.optimizers import OPTIMIZERS, is_absent
from lora_train.engine.flat import FlatPart
from lora_train.engine.optimizers import (
    coming_rate,
    halve_rates,
    is_capturable,
    make_optimizer,
    make_schedule,
    rates_as,
)

pytestmark = pytest.mark.compat

NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(is_absent(name), reason=f"{name} needs a package that is not there"))
    for name in get_args(Optimizer)
]
SCHEDULES: tuple[Scheduler, ...] = get_args(Scheduler)


def parameters(count: int = 1) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(3, 4, generator=generator)) for _ in range(count)]


def gradients(steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(3, 4, generator=generator) for _ in range(steps)]


def settings(**values: Any) -> TrainSettings:
    return TrainSettings(**values)


def make(groups: dict[str, list[nn.Parameter]], **values: Any) -> torch.optim.Optimizer:
    return make_optimizer(settings(**values), groups, fused=False)


def step(optimizer: torch.optim.Optimizer, own: nn.Parameter, gradient: torch.Tensor) -> None:
    own.grad = gradient.clone()
    optimizer.step()


# --- a rate of 0 ---


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
def test_rate_of_0_is_legal_and_changes_nothing(name: Optimizer, schedule: Scheduler) -> None:
    """Weight decay too is multiplied by the rate, or, for Adam and SGD, added to a gradient that is."""
    (own,) = parameters()
    before = own.detach().clone()
    values: dict[str, Any] = {
        "optimizer": name,
        "learning_rate": 0.0,
        "weight_decay": 0.5,
        "lr_scheduler": schedule,
        "lr_warmup_steps": 2,
    }
    optimizer = make({"unet": [own]}, **values)
    rates = make_schedule(settings(**values), optimizer, 6)
    for gradient in gradients(6):
        step(optimizer, own, gradient)
        rates.step()
    assert torch.equal(own, before)
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_rates_that_are_not_0_change_something(name: Optimizer) -> None:
    (own,) = parameters()
    before = own.detach().clone()
    rate = OPTIMIZERS[name].usual_rate
    step(make({"unet": [own]}, optimizer=name, learning_rate=rate), own, gradients(1)[0])
    assert not torch.equal(own, before)


# --- who gets what ---


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_reaches_its_group(name: Optimizer) -> None:
    unet, text = parameters(2)
    optimizer = make(
        {"unet": [unet], "text_encoder": [text]},
        optimizer=name,
        learning_rate=0.03,
        text_encoder_lr=0.002,
        weight_decay=0.25,
    )
    first, second = optimizer.param_groups
    assert first["params"][0] is unet
    assert second["params"][0] is text
    assert (first["lr"], second["lr"]) == (0.03, 0.002)
    assert (first["weight_decay"], second["weight_decay"]) == (0.25, 0.25)


@pytest.mark.parametrize("name", NAMES)
def test_text_encoder_alone_at_rate_0(name: Optimizer) -> None:
    unet, text = parameters(2)
    before = text.detach().clone()
    rate = OPTIMIZERS[name].usual_rate
    optimizer = make(
        {"unet": [unet], "text_encoder": [text]},
        optimizer=name,
        learning_rate=rate,
        text_encoder_lr=0.0,
        weight_decay=9.0,
    )
    for gradient in gradients(3):
        text.grad = torch.ones_like(text)
        step(optimizer, unet, gradient)
    assert torch.equal(text, before)


# --- the updates ---


def test_lion_is_that_of_the_paper() -> None:
    """Chen et al. 2023, program 1, with betas 0.9 and 0.99."""
    (own,) = parameters()
    weights, momentum = own.detach().clone(), torch.zeros(3, 4)
    optimizer = make({"unet": [own]}, optimizer="Lion", learning_rate=0.01, weight_decay=0.2)
    for gradient in gradients(5):
        step(optimizer, own, gradient)
        update = (0.9 * momentum + 0.1 * gradient).sign()
        weights = weights - 0.01 * (update + 0.2 * weights)
        momentum = 0.99 * momentum + 0.01 * gradient
        torch.testing.assert_close(own.detach(), weights, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rate", [0.01, 1 / 3])
def test_lion_equals_lion_pytorch(rate: float) -> None:
    """Bit for bit, though the weight of theirs is one matrix and that of ours a view of a row."""
    theirs_is_there = pytest.importorskip("lion_pytorch", reason="lion-pytorch is not installed")
    (own,), (their,) = parameters(), parameters()
    part = FlatPart({"a": own})
    ours = make({"unet": [part.weights]}, optimizer="Lion", learning_rate=rate, weight_decay=0.2)
    theirs = theirs_is_there.Lion([their], lr=rate, betas=(0.9, 0.99), weight_decay=0.2)
    for gradient in gradients(50):
        part.copy_gradients.copy_(gradient.flatten())
        ours.step()
        step(theirs, their, gradient)
        assert torch.equal(own, their)


@pytest.mark.parametrize("name", ["Lion", "AdamW", "Adam"])
def test_rates_on_the_device_follow_the_schedule(name: Optimizer) -> None:
    """A step that reads tensors is the same but for their number format, and the groups keep their numbers."""
    (own,), (their,) = parameters(), parameters()
    values: dict[str, Any] = {"optimizer": name, "learning_rate": 0.01, "lr_scheduler": "cosine"}
    assert is_capturable(settings(**values))
    ours, theirs = make({"unet": [own]}, **values), make({"unet": [their]}, **values)
    schedules = [make_schedule(settings(**values), optimizer, 6) for optimizer in (ours, theirs)]
    seen: list[float] = []
    for gradient in gradients(6):
        with rates_as(ours, [torch.tensor(group["lr"]) for group in ours.param_groups]):
            step(ours, own, gradient)
        step(theirs, their, gradient)
        for schedule in schedules:
            schedule.step()
        seen.append(ours.param_groups[0]["lr"])
        torch.testing.assert_close(own, their, rtol=1e-5, atol=1e-7)
    assert all(isinstance(rate, float) for rate in seen)
    assert seen[-1] < seen[0]
    assert not is_capturable(settings(optimizer="Prodigy"))


def test_sgd_with_nesterov_by_hand() -> None:
    """rate 0.1, momentum 0.9. Step 1: m = 2, w = 1 - 0.1 (2 + 0.9 x 2). Step 2: m = 0.9 x 2 - 1 = 0.8."""
    own = nn.Parameter(torch.tensor([1.0]))
    optimizer = make({"unet": [own]}, optimizer="SGDNesterov", learning_rate=0.1, weight_decay=0.0)
    step(optimizer, own, torch.tensor([2.0]))
    assert own.item() == pytest.approx(0.62)
    step(optimizer, own, torch.tensor([-1.0]))
    assert own.item() == pytest.approx(0.62 - 0.1 * (-1 + 0.9 * 0.8))


def test_adamw_decays_weights_apart_from_the_gradient() -> None:
    """First step: w (1 - rate x decay) - rate x sign(g); Adam puts the decay into the gradient instead."""
    adamw, adam = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([2.0]))
    for own, name in ((adamw, "AdamW"), (adam, "Adam")):
        optimizer = make({"unet": [own]}, optimizer=name, learning_rate=0.1, weight_decay=0.5)
        step(optimizer, own, torch.tensor([3.0]))
    assert adamw.item() == pytest.approx(2 * (1 - 0.05) - 0.1)
    assert adam.item() == pytest.approx(2 - 0.1)


# --- schedules ---


def factors(schedule: Scheduler, steps: int, **values: Any) -> list[float]:
    """What the rate is multiplied with at each step and after the last, the same for both groups."""
    unet, text = parameters(2)
    own = settings(lr_scheduler=schedule, learning_rate=0.02, text_encoder_lr=0.001, **values)
    optimizer = make_optimizer(own, {"unet": [unet], "text_encoder": [text]}, fused=False)
    rates = make_schedule(own, optimizer, steps)
    found: list[float] = []
    for _ in range(steps + 1):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(first / 20, rel=1e-6)
        found.append(first / 0.02)
        optimizer.step()
        rates.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "values", "expected"),
    [
        ("constant", {}, [1, 1, 1, 1, 1]),
        ("constant_with_warmup", {"lr_warmup_steps": 2}, [0, 0.5, 1, 1, 1]),
        ("linear", {}, [1, 0.75, 0.5, 0.25, 0]),
        ("linear", {"lr_warmup_steps": 2}, [0, 0.5, 1, 0.5, 0]),
        # (1 + cos(pi x)) / 2 at quarters
        ("cosine", {}, [1, 0.853553, 0.5, 0.146447, 0]),
        ("cosine_with_restarts", {"lr_cycles": 2}, [1, 0.5, 1, 0.5, 0]),
        ("polynomial", {}, [1, 0.75, 0.5, 0.25, 0]),
    ],
)
@pytest.mark.parametrize("optimizer", NAMES)
def test_schedules_by_hand(
    schedule: Scheduler, values: dict[str, Any], expected: list[float], optimizer: Optimizer
) -> None:
    if OPTIMIZERS[optimizer].has_own_schedule:
        expected = [1, 1, 1, 1, 1]
    found = factors(schedule, 4, optimizer=optimizer, **values)
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_halved_rates_stay_halved(name: Optimizer) -> None:
    """After a quarter of the run, three quarters of the rate are left, and at its half a half."""
    (own,) = parameters()
    values = settings(optimizer=name, lr_scheduler="linear", learning_rate=0.8)
    left = (1, 1) if OPTIMIZERS[name].has_own_schedule else (0.75, 0.5)
    optimizer = make_optimizer(values, {"unet": [own]}, fused=False)
    rates = make_schedule(values, optimizer, 4)
    optimizer.step()
    rates.step()
    halve_rates(optimizer, rates)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.8 * left[0] / 2)
    assert coming_rate(optimizer) == pytest.approx(0.8 * left[0] / 2 * optimizer.param_groups[0].get("d", 1))
    optimizer.step()
    rates.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.8 * left[1] / 2)
