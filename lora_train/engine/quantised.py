"""The frozen base model's weights in 8 bits each: half the memory of bf16, unpacked layer by layer when they are used.

    int8   w = q s, q of -127 .. 127, s = largest |w| / 127
    fp8    w = q s, q a float with 4 bits of exponent and 3 of mantissa (largest 448), s the smallest power of two that
           is enough: multiplying by it rounds nothing

Each output channel has its own s, in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lora_train.core.errors import ConfigError
from lora_train.core.memory_settings import BaseWeights
from lora_train.engine.frozen import block_layers, freeze, unpack

_LARGEST_INT8 = 127
_LARGEST_FP8 = 448.0
_SMALLEST = 1e-30
"""A channel of zeros has to be divided by something."""


def pack(weight: torch.Tensor, kind: BaseWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, ..) -> the packed weight in the same shape and layout, and the scale (out, 1, ..) of each channel."""
    exact = weight.detach().float()
    largest = exact.abs().amax(dim=tuple(range(1, exact.dim())), keepdim=True).clamp(min=_SMALLEST)
    if kind == "int8":
        scale = largest / _LARGEST_INT8
        return (exact / scale).round_().clamp_(-_LARGEST_INT8, _LARGEST_INT8).to(torch.int8), scale
    scale = torch.exp2(torch.ceil(torch.log2(largest / _LARGEST_FP8)))
    return (exact / scale).clamp_(-_LARGEST_FP8, _LARGEST_FP8).to(torch.float8_e4m3fn), scale


def require_kind(kind: BaseWeights, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ConfigError where this torch can't pack and unpack so on this device."""
    try:
        if kind != "full":
            unpack(*pack(torch.ones(2, 2, device=device, dtype=dtype), kind), dtype)
    except (AttributeError, RuntimeError, TypeError):
        other = "int8 or full" if kind == "fp8" else "full"
        what = f"torch {torch.__version__} has no {kind} on this device ({device.type})"
        raise ConfigError([f"base_weights: {what}; choose {other}"]) from None


@torch.no_grad()
def quantise(unet: nn.Module, kind: BaseWeights) -> None:
    """Pack the weights of a UNet that is there, layer by layer; those that are packed already remain as they are.

    Its LoRA must be detached meanwhile. Weights that wait in main memory are packed there, and have no `place` then.
    """
    device = next(unet.parameters()).device
    for _, layer in block_layers(unet):
        if kind == "full" or getattr(layer, "weight_scale", None) is not None:
            continue
        packed, scale = pack(layer.weight, kind)
        freeze(layer, layer.weight.dtype)
        layer.weight = nn.Parameter(packed, requires_grad=False)
        layer.weight_scale = scale.to(device)
        layer.place = None


class Packer:
    """Packs the weights of a UNet while they are read, so that it is never whole in memory."""

    def __init__(self, unet: Any, kind: BaseWeights) -> None:
        """`unet` is on the meta device."""
        self._kind: BaseWeights = kind
        self._layers = {f"{name}.weight": layer for name, layer in block_layers(unet)} if kind != "full" else {}
        unet.requires_grad_(False)  # 8-bit numbers have no gradients

    @torch.no_grad()
    def packed(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """What is to be stored as the parameter `name`; `weight` is in the compute precision, as for `quantise`."""
        layer = self._layers.get(name)
        if layer is None:
            return weight
        freeze(layer, weight.dtype)
        packed, layer.weight_scale = pack(weight, self._kind)
        return packed
