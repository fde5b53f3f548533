"""Compiled blocks give the same numbers and gradients, and can be taken back. The compiler's own kernels need a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lora_train.engine import compiling
from lora_train.engine.compiling import CompiledBlocks, why_not_compiled
from lora_train.engine.devices import Device

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


@pytest.mark.parametrize(
    ("device", "triton", "reason"),
    [
        ("cpu", True, "Triton writes no kernels for a computer"),
        ("cuda", False, "Triton is not installed here"),
        ("cuda", True, ""),
    ],
)
def test_why_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch, device: str, triton: bool, reason: str) -> None:
    monkeypatch.setattr(compiling, "find_spec", lambda _: object() if triton else None)
    assert why_not_compiled(Device(torch.device(device), "a computer")) == reason
