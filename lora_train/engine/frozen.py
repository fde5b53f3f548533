"""Layers of the frozen base model whose weights are not lying on the device in the compute precision.

They may be packed in 8 bits (`quantised`), wait in main memory (`offload`), or both. Each time a layer is used, forward
or backward, its weight is asked for anew: autograd keeps the layer, not the weight, also inside of checkpoints, which
would keep a weight's memory where something else may lie by then. A LoRA finds `type(layer).forward` as it is used to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as functional
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input


class Place(Protocol):
    """Where a weight is that is not on the device."""

    def fetch(self) -> torch.Tensor:
        """The weight as it is stored, on the device; to be used at once, before another one is fetched."""
        ...


class _Frozen:
    """What a frozen layer has besides those of its kind."""

    weight: Any
    weight_scale: torch.Tensor | None
    """Of a weight that is packed (see `quantised`)."""
    place: Place | None
    """Where the weight is, when not in `weight` on the device."""
    computes_in: torch.dtype

    def unpacked_weight(self) -> torch.Tensor:
        """The weight on the device as it is computed with. Not to be changed, nor to be kept: it is asked for anew."""
        stored = self.weight if self.place is None else self.place.fetch()
        return stored if self.weight_scale is None else unpack(stored, self.weight_scale, self.computes_in)


class FrozenLinear(_Frozen, nn.Linear):
    """(.., in) -> (.., out)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _LinearFunction.apply(input, self)


class FrozenConv2d(_Frozen, nn.Conv2d):
    """(B, in, h, w) -> (B, out, h', w')."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _ConvFunction.apply(input, self)


def freeze(layer: Any, computes_in: torch.dtype) -> None:
    """Make a Linear or Conv2d one of the above, in place; it computes what it did. Twice is as once."""
    if isinstance(layer, (FrozenLinear, FrozenConv2d)):
        return
    kind: type = FrozenLinear if isinstance(layer, nn.Linear) else FrozenConv2d
    layer.__class__ = kind
    layer.register_buffer("weight_scale", None, persistent=False)
    vars(layer).update(place=None, computes_in=computes_in)


def unpack(stored: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `quantised.pack`: rounded once, to `dtype`."""
    if stored.is_floating_point():  # torch has no products of 8-bit floats
        return stored.to(dtype).mul_(scale)
    return torch.mul(stored, scale, out=torch.empty_like(stored, dtype=dtype))


def block_layers(unet: nn.Module) -> Iterator[tuple[str, Any]]:
    """The UNet's layers that may be frozen, by name: every Linear and Conv2d of its blocks but those that take in the
    time. First and last convolution and the embeddings of time and sizes, small and sensitive, stay as they are.
    """
    for name, layer in unet.named_modules():
        is_in_block = name.startswith(("down_blocks.", "mid_block.", "up_blocks."))
        if is_in_block and isinstance(layer, (nn.Linear, nn.Conv2d)) and not name.endswith("time_emb_proj"):
            yield name, layer


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer
        return functional.linear(x, layer.unpacked_weight(), layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad @ ctx.layer.unpacked_weight(), None


class _ConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer, ctx.input_shape = layer, x.shape
        return functional.conv2d(x, layer.unpacked_weight(), layer.bias, *_window(layer))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        weight = ctx.layer.unpacked_weight()
        return conv2d_input(ctx.input_shape, weight, grad, *_window(ctx.layer)), None


def _window(layer: nn.Conv2d) -> tuple[Any, Any, Any, int]:
    return layer.stride, layer.padding, layer.dilation, layer.groups
