"""Convolutions of few places by very large weights, as products of matrices.

A deep layer of a UNet has 15 to 30 million weights, for only 16 or 64 places of a small picture. A CPU's convolution
brings such weights into an order of its own at every call, which takes longer than the convolution. As a product over
the windows of the picture (im2col: Chellapilla et al. 2006, "High Performance Convolutional Neural Networks for
Document Processing") they are read once, as they lie.

So they may also lie in 16 bits, where they came so: a few rows at a time become float32 and are multiplied while they
are in the processor's cache. That is exact, takes about the same time, and saves 0.93 GB with SD 1.5.

Legend: B pictures, C channels, K numbers in a window (C x its height x its width), L places of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lora_train.engine.activations import layout_of

_LEAST_WEIGHTS = 12_000_000
_MOST_PLACES = 64
"""Of all pictures together. Measured with two threads (AMD EPYC, torch 2.13, 3 x 3): for 1280 to 1280 channels 26 ms
became 11 at 64 places, and 37 stayed 37 at 256; for 2560 to 1280 channels 51 became 23 at 64, and 44 became 9 at 16."""
_ROWS_AT_ONCE = 128
"""Of weights in 16 bits: 6 MB and more as float32. With 64 or 256 it took as long, or up to a fifth longer."""


def may_stay_half(layer: nn.Module, own: torch.dtype, computes_in: torch.dtype, device: torch.device) -> bool:
    """Whether the layer's weight may stay in `own`, the number format of its file. `layer` may be on any device."""
    if device.type != "cpu" or computes_in != torch.float32 or own not in (torch.float16, torch.bfloat16):
        return False
    return isinstance(layer, nn.Conv2d) and _can_be_lowered(layer) and layer.weight.numel() >= _LEAST_WEIGHTS


def is_better_lowered(layer: nn.Conv2d, weight: torch.Tensor, x_shape: torch.Size, computes_in: torch.dtype) -> bool:
    """Whether `convolve_lowered` is quicker here, and possible."""
    if weight.device.type != "cpu" or computes_in != torch.float32 or weight.numel() < _LEAST_WEIGHTS:
        return False
    if not _can_be_lowered(layer) or not weight.is_contiguous(memory_format=layout_of(weight)):
        return False
    height, width = _places(layer, x_shape)
    return x_shape[0] * height * width <= _MOST_PLACES


def _can_be_lowered(layer: nn.Conv2d) -> bool:
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def convolve_lowered(layer: nn.Conv2d, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (B, out, h', w'): W @ windows + bias."""
    windows = functional.unfold(x, **_window(layer)).view(*x.shape[:2], weight[0, 0].numel(), -1)  # (B, C, window, L)
    order = (2, 1, 0, 3) if _is_last(weight) else (1, 2, 0, 3)
    columns = windows.permute(order).reshape(weight[0].numel(), -1)  # (K, B L)
    y = columns.new_empty(len(weight), columns.shape[1])
    for part, sums in _in_parts(_rows(weight), y):
        torch.mm(part, columns, out=sums)
    if layer.bias is not None:
        y += layer.bias[:, None]
    y = y.view(len(weight), len(x), *_places(layer, x.shape)).transpose(0, 1)
    return y.contiguous(memory_format=layout_of(weight))


def convolve_lowered_back(
    layer: nn.Conv2d, weight: torch.Tensor, x_shape: torch.Size, grad: torch.Tensor
) -> torch.Tensor:
    """The gradient of x, (B, C, h, w), from that of the result: the windows' own are summed where they overlap."""
    rows = _rows(weight)
    d_y = grad.transpose(0, 1).reshape(len(weight), -1)
    columns, kept = d_y.new_empty(rows.shape[1], d_y.shape[1]), 0  # (K, B L)
    for part, d_part in _in_parts(rows, d_y):
        columns.addmm_(part.t(), d_part, beta=kept)
        kept = 1
    window = weight[0, 0].numel()
    shape = (window, x_shape[1]) if _is_last(weight) else (x_shape[1], window)
    order = (2, 1, 0, 3) if _is_last(weight) else (2, 0, 1, 3)
    windows = columns.view(*shape, x_shape[0], -1).permute(order).reshape(x_shape[0], len(columns), -1)
    dx = functional.fold(windows, (x_shape[2], x_shape[3]), **_window(layer))
    return dx.contiguous(memory_format=layout_of(weight))


def _rows(weight: torch.Tensor) -> torch.Tensor:
    """(out, K) without a copy: the channels of a place side by side, or the places of a channel."""
    return (weight.permute(0, 2, 3, 1) if _is_last(weight) else weight).reshape(len(weight), -1)


def _in_parts(rows: torch.Tensor, others: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows in the number format of `others`, each time in the same memory, and the rows of `others` at the same places;
    all at once where nothing has to be converted.
    """
    if rows.dtype == others.dtype:
        yield rows, others
        return
    memory = others.new_empty(_ROWS_AT_ONCE, rows.shape[1])
    for part, other in zip(rows.split(_ROWS_AT_ONCE), others.split(_ROWS_AT_ONCE), strict=True):
        yield memory[: len(part)].copy_(part), other


def _is_last(weight: torch.Tensor) -> bool:
    return layout_of(weight) == torch.channels_last


def _window(layer: nn.Conv2d) -> dict[str, Any]:
    names = ("kernel_size", "dilation", "padding", "stride")
    return {name: getattr(layer, name) for name in names}


def _places(layer: nn.Conv2d, x_shape: torch.Size) -> tuple[int, int]:
    """Height and width of the result."""
    height, width = (
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, dilation, padding, stride in zip(x_shape[2:], *_window(layer).values(), strict=True)
    )
    return height, width
