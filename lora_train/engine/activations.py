"""The UNet's two activations, with gradients of their own: without copies, where autograd's needs some.

A group norm and SiLU stand before every convolution. On CUDA PyTorch's group norm reads and writes pictures channel by
channel, while convolutions in half precision want the channels of a pixel side by side. Left to itself, each step of
the pair and of its gradient keeps the layout it is given, and copies are made around it. Here the SiLU and its
gradient, which run over all numbers anyway, write in the layout that is read next.

The gated GELU opens every feed-forward layer, the widest tensor of its block. Autograd keeps the opened gate for the
way back, makes one gradient of either half and copies both into a third; here nothing but the input is kept, the gate
is opened again, and the gradients are written over the input.

Written over is what was kept for the way back alone, which so can be gone but once: autograd refuses a second time.

torch.compile sees the plain mathematics, and makes its own gradients of it.

Legend: B pictures, C channels, h x w places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import nn
from torch.autograd.function import once_differentiable

aten: Any = torch.ops.aten

_DEVICES = ("cpu", "cuda", "meta")
"""Where PyTorch has group norm and its gradient as kernels of their own."""

is_compiling: Callable[[], bool] = getattr(torch.compiler, "is_compiling", lambda: False)  # not in torch before 2.3


def layout_of(x: torch.Tensor) -> torch.memory_format:
    """How the numbers of (B, C, h, w) lie: channels_last where those of a pixel are side by side."""
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format


def norm_silu(norm: nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) in the layout of x. The norm is frozen: its weights get no gradients."""
    if x.device.type not in _DEVICES or is_compiling():
        return functional.silu(norm(x))
    output: torch.Tensor = _NormSilu.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)  # pyright: ignore[reportAssignmentType]
    return output


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
    ) -> torch.Tensor:
        layout = layout_of(x)
        read = x.contiguous(memory_format=layout if x.device.type == "cpu" else torch.contiguous_format)
        sizes = (x.shape[0], x.shape[1], x.shape[2] * x.shape[3], groups)
        normed, mean, rstd = torch.native_group_norm(read, weight, bias, *sizes, eps)
        ctx.save_for_backward(read, weight, normed, mean, rstd)
        ctx.sizes = sizes
        return aten.silu.out(normed, out=torch.empty_like(normed, memory_format=layout))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        read, weight, normed, mean, rstd = ctx.saved_tensors
        # Over what was kept for this alone.
        inner = aten.silu_backward.grad_input(gradients[0], normed, grad_input=normed)
        wanted = [True, False, False]
        found, _, _ = aten.native_group_norm_backward(inner, read, mean, rstd, weight, *ctx.sizes, wanted)
        return found, None, None, None, None


def gated_gelu(projected: torch.Tensor) -> torch.Tensor:
    """(.., 2 n) -> (.., n): the first half times the exact GELU of the second (Shazeer 2020, GEGLU)."""
    if is_compiling():
        hidden, gate = projected.chunk(2, dim=-1)
        return hidden * functional.gelu(gate)
    output: torch.Tensor = _GatedGelu.apply(projected)  # pyright: ignore[reportAssignmentType]
    return output


class _GatedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(projected)
        hidden, gate = projected.chunk(2, dim=-1)
        return functional.gelu(gate).mul_(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        projected = ctx.saved_tensors[0].detach()
        hidden, gate = projected.chunk(2, dim=-1)
        for_opened = gradients[0] * hidden
        aten.gelu.out(gate, out=hidden).mul_(gradients[0])
        aten.gelu_backward.grad_input(for_opened, gate, approximate="none", grad_input=gate)
        return projected
