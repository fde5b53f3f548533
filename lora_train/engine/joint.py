"""Many layers that are given the same input, asked with one product.

Legend: x (.., in) what all of them see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import nn


class SharedInput(NamedTuple):
    """What layers share.

    x        (.., in)
    outputs  for each layer, in the order of `JointProduct`, what it makes of x: (.., out of the layer), or None where
             it must be asked itself
    """

    x: torch.Tensor
    outputs: tuple[torch.Tensor | None, ...]

    def output(self, place: int, layer: nn.Linear) -> torch.Tensor:
        """(.., out) of the layer, which is the one at `place`."""
        known = self.outputs[place]
        return layer(self.x) if known is None else known


class JointProduct:
    """Linear layers as one. Those that have a LoRA when they are joined, or later, are left to themselves, and so are
    those whose weights are others later on.

    The joined weights become views of one tensor: this takes no more memory, and the layers are what they were.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._layers = layers
        self._places = [place for place, layer in enumerate(layers) if _is_like(layer, layers[0])]
        if len(self._places) < 2:
            self._places, self._weights = [], []
            return
        joined = [layers[place] for place in self._places]
        self._weights = [layer.weight for layer in joined]
        self._sizes = [layer.out_features for layer in joined]
        self._weight = _joined([layer.weight for layer in joined])
        self._bias = _joined([layer.bias for layer in joined]) if layers[0].bias is not None else None

    def __call__(self, x: torch.Tensor) -> SharedInput:
        outputs: list[torch.Tensor | None] = [None] * len(self._layers)
        free = [place for place, own in zip(self._places, self._weights, strict=True) if self._is_free(place, own)]
        if free:
            found = functional.linear(x, self._weight, self._bias).split(self._sizes, dim=-1)
            for place, output in zip(self._places, found, strict=True):
                outputs[place] = output if place in free else None
        return SharedInput(x, tuple(outputs))

    def _is_free(self, place: int, own: torch.Tensor) -> bool:
        layer = self._layers[place]
        return layer.weight is own and "forward" not in vars(layer)


def _is_like(layer: nn.Linear, first: nn.Linear) -> bool:
    """Whether the layer can be joined: nothing is on it, and its weights are plain numbers as those of the first."""
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and layer.weight.is_floating_point()
        and (layer.weight.dtype, layer.weight.device) == (first.weight.dtype, first.weight.device)
        and (layer.in_features, layer.bias is None) == (first.in_features, first.bias is None)
    )


@torch.no_grad()
def _joined(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    joint = torch.cat(list(parameters))
    for parameter, rows in zip(parameters, joint.split([len(parameter) for parameter in parameters]), strict=True):
        parameter.data = rows
    return joint
