"""The optimizers of other libraries: the same as used by hand, the same as their papers, and what we add to them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, get_args

import pytest
import torch
from torch import nn

from lora_train.core.config import Optimizer, TrainSettings
from lora_train.core.errors import ConfigError
from lora_train.core.optimizers import OPTIMIZERS, is_absent, optimizer_arguments
from lora_train.engine.optimizers import coming_rate, make_optimizer, resting_weights

pytestmark = pytest.mark.compat

RATE = 0.5


def needs(package: str) -> Any:
    return pytest.importorskip(package, reason=f"{package} is not installed")


def parameters(count: int = 1) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(3, 4, generator=generator)) for _ in range(count)]


def gradients(steps: int, seed: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 4, generator=generator) for _ in range(steps)]


def make(*parts: nn.Parameter, **values: Any) -> torch.optim.Optimizer:
    groups = {name: [part] for name, part in zip(("unet", "text_encoder"), parts, strict=False)}
    return make_optimizer(TrainSettings(**{"learning_rate": RATE, **values}), groups, fused=False)


def step(optimizer: Any, own: nn.Parameter, gradient: torch.Tensor) -> None:
    own.grad = gradient.clone()
    optimizer.step()


# --- our table and their signatures ---


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_every_argument_of_the_table_is_one_of_the_class(name: Optimizer) -> None:
    if is_absent(name):
        pytest.skip(f"{name} needs a package that is not installed")
    facts = OPTIMIZERS[name]
    module, _, kind = facts.path.rpartition(".")
    known = inspect.signature(getattr(import_module(module), kind)).parameters
    told = {*facts.arguments, *facts.ours, *facts.fixed, *facts.settings, "lr", "weight_decay"}
    assert told <= set(known)
    assert set(facts.ours) <= set(facts.arguments)
    for argument, value in facts.ours.items():
        assert known[argument].default != value, "what is the library's own default need not be told"


@pytest.mark.parametrize("name", get_args(Optimizer))
def test_what_a_person_tells_reaches_the_optimizer(name: Optimizer) -> None:
    if is_absent(name):
        pytest.skip(f"{name} needs a package that is not installed")
    (own,) = parameters()
    (argument, wanted), text = {
        "AdaFactor": (("decay_rate", -0.7), "-0.7"),
        "SGDNesterov": (("momentum", 0.8), "0.8"),
        "SGDNesterov8bit": (("momentum", 0.8), "0.8"),
    }.get(name, (("betas", (0.8, 0.95)), "0.8, 0.95"))
    optimizer = make(own, optimizer=name, optimizer_args=(f"{argument} = {text}",))
    told = "betas" if name == "SGDNesterov8bit" else argument  # where bitsandbytes keeps a momentum
    found = optimizer.param_groups[0][told]
    assert found == wanted if told == argument else found[0] == wanted


def test_wrong_arguments_make_no_optimizer() -> None:
    (own,) = parameters()
    with pytest.raises(ConfigError, match="did you mean betas"):
        make(own, optimizer_args=("beta=0.9,0.99",))


# --- as used by hand ---


def their_adafactor(own: nn.Parameter) -> Any:
    from transformers.optimization import Adafactor

    return Adafactor([own], lr=RATE, scale_parameter=False, relative_step=False, warmup_init=False, weight_decay=0.2)


def their_dadaptation(own: nn.Parameter) -> Any:
    return needs("dadaptation").DAdaptAdam([own], lr=RATE, decouple=True, weight_decay=0.2)


def their_prodigy(own: nn.Parameter) -> Any:
    return needs("prodigyopt").Prodigy(
        [own], lr=RATE, use_bias_correction=True, safeguard_warmup=True, weight_decay=0.2
    )


def their_schedule_free(own: nn.Parameter) -> Any:
    optimizer = needs("schedulefree").AdamWScheduleFree([own], lr=RATE, warmup_steps=3, weight_decay=0.2)
    optimizer.train()
    return optimizer


def their_8bit_adamw(own: nn.Parameter) -> Any:
    return needs("bitsandbytes").optim.AdamW8bit([own], lr=RATE, weight_decay=0.2, min_8bit_size=1)


def their_8bit_sgd(own: nn.Parameter) -> Any:
    """Told `nesterov=True`, it does the same."""
    return needs("bitsandbytes").optim.SGD8bit(
        [own], lr=RATE, nesterov=True, momentum=0.9, weight_decay=0.2, min_8bit_size=1
    )


@pytest.mark.parametrize(
    ("name", "theirs", "values"),
    [
        ("AdaFactor", their_adafactor, {}),
        ("DAdaptation", their_dadaptation, {}),
        ("Prodigy", their_prodigy, {}),
        ("AdamWScheduleFree", their_schedule_free, {"lr_warmup_steps": 3}),
        ("AdamW8bit", their_8bit_adamw, {"optimizer_args": ("min_8bit_size=1",)}),
        ("SGDNesterov8bit", their_8bit_sgd, {"optimizer_args": ("min_8bit_size=1",)}),
    ],
)
def test_equals_the_library(name: Optimizer, theirs: Callable[[nn.Parameter], Any], values: dict[str, Any]) -> None:
    (own,), (their,) = parameters(), parameters()
    their_optimizer = theirs(their)
    our_optimizer = make(own, optimizer=name, weight_decay=0.2, **values)
    for gradient in gradients(8):
        step(our_optimizer, own, gradient)
        step(their_optimizer, their, gradient)
        assert torch.equal(own, their)


# --- by hand ---


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        # The first estimate d is 1e-6, and with bias correction a first step of Adam is the rate itself.
        ("Prodigy", 1e-6),
        # Without bias correction: (1 - 0.9) / sqrt(1 - 0.999) of it.
        ("DAdaptation", 1e-6 * 0.1 / math.sqrt(0.001)),
        # Shazeer & Stern 2018: decay 1 - 1**-0.8 = 0 makes the second moment the gradient's square itself.
        ("AdaFactor", 1.0),
    ],
)
def test_first_step_by_hand(name: Optimizer, moves: float) -> None:
    if is_absent(name):
        pytest.skip(f"{name} needs a package that is not installed")
    own = nn.Parameter(torch.zeros(3))
    step(make(own, optimizer=name, learning_rate=1.0), own, torch.tensor([2.0, -3.0, 0.5]))
    torch.testing.assert_close(own.detach(), moves * torch.tensor([-1.0, 1.0, -1.0]), rtol=1e-4, atol=0)


def test_schedule_free_is_that_of_the_paper() -> None:
    """Defazio et al. 2024, algorithm 1, with all three sequences kept: z the steps, x their average, y between."""
    needs("schedulefree")
    (own,) = parameters()
    optimizer = make(own, optimizer="AdamWScheduleFree", learning_rate=0.1, weight_decay=0.0)
    x = z = own.detach().clone()
    moment = torch.zeros(3, 4)
    for number, gradient in enumerate(gradients(6), start=1):
        step(optimizer, own, gradient)
        moment = 0.999 * moment + 0.001 * gradient**2
        z = z - 0.1 * gradient / ((moment / (1 - 0.999**number)).sqrt() + 1e-8)
        x = x + (z - x) / number
        torch.testing.assert_close(own.detach(), 0.1 * z + 0.9 * x, rtol=1e-5, atol=1e-6)
        with resting_weights(optimizer):
            torch.testing.assert_close(own.detach(), x, rtol=1e-5, atol=1e-5)


# --- what we add ---


@pytest.mark.parametrize(("name", "arguments"), [("DAdaptation", ()), ("Prodigy", ("safeguard_warmup=false",))])
def test_each_part_finds_its_own_rate(name: Optimizer, arguments: tuple[str, ...]) -> None:
    """UNet and text encoder together are what each would be alone, with rates of their own."""
    if is_absent(name):
        pytest.skip(f"{name} needs a package that is not installed")
    unet, text = parameters(2)
    unet_alone, text_alone = parameters(2)
    told: dict[str, Any] = {"optimizer": name, "optimizer_args": arguments}
    together = make(unet, text, learning_rate=1.0, text_encoder_lr=0.9, **told)
    first = make(unet_alone, learning_rate=1.0, **told)
    second = make(text_alone, learning_rate=0.9, **told)
    for _ in range(60):  # the gradients of squared distances to 3 and to 20: further away is a larger rate
        text.grad = text.detach() - 20
        step(together, unet, unet.detach() - 3)
        step(first, unet_alone, unet_alone.detach() - 3)
        step(second, text_alone, text_alone.detach() - 20)
    assert torch.equal(unet, unet_alone)
    assert torch.equal(text, text_alone)
    found = [group["d"] for group in together.param_groups]
    assert found == [first.param_groups[0]["d"], second.param_groups[0]["d"]]
    assert found[0] > 1e-6
    assert found[1] > found[0]
    assert coming_rate(together) == found[0]


def test_resting_weights_come_back_to_the_last_bit() -> None:
    needs("schedulefree")
    own, other = parameters(2)
    optimizer = make(own, other, optimizer="AdamWScheduleFree", text_encoder_lr=0.3)
    for gradient in gradients(5):
        other.grad = gradient.clone()
        step(optimizer, own, gradient)
    before = [own.detach().clone(), other.detach().clone()]
    with resting_weights(optimizer):
        assert not torch.equal(own, before[0])
        assert not torch.equal(other, before[1])
    assert torch.equal(own, before[0])
    assert torch.equal(other, before[1])
    step(optimizer, own, gradients(1)[0])  # refused by the library where it is not in training


def test_resting_weights_of_others_are_those_they_have() -> None:
    (own,) = parameters()
    optimizer = make(own)
    before = own.detach().clone()
    with resting_weights(optimizer):
        assert torch.equal(own, before)


def test_the_coming_rate_of_a_warm_up() -> None:
    """Schedule-free AdamW warms up by itself: a quarter, a half, three quarters, all."""
    needs("schedulefree")
    (own,) = parameters()
    optimizer = make(own, optimizer="AdamWScheduleFree", lr_warmup_steps=4)
    found: list[float] = []
    for gradient in gradients(5):
        found.append(coming_rate(optimizer))
        step(optimizer, own, gradient)
        assert optimizer.param_groups[0]["scheduled_lr"] == found[-1]
    assert found == [RATE / 4, RATE / 2, RATE * 3 / 4, RATE, RATE]


def test_weight_decay_is_told_to_every_class() -> None:
    assert all(optimizer_arguments(TrainSettings(optimizer=name))["weight_decay"] == 0.01 for name in OPTIMIZERS)
