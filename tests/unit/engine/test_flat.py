"""Tensors side by side: they stay what they are, and one optimizer call does what hundreds did."""

from __future__ import annotations

import pytest
import torch
from lion_pytorch import Lion as ReferenceLion
from torch import nn

from lora_train.engine.flat import FlatPart, clip, join_optimizer, keeps_every_parameter_apart
from lora_train.engine.lion import Lion
from lora_train.engine.state import flatten_optimizer, restore_optimizer

SHAPES = ((3, 4), (5, 3), (2, 3, 1, 1))


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {f"{number}": nn.Parameter(torch.randn(shape)) for number, shape in enumerate(SHAPES)}


def give_gradients(own: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in own.values():
        gradient = torch.randn(parameter.shape, generator=generator)
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            parameter.grad.copy_(gradient)


def test_numbers_are_kept_and_shared() -> None:
    own, before = parameters(), parameters()
    part = FlatPart(own)
    assert all(torch.equal(own[name], before[name]) for name in own)
    part.weights.data.zero_()
    assert not any(bool(parameter.any()) for parameter in own.values())
    part.gradients.fill_(2)
    assert all(bool((parameter.grad == 2).all()) for parameter in own.values() if parameter.grad is not None)
    part.forget()
    assert not bool(part.gradients.any())


@pytest.mark.parametrize("largest", [0.5, 100.0])
def test_clipping_is_that_of_torch(largest: float) -> None:
    own, apart = parameters(), parameters()
    part = FlatPart(own)
    give_gradients(own, 1)
    give_gradients(apart, 1)
    norm = clip([part], largest)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(apart.values(), largest))
    for name in own:
        torch.testing.assert_close(own[name].grad, apart[name].grad)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, Lion])
def test_one_tensor_learns_what_many_did(kind: type[torch.optim.Optimizer]) -> None:
    own, apart = parameters(), parameters()
    part = FlatPart(own)
    flat, many = kind([part.weights], lr=0.01), kind(apart.values(), lr=0.01)  # type: ignore[call-arg]
    for step in range(5):
        give_gradients(own, step)
        give_gradients(apart, step)
        flat.step()
        many.step()
    for name in own:
        torch.testing.assert_close(own[name], apart[name])


@pytest.mark.parametrize("rate", [0.01, 0.0, "tensor"])
def test_lion_is_that_of_lion_pytorch(rate: float | str) -> None:
    """Over 20 steps bit for bit; lion-pytorch itself refuses a rate of 0, so it is set afterwards."""
    number = 0.01 if rate == "tensor" else float(rate)
    own, reference = parameters(), parameters()
    ours = Lion(own.values(), lr=torch.tensor(number) if rate == "tensor" else number, weight_decay=0.1)
    theirs = ReferenceLion(reference.values(), lr=1.0, weight_decay=0.1)
    theirs.param_groups[0]["lr"] = number
    for step in range(20):
        give_gradients(own, step)
        give_gradients(reference, step)
        ours.step()
        theirs.step()
    for name in own:
        torch.testing.assert_close(own[name], reference[name], rtol=0, atol=1e-7 if rate == "tensor" else 0)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, Lion])
def test_a_state_of_an_earlier_release_goes_on(kind: type[torch.optim.Optimizer]) -> None:
    """Which kept every tensor apart: three steps with it, and three more with one tensor, are six."""
    apart = parameters()
    many = kind(apart.values(), lr=0.01)  # type: ignore[call-arg]
    for step in range(3):
        give_gradients(apart, step)
        many.step()
    kept, scalars = flatten_optimizer(many)
    tensors = {name: tensor.clone() for name, tensor in kept.items()}
    own = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in apart.items()}
    part = FlatPart(own)
    flat = kind([part.weights], lr=0.01)  # type: ignore[call-arg]
    assert keeps_every_parameter_apart(tensors, scalars, flat)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in many.param_groups]
    restore_optimizer(flat, groups, *join_optimizer(tensors, scalars, [part]))
    for step in range(3, 6):
        give_gradients(apart, step)
        give_gradients(own, step)
        many.step()
        flat.step()
    assert not keeps_every_parameter_apart(*flatten_optimizer(flat), flat)
    for name in own:
        torch.testing.assert_close(own[name], apart[name])
