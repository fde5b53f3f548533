"""The gated unit of the UNet's feed-forward layers, with a gradient that is not put together from copies."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch.autograd.function import once_differentiable


def gated_gelu(projected: torch.Tensor) -> torch.Tensor:
    """(.., 2 n) -> (.., n): the first half times the exact GELU of the second (Shazeer 2020, GEGLU).

    Autograd's own gradient makes one tensor of either half and copies both into a third.
    """
    if torch.is_grad_enabled() and projected.requires_grad:
        return _GatedGelu.apply(projected)
    hidden, gate = projected.chunk(2, dim=-1)
    return hidden * functional.gelu(gate)


class _GatedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: torch.Tensor) -> torch.Tensor:
        hidden, gate = projected.chunk(2, dim=-1)
        opened = functional.gelu(gate)
        ctx.save_for_backward(projected, opened)
        return hidden * opened

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        projected, opened = ctx.saved_tensors
        hidden, gate = projected.chunk(2, dim=-1)
        whole = torch.empty_like(projected)
        for_hidden, for_gate = whole.chunk(2, dim=-1)
        torch.mul(grad, opened, out=for_hidden)
        torch.ops.aten.gelu_backward.grad_input(grad * hidden, gate, approximate="none", grad_input=for_gate)
        return whole
