"""Gradient checkpointing of some or all blocks of a UNet, with diffusers from 0.31 on."""

from __future__ import annotations

from typing import Any

import torch

from lora_train.core.memory import Checkpointing


def checkpoint_blocks(unet: Any, which: Checkpointing) -> None:
    """Let the chosen blocks (see `core.memory.MemoryPlan`) compute their activations again in the backward pass; "none"
    undoes it. The blocks' own switches are set, one by one: diffusers has one for all only.
    """
    unet.enable_gradient_checkpointing()  # newer releases give the blocks what they checkpoint with
    some = {module for block in unet.up_blocks for module in block.modules()}  # most activations for their time
    for module in unet.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = which == "all" or (which == "some" and module in some)
    unet.train(which != "none")  # older ones checkpoint in training mode only; there is no dropout in a UNet


def checkpointed(unet: Any) -> list[torch.nn.Module]:
    """The modules that are checkpointed now."""
    return [module for module in unet.modules() if getattr(module, "gradient_checkpointing", False)]
