"""Flat parts: tensors that stay where they are, sums that are torch's own, and what older states held."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

from lora_train.core.config import Optimizer, TrainSettings
from lora_train.core.optimizers import is_absent, sees_shapes
from lora_train.engine.flat import FlatPart, clip, gradients, join_optimizer
from lora_train.engine.optimizers import make_optimizer, optimizer_parameters
from lora_train.engine.state import flatten_optimizer, group_values, restore_optimizer

pytestmark = pytest.mark.compat

SHAPES = ((3, 4), (5, 3), (2, 4, 3, 3), (6, 2, 1, 1))


def parameters(seed: int = 1) -> dict[str, nn.Parameter]:
    """As of two layers; the `up` of one is at zero still, as in the beginning."""
    generator = torch.Generator().manual_seed(seed)
    found = {str(index): nn.Parameter(torch.randn(shape, generator=generator)) for index, shape in enumerate(SHAPES)}
    found["1"].data.zero_()
    return found


def draw(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_parameters_are_views_with_the_numbers_they_had() -> None:
    own, before = parameters(), parameters()
    part = FlatPart(own)
    for name, parameter in own.items():
        assert torch.equal(parameter, before[name])
        assert parameter.shape == before[name].shape
        assert parameter.grad is not None
    with torch.no_grad():
        part.weights.mul_(2)
        own["3"].add_(1)
    gradients([part])[0].fill_(7)
    assert torch.equal(own["0"], 2 * before["0"])
    assert torch.equal(part.split(part.weights.detach())["3"], 2 * before["3"] + 1)
    assert all(parameter.grad is not None and bool((parameter.grad == 7).all()) for parameter in own.values())
    assert part.weights.grad is part.gradients
    part.forget()
    assert not any(parameter.grad.any() for parameter in own.values() if parameter.grad is not None)


def test_autograd_adds_to_the_views() -> None:
    """Of a network that knows nothing of flat parts."""
    own = parameters()
    part = FlatPart(own)
    for _ in range(2):
        sum(parameter.sum() for parameter in own.values()).backward()  # type: ignore[union-attr]
        part.collect()
    assert gradients([part])[0].tolist() == [2.0] * part.weights.numel()


def test_sums_for_which_there_is_no_memory_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    part = FlatPart(parameters(), torch.bfloat16)

    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros_like", full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            part.keep_sums()
    assert part.gradients is None
    part.keep_sums()
    assert part.gradients is not None


def test_the_copy_is_another_format_and_sums_are_float32() -> None:
    part = FlatPart(parameters(), torch.bfloat16)
    assert (part.copy.dtype, part.copy_gradients.dtype) == (torch.bfloat16, torch.bfloat16)
    part.keep_sums()
    part.copy_gradients.fill_(1.0)
    part.collect()
    part.copy_gradients.fill_(2.0**-10)  # below the 8 bits of 1 in bfloat16
    part.collect()
    part.gather()
    assert part.weights.grad is part.gradients
    assert gradients([part])[0].unique().tolist() == [1 + 2.0**-10]
    assert all(parameter.grad is not None and bool(parameter.grad.all()) for parameter in part.parameters.values())
    assert not part.copy_gradients.any()
    part.forget()
    assert not gradients([part])[0].any()
    with torch.no_grad():
        part.weights.fill_(3.0)
    assert not torch.equal(part.copy, part.weights.bfloat16())
    part.refresh()
    assert torch.equal(part.copy, part.weights.bfloat16())
    same = FlatPart(parameters())
    assert same.copy.data_ptr() == same.weights.data_ptr()
    assert same.copy_gradients is same.gradients


def test_gradients_of_a_single_pass_are_there_for_the_update_alone() -> None:
    part = FlatPart(parameters(), torch.bfloat16)
    part.copy_gradients.fill_(0.5)
    part.collect()
    assert gradients([part]) == []
    part.gather()
    (found,) = gradients([part])
    assert (found.dtype, found.unique().tolist()) == (torch.float32, [0.5])
    assert part.weights.grad is found
    found.fill_(777.0)  # of an update that broke off
    part.gather()
    assert gradients([part])[0].unique().tolist() == [0.5]
    part.forget()
    assert part.weights.grad is None
    assert gradients([part]) == []
    assert not part.copy_gradients.any()


@pytest.mark.parametrize("largest", [0.5, 1e3])
def test_clip_is_that_of_torch(largest: float) -> None:
    parts = [FlatPart(parameters(1)), FlatPart(parameters(2))]
    for seed, part in enumerate(parts):
        gradients([part])[0].copy_(draw((part.weights.numel(),), seed))
    theirs = [nn.Parameter(tensor.detach().clone()) for part in parts for tensor in part.parameters.values()]
    ours = [tensor for part in parts for tensor in part.parameters.values()]
    for their, own in zip(theirs, ours, strict=True):
        assert own.grad is not None
        their.grad = own.grad.clone()
    norm = clip(parts, largest)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, largest))
    for their, own in zip(theirs, ours, strict=True):
        torch.testing.assert_close(own.grad, their.grad, rtol=1e-6, atol=0)
    flat_norm = torch.cat(gradients(parts)).norm().item()
    assert flat_norm == pytest.approx(min(largest, norm.item()), rel=1e-5)


# --- optimizers ---


def settings(name: Optimizer, **values: Any) -> TrainSettings:
    arguments = ("min_8bit_size=1",) if name.endswith("8bit") else ()
    return TrainSettings(**{"optimizer": name, "learning_rate": 0.01, "optimizer_args": arguments, **values})


def steps(optimizer: torch.optim.Optimizer, tensors: list[nn.Parameter], seeds: range) -> None:
    for seed in seeds:
        for index, tensor in enumerate(tensors):
            gradient = draw(tuple(tensor.shape), 100 * seed + index)
            tensor.grad = gradient if tensor.grad is None else tensor.grad.copy_(gradient)
        optimizer.step()


NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(is_absent(name), reason=f"{name} needs a package that is not there"))
    for name in get_args(Optimizer)
]


@pytest.mark.parametrize("name", NAMES)
def test_one_row_is_trained_as_its_tensors_are(name: Optimizer) -> None:
    """Element by element; the sums of Prodigy and DAdaptation over all weights are rounded otherwise."""
    own, theirs = parameters(), parameters()
    part = FlatPart(own)
    ours = make_optimizer(settings(name), optimizer_parameters(settings(name), {"unet": part}), fused=False)
    their = make_optimizer(settings(name), {"unet": [*theirs.values()]}, fused=False)
    assert len(ours.param_groups[0]["params"]) == (4 if sees_shapes(settings(name)) else 1)
    steps(ours, [*own.values()], range(5))
    steps(their, [*theirs.values()], range(5))
    for one, two in zip(own.values(), theirs.values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_states_of_before_go_on(name: Optimizer, skips: bool) -> None:
    """Three steps tensor by tensor, saved as every release before saved it, and three more as flat parts.

    skips: one tensor never had a gradient, as those behind a clip skip: nothing was kept for it.
    """
    own = settings(name, text_encoder_lr=0.01)
    before = {"unet": parameters(1), "text_encoder": parameters(2)}
    straight = {"unet": parameters(1), "text_encoder": parameters(2)}
    old = make_optimizer(own, {part: [*tensors.values()] for part, tensors in before.items()}, fused=False)
    parts = {name: FlatPart(tensors) for name, tensors in straight.items()}
    flat = make_optimizer(own, optimizer_parameters(own, parts), fused=False)
    trained = [[tensor for part in group.values() for tensor in part.values()] for group in (before, straight)]
    if skips:
        trained = [tensors[:-1] for tensors in trained]
    steps(old, trained[0], range(3))
    steps(flat, trained[1], range(3))

    resumed = {
        part: {name: nn.Parameter(tensor.detach().clone()) for name, tensor in tensors.items()}
        for part, tensors in before.items()
    }
    new_parts = {name: FlatPart(tensors) for name, tensors in resumed.items()}
    new = make_optimizer(own, optimizer_parameters(own, new_parts), fused=False)
    tensors, scalars = flatten_optimizer(old)
    if not sees_shapes(own):
        tensors, scalars = join_optimizer(tensors, scalars, [*new_parts.values()])
        assert {key.partition(".")[0] for key in (*tensors, *scalars)} == {"0", "1"}
        assert {key: tensor.shape for key, tensor in tensors.items()} == {
            key: tensor.shape for key, tensor in flatten_optimizer(flat)[0].items()
        }
    restore_optimizer(new, group_values(old), tensors, scalars)
    going_on = [tensor for part in resumed.values() for tensor in part.values()]
    steps(flat, trained[1], range(3, 6))
    steps(new, going_on[: len(trained[1])], range(3, 6))
    for one, two in zip(trained[1], going_on, strict=False):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_prodigy_that_skips_numbers_is_given_tensors() -> None:
    assert not sees_shapes(settings("Prodigy"))
    assert sees_shapes(settings("Prodigy", optimizer_args=("slice_p=11",)))
