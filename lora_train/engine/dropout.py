"""What of a LoRA sits out a step, against over-training: drawn on the CPU before the step, for every view by itself.

Three kinds, as in kohya-ss/sd-scripts. With the inner values z = down(x), (.., r):
  network dropout   each value of z is left out with probability p, the others grow by 1 / (1 - p)
  rank dropout      each of the r ranks is left out for a whole view, the others grow by 1 / (1 - p)
  module dropout    the layer's whole LoRA is left out for a view; nothing grows
kohya draws the last one for a batch; here every view has its own, so that the batch size changes nothing.

Legend: B views; a text encoder sees each in C chunks, so a layer's input may have B C rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lora_train.engine.devices import to_device
from lora_train.engine.network_protocol import Draw

SHIFTS = 16381
"""A layer's values begin at one of so many places of the view's common numbers (a prime, as no rank is)."""


class DropoutRates(NamedTuple):
    """Probabilities of being left out, each from 0 (off) to below 1."""

    inner: float = 0.0
    rank: float = 0.0
    module: float = 0.0


class LayerMasks(NamedTuple):
    """What one layer keeps for a batch of B views.

    inner  (B, n) bool, n at least the inner values that a view has in this layer; None keeps all
    ranks  (B, r) bool; None keeps all
    scale  by which what is kept grows
    """

    inner: torch.Tensor | None
    ranks: torch.Tensor | None
    scale: float

    def keep(self, values: torch.Tensor, rank_axis: int) -> torch.Tensor:
        """The inner values (B C, .., r, ..), with those that are left out as zeros; not scaled."""
        rows = values.shape[0]
        if self.inner is not None:
            count = values.numel() // self.inner.shape[0]
            values = values * self.inner[:, :count].reshape(values.shape)
        if self.ranks is not None:
            views, rank = self.ranks.shape
            shape = [rows, *[1] * (values.ndim - 1)]
            shape[rank_axis] = rank
            values = values * self.ranks.repeat_interleave(rows // views, dim=0).reshape(shape)
        return values


def draw_masks(
    rates: DropoutRates,
    ranks: Sequence[int],
    shifts: Sequence[int],
    draw: Draw,
    places: int,
    device: torch.device,
) -> list[LayerMasks]:
    """The masks of all layers, which have these ranks, for the batch that `draw` is for.

    Network dropout would need millions of numbers a view. So one row of them serves all layers, each of which begins
    at its own shift (below SHIFTS): within a layer the numbers are independent, and no two layers are in step.
    """
    scale = 1 / ((1 - rates.inner) * (1 - rates.rank))
    inner: list[torch.Tensor | None] = [None] * len(ranks)
    if rates.inner:
        row = to_device(draw("network dropout", max(ranks) * places + SHIFTS) >= rates.inner, device)
        inner = [row[:, shift : shift + rank * places] for rank, shift in zip(ranks, shifts, strict=True)]
    kept: list[torch.Tensor | None] = [None] * len(ranks)
    if rates.rank or rates.module:
        together = draw("rank dropout", sum(ranks)) >= rates.rank
        modules = draw("module dropout", len(ranks)) >= rates.module
        together &= modules.repeat_interleave(torch.tensor(ranks), dim=1)
        kept = [*to_device(together, device).split(list(ranks), dim=1)]
    return [LayerMasks(own, ranks_kept, scale) for own, ranks_kept in zip(inner, kept, strict=True)]
