"""Group norm and SiLU, the pair in front of every convolution of the UNet, without copies between layouts.

On CUDA PyTorch's group norm reads and writes pictures channel by channel, while convolutions in half precision want
the channels of a pixel side by side. Left to itself, each step of the pair and of its gradient keeps the layout it is
given, and copies are made around it. Here the SiLU and its gradient, which run over all numbers anyway, write in the
layout that is read next.

Legend: B pictures, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import nn
from torch.autograd.function import once_differentiable

aten: Any = torch.ops.aten

_DEVICES = ("cpu", "cuda", "meta")
"""Where PyTorch has group norm and its gradient as kernels of their own."""


def norm_silu(norm: nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) in the layout of x. The norm is frozen: its weights get no gradients."""
    if x.device.type not in _DEVICES:
        return functional.silu(norm(x))
    return _NormSilu.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
    ) -> torch.Tensor:
        layout = _layout(x)
        read = x.contiguous(memory_format=layout if x.device.type == "cpu" else torch.contiguous_format)
        sizes = (x.shape[0], x.shape[1], x.shape[2] * x.shape[3], groups)
        normed, mean, rstd = torch.native_group_norm(read, weight, bias, *sizes, eps)
        ctx.save_for_backward(read, weight, normed, mean, rstd)
        ctx.sizes = sizes
        return aten.silu.out(normed, out=torch.empty_like(normed, memory_format=layout))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        read, weight, normed, mean, rstd = ctx.saved_tensors
        inner = aten.silu_backward.grad_input(grad, normed, grad_input=torch.empty_like(normed))
        wanted = [True, False, False]
        found, _, _ = aten.native_group_norm_backward(inner, read, mean, rstd, weight, *ctx.sizes, wanted)
        return found, None, None, None, None


def _layout(x: torch.Tensor) -> torch.memory_format:
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format
