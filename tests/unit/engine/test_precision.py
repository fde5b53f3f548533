"""The number format that a device computes in."""

from __future__ import annotations

import pytest
import torch

from lora_train.core.config import Precision
from lora_train.core.errors import ConfigError
from lora_train.engine.devices import Device, choose_precision

CARD = Device(torch.device("cuda", 0), "NVIDIA GeForce RTX 2070")
CPU = Device(torch.device("cpu"), "CPU, 2 threads")


@pytest.mark.parametrize(
    ("capability", "wanted", "dtype"),
    [
        ((7, 5), "auto", torch.float16),
        ((7, 5), "fp32", torch.float32),
        ((8, 0), "auto", torch.bfloat16),
        ((8, 6), "bf16", torch.bfloat16),
        ((12, 0), "fp16", torch.float16),
    ],
)
def test_cards(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], wanted: Precision, dtype: torch.dtype
) -> None:
    """bf16 came with compute capability 8.0 (Ampere), says NVIDIA's table of arithmetic by capability."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision(wanted, CARD)[0] == dtype


def test_a_card_without_bf16_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(ConfigError, match="RTX 2070 has no bf16; choose fp16"):
        choose_precision("bf16", CARD)


def test_a_cpu_computes_in_what_is_asked_for() -> None:
    assert choose_precision("auto", CPU)[0] == torch.float32
    assert choose_precision("bf16", CPU)[0] == torch.bfloat16
