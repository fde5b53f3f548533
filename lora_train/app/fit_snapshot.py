"""What the page and the API are told of a training's memory before it begins."""

from __future__ import annotations

import msgspec

from lora_train.core.memory import MemoryNeed, MemoryPlan


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What a training is expected to take of its device's memory, and what is expected to make it fit."""

    device: str
    """The card's name, or "CPU": then it is the main memory."""
    on_cpu: bool
    device_bytes: int
    budget_bytes: int
    """What it may take."""
    others_bytes: int = 0
    """What other programs hold; 0 where that is little."""
    is_tried: bool = True
    """Whether the training will try what saves memory: not on a CPU, nor where *Fit to my GPU* is off."""
    fits: bool
    """With `plan`. An estimate: the worker tries it, and what it finds counts."""
    asked: MemoryPlan
    plan: MemoryPlan
    """The first of the ladder that is expected to fit, else its last."""
    asked_bytes: int
    needed: MemoryNeed
    """With `plan`, by part."""
    needed_bytes: int
