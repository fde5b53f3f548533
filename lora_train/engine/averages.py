"""The running average of the weights (EMA): smoother than the weights of any single step."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch


class Averages:
    """Averages of trained tensors, on their device; the training itself goes on with the tensors as they are."""

    def __init__(self, weights: Mapping[str, torch.Tensor], decay: float) -> None:
        self._weights = dict(weights)
        self._decay = decay
        self._averages = {name: tensor.detach().clone() for name, tensor in weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step` (from 1 on): average += (1 - d) * (weight - average)."""
        share = 1 - decay_at(step, self._decay)
        torch._foreach_lerp_([*self._averages.values()], [*self._weights.values()], share)

    @contextmanager
    def shown(self) -> Generator[None, None, None]:
        """Within the block the trained tensors are the averages. The two change places; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The averages by the names of their tensors, for the state."""
        return dict(self._averages)

    @torch.no_grad()
    def load(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave."""
        for name, average in self._averages.items():
            average.copy_(saved[name])

    def _swap(self) -> None:
        for name, weight in self._weights.items():
            self._averages[name], weight.data = weight.data, self._averages[name]


def decay_at(step: int, decay: float) -> float:
    """min(decay, (1 + step) / (10 + step)): short averages first, so that the beginning is soon forgotten.

    As in TensorFlow's ExponentialMovingAverage with `num_updates`.
    """
    return min(decay, (1 + step) / (10 + step))
