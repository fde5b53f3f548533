"""What a run is expected to take, as the worker tells it from what it has loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from lora_train.core.config import TrainSettings
from lora_train.core.memory import MemoryPlan
from lora_train.engine.memory import need_of

pytestmark = pytest.mark.compat


def weights_bytes(stored_in: torch.dtype, computes_in: torch.dtype) -> int:
    """Of a UNet of SD 1.5's width; its layers are not looked at."""
    unet: Any = nn.Linear(2, 2).to(computes_in)
    unet.weight.data = unet.weight.to(stored_in)
    unet.config = SimpleNamespace(block_out_channels=(320, 640, 1280, 1280))
    run: Any = SimpleNamespace(
        model=SimpleNamespace(family="sd1", unet=unet),
        planner=SimpleNamespace(sources=[SimpleNamespace(bucket=(256, 256))]),
        texts=None,
        dtype=computes_in,
        device=SimpleNamespace(is_cpu=True),
        settings=TrainSettings(train_text_encoder=False),
    )
    return need_of(run, MemoryPlan()).weights_bytes


def test_convolutions_that_stayed_in_16_bits_take_less() -> None:
    full, half = weights_bytes(torch.float32, torch.float32), weights_bytes(torch.float16, torch.float32)
    assert full - half == 2 * 464_486_400 - 4 * 2560 * 1280 * 9  # less room for the widest of them in float32
    assert weights_bytes(torch.bfloat16, torch.bfloat16) == full / 2
