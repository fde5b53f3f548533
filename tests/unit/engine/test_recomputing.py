"""Blocks that are computed again ask no random generator for its state."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils import checkpoint

from lora_train.engine.recomputing import without_random_state


def gradient_of(unet: Any) -> torch.Tensor:
    text = torch.ones(1, 77, unet.config.cross_attention_dim, requires_grad=True)
    unet(torch.ones(1, 4, 16, 16), torch.tensor([500]), text, return_dict=False)[0].square().mean().backward()
    assert text.grad is not None
    return text.grad


def test_no_state_is_kept(load_small: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    unet = load_small().unet
    plain = gradient_of(unet)
    unet.enable_gradient_checkpointing()
    unet.train()
    asked: list[int] = []
    get_rng_state = torch.get_rng_state

    def counted() -> torch.Tensor:
        asked.append(1)
        return get_rng_state()

    monkeypatch.setattr(torch, "get_rng_state", counted)
    torch_own = checkpoint.checkpoint
    counts: list[int] = []
    for context in (nullcontext(), without_random_state()):
        asked.clear()
        with context:
            found = gradient_of(unet)
        counts.append(len(asked))
        assert torch.equal(found, plain)
    assert counts[0] > 0, "else this test could not fail"
    assert counts[1] == 0
    assert checkpoint.checkpoint is torch_own
