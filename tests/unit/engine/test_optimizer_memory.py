"""What optimizers keep for each trained number, against what is told of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_train.core.config import Optimizer, TrainSettings
from lora_train.core.optimizers import OPTIMIZERS, is_absent
from lora_train.engine.optimizers import make_optimizer

# bitsandbytes has no 8-bit state on a CPU.
TRIED: list[Optimizer] = [name for name in OPTIMIZERS if "8bit" not in name]


@pytest.mark.parametrize("name", TRIED)
def test_an_optimizer_keeps_as_much_as_it_is_told_to(name: Optimizer) -> None:
    if is_absent(name):
        pytest.skip("its package is not installed")
    weights = [nn.Parameter(torch.randn(16, 320)), nn.Parameter(torch.randn(320, 16))]  # of a LoRA of rank 16
    optimizer = make_optimizer(TrainSettings(optimizer=name), {"unet": weights}, fused=False)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    numbers = sum(weight.numel() for weight in weights)
    kept_bytes = sum(tensor.numel() * tensor.element_size() for tensor in kept if tensor.numel() > 1)
    assert kept_bytes / numbers == pytest.approx(OPTIMIZERS[name].state_bytes, abs=0.1)
