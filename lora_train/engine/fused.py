"""A layer and its LoRA as one autograd function: y = W x + b + s * B (A x), with A = down, B = up.

The scale s is a factor of products that are made anyway, and results are added where they belong by the product
itself, so there are no element-wise kernels beside the products. Gradients of A and B are added straight into their
buffers (see `flat`), where there are any.

Legend: N rows, B pictures, i inputs, o outputs, r rank. Of a convolution of one pixel, and of a linear layer, the
tensors are rows (N, i) or pictures (B, i, n) with n places; the others go through the convolutions of torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import nn

from lora_train.engine.dropout import LayerMasks

Weight = Callable[[], torch.Tensor]


class Buffers(NamedTuple):
    """Of one layer's LoRA in the model's number format: what it computes with, and where its gradients are added."""

    down: torch.Tensor
    up: torch.Tensor
    down_gradient: torch.Tensor
    up_gradient: torch.Tensor


class Change(NamedTuple):
    """What a LoRA does to its layer in one call; `scale` has everything in it that it is multiplied by."""

    scale: float
    masks: LayerMasks | None
    buffers: Buffers | None


def weight_of(layer: nn.Linear | nn.Conv2d) -> torch.Tensor:
    """The layer's weight in the number format that it computes in; a layer that stores it otherwise unpacks it."""
    unpacked: Any = getattr(layer, "unpacked_weight", None)
    return layer.weight if unpacked is None else unpacked()


def with_lora(
    layer: nn.Linear | nn.Conv2d, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, change: Change
) -> torch.Tensor:
    """The output of `layer` for x together with its LoRA's. `down` and `up` are the parameters, in any number format.

    Without buffers, the gradients of `down` and `up` are given to autograd.
    """
    if isinstance(layer, nn.Linear):
        return _linear(layer, x, down, up, change)
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1:
        if x.is_contiguous(memory_format=torch.channels_last):
            rows = _linear(layer, x.permute(0, 2, 3, 1), down, up, change)
            return rows.permute(0, 3, 1, 2)
    output: torch.Tensor = _Convolution.apply(x, down, up, layer, change)  # pyright: ignore[reportAssignmentType]
    return output


def _linear(
    layer: nn.Linear | nn.Conv2d, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, change: Change
) -> torch.Tensor:
    output: torch.Tensor = _Linear.apply(x, down, up, layer, change)  # pyright: ignore[reportAssignmentType]
    return output


class _Linear(torch.autograd.Function):
    """x (.., i) -> (.., o)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, layer: nn.Linear | nn.Conv2d, change: Change
    ) -> torch.Tensor:
        a, b = _factors(x, down, up, change)
        a, b = a.flatten(1), b.flatten(1)
        rows = x.reshape(-1, x.shape[-1])
        inner = functional.linear(rows, a)
        if change.masks is not None:
            inner = change.masks.keep(inner.view(*x.shape[:-1], -1), -1).reshape(inner.shape)
        output = functional.linear(rows, weight_of(layer).flatten(1), layer.bias)
        output.addmm_(inner, b.t(), alpha=change.scale)
        ctx.layer, ctx.change, ctx.shape = layer, change, x.shape
        ctx.save_for_backward(rows, inner, a, b, down, up)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, inner, a, b, down, up = ctx.saved_tensors
        change: Change = ctx.change
        g = gradients[0].reshape(-1, gradients[0].shape[-1])
        inner_gradient = g @ b
        if change.masks is not None:
            kept = change.masks.keep(inner_gradient.view(*ctx.shape[:-1], -1), -1)
            inner_gradient = kept.reshape(inner_gradient.shape)
        down_gradient, up_gradient = _targets(ctx, down, up)
        if up_gradient is not None:
            up_gradient.flatten(1).addmm_(g.t(), inner, alpha=change.scale)
        if down_gradient is not None:
            down_gradient.flatten(1).addmm_(inner_gradient.t(), rows, alpha=change.scale)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = g @ weight_of(ctx.layer).flatten(1)
            x_gradient.addmm_(inner_gradient, a, alpha=change.scale)
            x_gradient = x_gradient.view(ctx.shape)
        return x_gradient, *_given(change, down, up, down_gradient, up_gradient), None, None


class _Convolution(torch.autograd.Function):
    """x (B, i, h, w) -> (B, o, h', w')."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, layer: nn.Conv2d, change: Change
    ) -> torch.Tensor:
        a, b = _factors(x, down, up, change)
        inner = _convolve(layer, x, a, None)
        if change.masks is not None:
            inner = change.masks.keep(inner, 1)
        output = _convolve(layer, x, weight_of(layer), layer.bias)
        output.add_(functional.conv2d(inner, b), alpha=change.scale)
        ctx.layer, ctx.change = layer, change
        ctx.save_for_backward(x, inner, a, b, down, up)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner, a, b, down, up = ctx.saved_tensors
        change: Change = ctx.change
        layer: nn.Conv2d = ctx.layer
        g = gradients[0]
        needs_x = ctx.needs_input_grad[0]
        down_gradient, up_gradient = _targets(ctx, down, up)
        inner_gradient, own, _ = torch.ops.aten.convolution_backward(
            g, inner, b, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (True, up_gradient is not None, False)
        )
        if up_gradient is not None:
            up_gradient.add_(own, alpha=change.scale)
        if change.masks is not None:
            inner_gradient = change.masks.keep(inner_gradient, 1)
        through, own, _ = _convolution_backward(layer, inner_gradient, x, a, needs_x, down_gradient is not None)
        if down_gradient is not None:
            down_gradient.add_(own, alpha=change.scale)
        x_gradient = None
        if needs_x:
            x_gradient, _, _ = _convolution_backward(layer, g, x, weight_of(layer), True, False)
            x_gradient.add_(through, alpha=change.scale)
        return x_gradient, *_given(change, down, up, down_gradient, up_gradient), None, None


def _factors(
    x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, change: Change
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B in the number format of x."""
    if change.buffers is not None:
        return change.buffers.down, change.buffers.up
    return down.to(x.dtype), up.to(x.dtype)


def _targets(ctx: Any, down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Where the gradients of A and B are added; None for one that is not wanted."""
    change: Change = ctx.change
    if change.buffers is not None:
        return change.buffers.down_gradient, change.buffers.up_gradient
    _, _, a, b, _, _ = ctx.saved_tensors
    return (
        torch.zeros_like(a.view(down.shape)) if ctx.needs_input_grad[1] else None,
        torch.zeros_like(b.view(up.shape)) if ctx.needs_input_grad[2] else None,
    )


def _given(
    change: Change,
    down: torch.Tensor,
    up: torch.Tensor,
    down_gradient: torch.Tensor | None,
    up_gradient: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What autograd is given for `down` and `up`: nothing where it has been added already."""
    if change.buffers is not None:
        return None, None
    return (
        None if down_gradient is None else down_gradient.to(down.dtype),
        None if up_gradient is None else up_gradient.to(up.dtype),
    )


def _convolve(layer: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _convolution_backward(
    layer: nn.Conv2d, g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, needs_x: bool, needs_weight: bool
) -> Any:
    padding: Any = layer.padding
    return torch.ops.aten.convolution_backward(
        g,
        x,
        weight,
        None,
        layer.stride,
        padding,
        layer.dilation,
        False,
        (0, 0),
        layer.groups,
        (needs_x, needs_weight, False),
    )
