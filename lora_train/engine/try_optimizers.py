"""`python -m lora_train.engine.try_optimizers DEVICE NAME ...` lets optimizers take a step, each told on a line."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import nn

from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError
from lora_train.core.optimizers import OPTIMIZERS
from lora_train.engine.devices import choose_device
from lora_train.engine.optimizers import make_optimizer

_SHAPE = (64, 128)
"""Large enough for an 8-bit state: bitsandbytes keeps one of less than 4096 numbers in 32 bits."""


def main(arguments: list[str]) -> int:
    """Write `{"NAME": ""}`, or the error, for each of the names, as soon as it is known."""
    wanted, *names = arguments
    device = _device(wanted)
    for name in names:
        try:
            _take_a_step(name, device)
            error = ""
        except Exception as failure:  # whatever a library of somebody else raises
            told = failure.__cause__ if isinstance(failure, ConfigError) and failure.__cause__ else failure
            error = f"{type(told).__name__}: {told}".splitlines()[0]
        sys.stdout.write(f"\n{json.dumps({name: error})}\n")
        sys.stdout.flush()
    return 0


def _device(wanted: Any) -> torch.device:
    try:
        return choose_device(wanted).torch
    except ConfigError:  # told when the training begins
        return choose_device("auto").torch


def _take_a_step(name: Any, device: torch.device) -> None:
    settings = TrainSettings(optimizer=name, learning_rate=OPTIMIZERS[name].usual_rate)
    parameter = nn.Parameter(torch.zeros(_SHAPE, device=device))
    optimizer = make_optimizer(settings, {"unet": [parameter]}, fused=False)
    parameter.grad = torch.ones(_SHAPE, device=device)
    optimizer.step()
    moved = parameter.detach()
    if not bool((moved < 0).all()) or not bool(torch.isfinite(moved).all()):
        raise RuntimeError("its first step went nowhere, or not down the gradient")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
