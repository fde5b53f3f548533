"""What the stages that make the demo model share: tensors, averages, learning rates, progress."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image


def as_tensor(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """N RGB pictures of one size -> (N, 3, H, W), float32 from -1 to 1."""
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every parameter group's learning rate becomes `factor` times its `base_lr`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def warm_cosine(step: int, steps: int, *, warm_up: int, hold: float, floor: float) -> float:
    """Learning-rate factor: linear warm-up, 1 for a share `hold` of all steps, then a cosine."""
    warm = min(1.0, (step + 1) / warm_up)
    done = step / steps
    if done < hold:
        return warm
    fall = 0.5 * (1 + math.cos(math.pi * (done - hold) / (1 - hold)))
    return warm * (floor + (1 - floor) * fall)


class MovingAverage:
    """An exponential moving average of parameters that forgets its first steps quickly.

    After n updates the decay is (n + 1) / (n + 10), and at most `decay`.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters)
        self._averages = [parameter.detach().clone() for parameter in self._parameters]
        self._decay = decay
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        self._updates += 1
        decay = min(self._decay, (self._updates + 1) / (self._updates + 10))
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            average.lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the averages into the parameters."""
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            parameter.copy_(average)


class Progress:
    """Prints a stage's losses and seconds, about twenty times in all."""

    def __init__(self, stage: str, steps: int) -> None:
        self._stage = stage
        self._steps = steps
        self._every = max(1, steps // 20)
        self._begin_s = time.monotonic()
        self._sums: dict[str, float] = {}

    def report(self, step: int, **values: float) -> None:
        """Count in the values of a finished `step` (from 0); a line shows means since the last."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if (step + 1) % self._every:
            return
        means = "  ".join(f"{name} {total / self._every:.4f}" for name, total in self._sums.items())
        seconds = time.monotonic() - self._begin_s
        say(f"{self._stage}  {step + 1}/{self._steps}  {seconds:.0f} s  {means}")
        self._sums.clear()


def say(line: str) -> None:
    """A line on standard output, at once, so that a log file can be followed."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
