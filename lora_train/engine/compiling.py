"""torch.compile for the blocks of a UNet: many small kernels become few, where Triton can write them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from lora_train.engine.devices import Device

_BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
"""diffusers' names of what a UNet is built from: small enough to be compiled in seconds, and alike."""
_LIMITS = ("recompile_limit", "accumulated_recompile_limit", "cache_size_limit", "accumulated_cache_size_limit")
"""Of torch's configuration; the second two are the names before 2.6."""
_MOST_SHAPES = 32


def why_not_compiled(device: Device) -> str:
    """What keeps blocks from being compiled, in a sentence; "" where nothing does."""
    if not device.is_cuda:
        return "Blocks are not compiled: Triton writes no kernels for this device."
    if find_spec("triton") is None:
        return "Blocks are not compiled: Triton is not installed here."
    return ""


class CompiledBlocks:
    """A UNet whose blocks are compiled when they are first used, for every shape anew. LoRAs are attached before.

    `backend` is torch.compile's. As with a LoRA, `forward` is replaced on the instances.
    """

    def __init__(self, unet: nn.Module, backend: str = "inductor") -> None:
        self._blocks = [block for block in unet.modules() if type(block).__name__ in _BLOCKS]
        self._backend = backend
        self._kept: list[Callable[..., Any] | None] = []

    def attach(self) -> None:
        """Let the blocks be compiled. What torch fails to compile runs as it is.

        Blocks of a kind share a `forward`, of which torch compiles eight at most by itself: one for every block and
        shape is wanted.
        """
        torch._dynamo.config.suppress_errors = True
        for name in _LIMITS:
            if hasattr(torch._dynamo.config, name):
                setattr(torch._dynamo.config, name, len(self._blocks) * _MOST_SHAPES)
        for block in self._blocks:
            self._kept.append(vars(block).get("forward"))
            block.forward = torch.compile(block.forward, backend=self._backend, dynamic=False)

    def detach(self) -> None:
        """Give the blocks back as they were."""
        for block, own in zip(self._blocks, self._kept, strict=True):
            del block.forward
            if own is not None:
                block.forward = own
        self._kept = []
