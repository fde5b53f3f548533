"""How a training is laid out in memory. What changes it never changes what is learned, but for rounding."""

from __future__ import annotations

from typing import Literal

import msgspec

from lora_train.core.memory_settings import BaseWeights

Checkpointing = Literal["none", "some", "all"]


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One rung of the ladder.

    views_at_once   a batch goes through the model in parts of at most so many views; 0: whole
    checkpointing   of which blocks the activations are computed again in the backward pass
    base_weights    how the frozen base model is stored
    offload_share   share of the UNet's blocks that wait in main memory
    """

    views_at_once: int = 0
    checkpointing: Checkpointing = "none"
    base_weights: BaseWeights = "full"
    offload_share: float = 0.0
