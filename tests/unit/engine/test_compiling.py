"""Compiled blocks give the same numbers and gradients, and can be taken back. The compiler's own kernels need a GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_train.core.config import TrainSettings
from lora_train.core.memory import MemoryPlan
from lora_train.engine import compiling
from lora_train.engine.compiling import CompiledBlocks, why_not_compiled
from lora_train.engine.devices import Device
from lora_train.engine.fast_unet import FastUnet
from lora_train.engine.memory import take_plan
from lora_train.engine.recordings import Recordings

BACKEND = "eager"
"""torch.compile without the kernels that it would write."""


def outcome(model: Any, network: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(1, 4, 16, 16, generator=generator)
    text = torch.randn(1, 77, model.unet.config.cross_attention_dim, generator=generator)
    output = model.unet(noisy, torch.tensor([500]), text, return_dict=False)[0]
    weights = [lora.up for target, lora in network.pairs() if target.part == "unet"]
    return output.detach(), [*torch.autograd.grad(output.square().mean(), weights)]


def test_compiled_blocks_do_the_same_and_can_be_taken_back(
    load_small: Callable[[], Any], make_lora: Callable[..., Any]
) -> None:
    model = load_small()
    network = make_lora(model)
    network.requires_grad_(True)
    network.attach()
    before = {name: dict(vars(module)).get("forward") for name, module in model.unet.named_modules()}
    plain, plain_gradients = outcome(model, network)
    blocks = CompiledBlocks(model.unet.mid_block, BACKEND)  # enough: three blocks of both kinds
    blocks.attach()
    compiled, gradients = outcome(model, network)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    torch.testing.assert_close(compiled, plain)
    for one, other in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(one, other)
    blocks.detach()
    assert {name: dict(vars(module)).get("forward") for name, module in model.unet.named_modules()} == before


def test_blocks_stay_compiled_under_another_memory_plan(
    load_small: Callable[[], Any], make_lora: Callable[..., Any]
) -> None:
    model = load_small()
    run: Any = SimpleNamespace(
        settings=TrainSettings(),
        model=model,
        network=make_lora(model),
        fast_unet=FastUnet(model.unet),
        compiled=CompiledBlocks(model.unet, BACKEND),
        recordings=Recordings(),
        groups={},
        texts=SimpleNamespace(let_encoders_rest=lambda: None),
        processes=None,
        device=Device(torch.device("cpu"), "a computer"),
    )
    for part in (run.network, run.fast_unet, run.compiled):
        part.attach()
    blocks = [module for module in model.unet.modules() if type(module).__name__ == "ResnetBlock2D"]
    lean = [block.forward._torchdynamo_orig_callable for block in blocks]
    take_plan(run, MemoryPlan(checkpointing="all"))
    found = [block.forward._torchdynamo_orig_callable for block in blocks]
    assert [one.__qualname__ for one in found] == [one.__qualname__ for one in lean]
    run.compiled.detach()
    assert all("_torchdynamo_orig_callable" not in vars(block.forward) for block in blocks)
    run.fast_unet.detach()
    assert not any("forward" in vars(block) for block in blocks)


@pytest.mark.parametrize(
    ("device", "triton", "reason"),
    [
        ("cpu", True, "Blocks are not compiled: Triton writes no kernels for this device."),
        ("cuda", False, "Blocks are not compiled: Triton is not installed here."),
        ("cuda", True, ""),
    ],
)
def test_why_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch, device: str, triton: bool, reason: str) -> None:
    monkeypatch.setattr(compiling, "find_spec", lambda _: object() if triton else None)
    assert why_not_compiled(Device(torch.device(device), "a computer")) == reason
