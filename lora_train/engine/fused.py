"""A frozen layer and its LoRA as one function: y = W x + b + s up(down(x)), forward and backward.

No element-wise kernel is spent: the scale s and every sum are part of a matrix product that writes onto what is there.
Gradients of `down` and `up` are added straight to where they are collected, and what is saved for the way back is x
and the r inner values alone. The base weight is asked for anew on the way back (`layer.weight`): it may be made from a
smaller format each time, or have been elsewhere in between.

Legend: N rows of a Linear's input; B pictures of P places (h x w, as rows or planes) of a convolution's, P' of its
output; r ranks. Convolutions work in whichever memory layout their input has, and nothing is copied between layouts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import nn
from torch.autograd.function import once_differentiable

from lora_train.engine.dropout import LayerMasks
from lora_train.engine.frozen import convolution, convolution_back, weight_of


class Factors(NamedTuple):
    """A layer's `down` and `up` in the number format that is computed with, and what their gradients are added to.

    down, down_gradient   (r, in); of convolutions that see more than one pixel (r, in, k, k)
    up, up_gradient       (out, r)

    Without a place to be added to, gradients go the usual way of autograd.
    """

    down: torch.Tensor
    up: torch.Tensor
    down_gradient: torch.Tensor | None = None
    up_gradient: torch.Tensor | None = None


def factors_of(
    layer: nn.Linear | nn.Conv2d,
    down: torch.Tensor,
    up: torch.Tensor,
    gradients: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Factors:
    """Views of `down` and `up`, and of what their gradients are added to, all of them in the shapes of a file."""
    axes_kept = 3 if _is_wide(layer) else 1
    found = [tensor.flatten(axes) for tensor, axes in ((down, axes_kept), (up, 1))]
    sums = [None, None] if gradients is None else [gradients[0].flatten(axes_kept), gradients[1].flatten(1)]
    return Factors(*found, *sums)


class _Use(NamedTuple):
    """All that one call needs beside tensors with gradients. `layer` is a Linear or a Conv2d."""

    layer: Any
    factors: Factors
    scale: float
    masks: LayerMasks | None


def output(
    layer: nn.Linear | nn.Conv2d,
    x: torch.Tensor,
    trained: tuple[torch.Tensor, torch.Tensor],
    factors: Factors,
    scale: float,
    masks: LayerMasks | None,
) -> torch.Tensor:
    """The layer's output for x, with `scale` times its LoRA.

    trained   the parameters `down` and `up` that `factors` has the numbers of: what gradients are for
    masks     what is left out of the inner values; `scale` has their growth already
    """
    y: Any = _Fused.apply(x, *trained, _Use(layer, factors, scale, masks))
    return y


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, use: _Use) -> torch.Tensor:
        y, inner = (_conv_forward if isinstance(use.layer, nn.Conv2d) else _linear_forward)(x, use)
        ctx.use, ctx.shapes = use, (down.shape, up.shape)
        ctx.save_for_backward(x, inner)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, inner = ctx.saved_tensors
        use, (wants_x, wants_down, wants_up, _) = ctx.use, ctx.needs_input_grad
        own = use.factors
        down_gradient = own.down_gradient if own.down_gradient is not None else torch.zeros_like(own.down)
        up_gradient = own.up_gradient if own.up_gradient is not None else torch.zeros_like(own.up)
        backward = _conv_backward if isinstance(use.layer, nn.Conv2d) else _linear_backward
        sums = (down_gradient if wants_down else None, up_gradient if wants_up else None)
        dx = backward(use, x, inner, dy, sums, wants_x=wants_x)
        down_returned = down_gradient.view(ctx.shapes[0]) if wants_down and own.down_gradient is None else None
        up_returned = up_gradient.view(ctx.shapes[1]) if wants_up and own.up_gradient is None else None
        return dx, down_returned, up_returned, None


_Sums = tuple[torch.Tensor | None, torch.Tensor | None]
"""Where the gradients of `down` and `up` are added; None for one that is not trained."""


# --- Linear ---


def _linear_forward(x: torch.Tensor, use: _Use) -> tuple[torch.Tensor, torch.Tensor]:
    """(.., in) -> (.., out), and the inner values (N, r) that were kept."""
    layer, own = use.layer, use.factors
    rows = x.reshape(-1, x.shape[-1])
    y = functional.linear(rows, weight_of(layer), layer.bias)
    inner = _kept_rows(rows @ own.down.t(), x, use.masks)
    y.addmm_(inner, own.up.t(), alpha=use.scale)
    return y.view(*x.shape[:-1], -1), inner


def _linear_backward(
    use: _Use, x: torch.Tensor, inner: torch.Tensor, dy: torch.Tensor, sums: _Sums, *, wants_x: bool
) -> torch.Tensor | None:
    own, (down_sum, up_sum) = use.factors, sums
    rows, d_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if up_sum is not None:
        up_sum.addmm_(d_rows.t(), inner, alpha=use.scale)
    d_inner = _kept_rows(d_rows @ own.up, x, use.masks)
    if down_sum is not None:
        down_sum.addmm_(d_inner.t(), rows, alpha=use.scale)
    if not wants_x:
        return None
    dx = d_rows @ weight_of(use.layer)
    return dx.addmm_(d_inner, own.down, alpha=use.scale).view(x.shape)


def _kept_rows(inner: torch.Tensor, x: torch.Tensor, masks: LayerMasks | None) -> torch.Tensor:
    return inner if masks is None else masks.keep(inner.view(*x.shape[:-1], -1), -1).view(inner.shape)


# --- convolutions ---


def _is_wide(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether it is a convolution, and no mere matrix product for every pixel."""
    if not isinstance(layer, nn.Conv2d):
        return False
    return layer.kernel_size != (1, 1) or layer.stride != (1, 1) or layer.padding != (0, 0)


def _planes(tensor: torch.Tensor) -> torch.Tensor:
    """(B, c, h, w) -> (B, c, P): a view in both memory layouts."""
    return tensor.flatten(2)


def _for_each(matrix: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """The matrix for each picture; nothing is copied."""
    return matrix.expand(planes.shape[0], -1, -1)


def _conv_forward(x: torch.Tensor, use: _Use) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, in, h, w) -> (B, out, h', w'), and the inner values (B, r, P') that were kept."""
    layer, own = use.layer, use.factors
    y = convolution(layer, x)
    if _is_wide(layer):
        inner = _planes(functional.conv2d(x, own.down, None, layer.stride, layer.padding, layer.dilation))
    else:
        inner = torch.bmm(_for_each(own.down, x), _planes(x))
    inner = _kept_planes(inner, use.masks)
    _planes(y).baddbmm_(_for_each(own.up, inner), inner, alpha=use.scale)
    return y, inner


def _conv_backward(
    use: _Use, x: torch.Tensor, inner: torch.Tensor, dy: torch.Tensor, sums: _Sums, *, wants_x: bool
) -> torch.Tensor | None:
    layer, own, (down_sum, up_sum) = use.layer, use.factors, sums
    d_planes = _planes(dy)
    if up_sum is not None:
        up_sum.addbmm_(d_planes, inner.transpose(1, 2), alpha=use.scale)
    d_inner = _kept_planes(torch.bmm(_for_each(own.up.t(), d_planes), d_planes), use.masks)
    dx = convolution_back(layer, x, dy) if wants_x else None
    if _is_wide(layer):
        wants = (wants_x, down_sum is not None)
        part, down_gradient = _convolved_back(use, d_inner.view(dy.shape[0], -1, *dy.shape[2:]), x, wants)
        if down_sum is not None:
            down_sum.add_(down_gradient, alpha=use.scale)
        return None if dx is None else dx.add_(part, alpha=use.scale)
    if down_sum is not None:
        down_sum.addbmm_(d_inner, _planes(x).transpose(1, 2), alpha=use.scale)
    if dx is not None:
        _planes(dx).baddbmm_(_for_each(own.down.t(), d_inner), d_inner, alpha=use.scale)
    return dx


def _convolved_back(use: _Use, d_inner: torch.Tensor, x: torch.Tensor, wants: tuple[bool, bool]) -> tuple[Any, Any]:
    """Gradients of the input and the weight of `down`, as wanted."""
    layer = use.layer
    places = (list(layer.stride), list(layer.padding), list(layer.dilation))
    dx, d_weight, _ = torch.ops.aten.convolution_backward(
        d_inner, x, use.factors.down, None, *places, False, [0, 0], 1, [*wants, False]
    )
    return dx, d_weight


def _kept_planes(inner: torch.Tensor, masks: LayerMasks | None) -> torch.Tensor:
    return inner if masks is None else masks.keep(inner, 1)
