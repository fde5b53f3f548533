"""Tries optimizers out in a child process: to be installed is not the same as to work."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lora_train.core.config import Device, Optimizer
from lora_train.launch.child import run_module

_LIMIT_S = 180.0


def try_optimizers(names: Sequence[Optimizer], device: Device) -> dict[Optimizer, str]:
    """Let each take a step on `device`: "" where it worked, or else the error. Takes seconds, as torch is imported."""
    told, error = run_module("lora_train.engine.try_optimizers", [device, *names], _LIMIT_S)
    found = _read(told)
    return {name: found.get(name, error or "it told nothing") for name in names}


def _read(told: str) -> dict[str, str]:
    """What the child has told of each, one JSON object a line; libraries print lines of their own between."""
    found: dict[str, str] = {}
    for line in told.splitlines():
        try:
            found |= json.loads(line)
        except (ValueError, TypeError):
            continue
    return found
