"""Loss scaling against torch's GradScaler, step by step, with overflows in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lora_train.engine.scaling import LossScaler

CPU = torch.device("cpu")
OVERFLOWS = {0: "inf", 4: "nan", 5: "-inf", 9: "inf"}
"""Before the optimizer has a state, and after; also twice in a row."""


def gradient(step: int, scale: float) -> torch.Tensor:
    found = torch.randn(5, generator=torch.Generator().manual_seed(step)) * scale
    if step in OVERFLOWS:
        found[step % 5] = float(OVERFLOWS[step])
    return found


def weights() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, 5))


def optimizer_of(kind: str, weight: nn.Parameter) -> torch.optim.Optimizer:
    if kind == "SGD":
        return torch.optim.SGD([weight], lr=0.1, momentum=0.9, nesterov=True)
    return torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1, fused=True)


@pytest.mark.parametrize(("kind", "masks"), [("AdamW", True), ("AdamW", False), ("SGD", True), ("SGD", False)])
def test_as_torch_does_it(kind: str, masks: bool) -> None:
    wanted, found = weights(), weights()
    theirs, ours = optimizer_of(kind, wanted), optimizer_of(kind, found)
    their_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaler = LossScaler(CPU, enabled=True)
    for step in range(12):
        scale = their_scaler.scale(torch.ones(())).item()
        assert scaler.scale(torch.ones(())).item() == scaler.get_scale() == scale
        wanted.grad, found.grad = gradient(step, scale), gradient(step, scale)
        before = found.detach().clone()
        their_scaler.unscale_(theirs)
        their_scaler.step(theirs)
        their_scaler.update()
        scaler.unscale([found.grad])
        scaler.step(ours, masks=masks)
        assert torch.equal(found, before) == (step in OVERFLOWS)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        for what, one in ours.state[found].items():  # theirs makes the state also where it then does nothing
            other = theirs.state[wanted][what]
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert scaler.state_dict() == their_scaler.state_dict()


def test_the_scale_grows_again_and_comes_back_with_the_state() -> None:
    scaler = LossScaler(CPU, enabled=True)
    weight = weights()
    optimizer = optimizer_of("SGD", weight)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 8.0, "_growth_tracker": 1998})
    scales: list[float] = []
    for step in (1, 2, 3):
        weight.grad = gradient(step, 8.0)
        scaler.unscale([weight.grad])
        scaler.step(optimizer, masks=True)
        scales.append(scaler.get_scale())
    assert scales == [8, 16, 16], "after 2000 good steps"


def test_a_masked_step_can_be_recorded(tapes: Any) -> None:
    """The host asks for nothing: the same recording takes good steps and leaves out others."""
    weight = weights()
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    scaler = LossScaler(CPU, enabled=True)
    weight.grad = gradient(1, 4096.0)
    scaler.unscale([weight.grad])
    assert not scaler.asks_nothing(optimizer), "a first step that overflows must make no state"
    scaler.step(optimizer, masks=True)
    assert scaler.asks_nothing(optimizer)
    own = weight.grad

    def work() -> None:
        scaler.unscale([own])
        scaler.step(optimizer, masks=True)

    replay = tapes.TapeRecorder().record(work)
    for step in (2, 4, 5, 6):
        before = weight.detach().clone()
        own.copy_(gradient(step, scaler.get_scale()))
        replay()
        assert torch.equal(weight, before) == (step in OVERFLOWS)
    assert bool(weight.isfinite().all())
    assert scaler.get_scale() == 2.0**10


def test_it_does_nothing_where_it_is_not_enabled() -> None:
    weight = weights()
    optimizer = optimizer_of("SGD", weight)
    scaler = LossScaler(CPU, enabled=False)
    loss = torch.ones(())
    assert scaler.scale(loss) is loss
    weight.grad = torch.ones(5)
    scaler.unscale([weight.grad])
    scaler.step(optimizer, masks=True)
    assert bool((weight.grad == 1).all())
    assert bool((weight < weights()).all())
    assert scaler.state_dict() == {}
