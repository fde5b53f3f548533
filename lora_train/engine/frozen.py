"""Layers of the frozen base model whose weights are not lying on the device in the compute precision.

They may be packed in 8 bits (`quantised`), wait in main memory (`offload`), or both; or they have stayed in the 16 bits
of their file (`lowered`). Each time a layer is used, forward or backward, its weight is asked for anew: autograd keeps
the layer, not the weight, also inside of checkpoints, which would keep a weight's memory where something else may lie
by then. A LoRA finds `type(layer).forward` as it is used to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as functional
from torch import nn
from torch.autograd.function import once_differentiable

from lora_train.engine.lowered import convolve_lowered, convolve_lowered_back, is_better_lowered


class Place(Protocol):
    """Where a weight is that is not on the device."""

    def fetch(self) -> torch.Tensor:
        """The weight as it is stored, on the device; to be used at once, before another one is fetched."""
        ...


class _Wide:
    """Memory in which weights of 16 bits become float32, one after the other, on a CPU and in one thread. Fresh memory
    of 59 to 118 MB would be cleared by the system each time, which takes longer than the conversion.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def of(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The weight in this number format, until another one is asked for; itself where it has it already."""
        if weight.dtype == dtype:
            return weight
        if self._memory.numel() < weight.numel() or self._memory.dtype != dtype:
            self._memory = torch.empty(weight.numel(), dtype=dtype)
        return self._memory.as_strided(weight.shape, weight.stride()).copy_(weight)


_wide = _Wide()


class _Frozen:
    """What a frozen layer has besides those of its kind."""

    weight: Any
    weight_scale: torch.Tensor | None
    """Of a weight that is packed (see `quantised`)."""
    place: Place | None
    """Where the weight is, when not in `weight` on the device."""
    computes_in: torch.dtype

    def kept_weight(self) -> torch.Tensor:
        """The weight on the device, perhaps in the 16 bits of its file, but never in 8. Not to be changed, nor to be
        kept: it is asked for anew.
        """
        stored = self.weight if self.place is None else self.place.fetch()
        return stored if self.weight_scale is None else unpack(stored, self.weight_scale, self.computes_in)

    def unpacked_weight(self) -> torch.Tensor:
        """The weight in the number format that is computed with, to be used before another one is asked for."""
        return _wide.of(self.kept_weight(), self.computes_in)


class FrozenLinear(_Frozen, nn.Linear):
    """(.., in) -> (.., out)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _LinearFunction.apply(input, self)


class FrozenConv2d(_Frozen, nn.Conv2d):
    """(B, in, h, w) -> (B, out, h', w')."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return convolved(self, input)


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
    """The UNet's layers that may be frozen, by name: every Linear and Conv2d of its blocks. First and last convolution
    and the embeddings of time and sizes, small and sensitive, stay as they are.
    """
    for name, layer in unet.named_modules():
        is_in_block = name.startswith(("down_blocks.", "mid_block.", "up_blocks."))
        if is_in_block and isinstance(layer, (nn.Linear, nn.Conv2d)):
            yield name, layer


def weight_of(layer: Any) -> torch.Tensor:
    """In the number format that is computed with; one that is packed or elsewhere is unpacked or fetched each time."""
    return layer.unpacked_weight() if isinstance(layer, _Frozen) else layer.weight


def convolved(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """(B, in, h, w) -> (B, out, h', w'). The layer is not trained, so x is not kept for the way back, as autograd's
    convolution would.
    """
    y: Any = _ConvFunction.apply(x, layer)
    return y


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
        return convolution(layer, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return convolution_back(ctx.layer, grad.new_empty(1).expand(ctx.input_shape), grad), None


def convolution(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """As `convolved`, but without a gradient of its own."""
    weight = _kept_weight(layer)
    if is_better_lowered(layer, weight, x.shape, x.dtype):
        return convolve_lowered(layer, weight, x)
    return functional.conv2d(x, _wide.of(weight, x.dtype), layer.bias, *_window(layer))


def convolution_back(layer: Any, x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The gradient of its input, from that of its result. Of x, the shape alone is looked at, and how it lies."""
    weight = _kept_weight(layer)
    if is_better_lowered(layer, weight, x.shape, grad.dtype):
        return convolve_lowered_back(layer, weight, x.shape, grad)
    *places, groups = _window(layer)
    found: torch.Tensor = torch.ops.aten.convolution_backward(
        grad, x, _wide.of(weight, grad.dtype), None, *places, False, [0, 0], groups, [True, False, False]
    )[0]
    return found


def _kept_weight(layer: Any) -> torch.Tensor:
    return layer.kept_weight() if isinstance(layer, _Frozen) else layer.weight


def _window(layer: nn.Conv2d) -> tuple[Any, Any, Any, int]:
    return layer.stride, layer.padding, layer.dilation, layer.groups
