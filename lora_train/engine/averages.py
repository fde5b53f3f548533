"""The running average of the weights (EMA): smoother than the weights of any single step."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

import torch

from lora_train.engine.flat import FlatPart


class Averages:
    """Averages of flat parts, on their device; the training itself goes on with the weights as they are."""

    def __init__(self, parts: Iterable[FlatPart], decay: float) -> None:
        self._parts = list(parts)
        self._decay = decay
        self._averages = [part.weights.detach().clone() for part in self._parts]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step` (from 1 on): average += (1 - d) * (weight - average)."""
        share = 1 - decay_at(step, self._decay)
        for average, part in zip(self._averages, self._parts, strict=True):
            average.lerp_(part.weights, share)

    @contextmanager
    def shown(self) -> Generator[None, None, None]:
        """Within the block the weights are the averages. Numbers change places; every tensor stays where it is."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The averages by the names of their parameters, for the state."""
        found: dict[str, torch.Tensor] = {}
        for average, part in zip(self._averages, self._parts, strict=True):
            found |= part.split(average)
        return found

    @torch.no_grad()
    def load(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave."""
        for name, average in self.tensors().items():
            average.copy_(saved[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for average, part in zip(self._averages, self._parts, strict=True):
            kept = part.weights.clone()
            part.weights.copy_(average)
            average.copy_(kept)


def decay_at(step: int, decay: float) -> float:
    """min(decay, (1 + step) / (10 + step)): short averages first, so that the beginning is soon forgotten.

    As in TensorFlow's ExponentialMovingAverage with `num_updates`.
    """
    return min(decay, (1 + step) / (10 + step))
