"""A layer and its LoRA as one function: the formula itself is the reference, and finite differences for gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from lora_train.engine.dropout import LayerMasks
from lora_train.engine.flat import FlatPart
from lora_train.engine.fused import Buffers, Change, with_lora

RANK = 3
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (2, 4, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (7, 6)),
    "1x1": (lambda: nn.Conv2d(6, 5, 1), (2, 6, 4, 3)),
    "3x3": (lambda: nn.Conv2d(6, 5, 3, padding=1), (2, 6, 4, 3)),
    "3x3 of a downsampler": (lambda: nn.Conv2d(6, 5, 3, stride=2, padding=1), (1, 6, 5, 4)),
}


def made(kind: str, *, dtype: torch.dtype = torch.float64, channels_last: bool = False) -> Any:
    """A layer, an input, and a LoRA of it."""
    torch.manual_seed(0)
    build, shape = LAYERS[kind]
    layer = build().to(dtype).requires_grad_(False)
    x = torch.randn(shape, dtype=dtype)
    is_linear = isinstance(layer, nn.Linear)
    down_shape = (RANK, 6) if is_linear else (RANK, 6, *layer.kernel_size)
    up_shape = (5, RANK) if is_linear else (5, RANK, 1, 1)
    down, up = torch.randn(down_shape, dtype=dtype), torch.randn(up_shape, dtype=dtype)
    if channels_last and not is_linear:
        layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return layer, x.requires_grad_(), down.requires_grad_(), up.requires_grad_()


def plain(layer: Any, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, change: Change) -> torch.Tensor:
    """y = W x + b + s * B (A x), as it is written."""
    functional = nn.functional
    if isinstance(layer, nn.Linear):
        inner = functional.linear(x, down)
        inner = inner if change.masks is None else change.masks.keep(inner, -1)
        return layer(x) + change.scale * functional.linear(inner, up)
    inner = functional.conv2d(x, down, None, layer.stride, layer.padding)
    inner = inner if change.masks is None else change.masks.keep(inner, 1)
    return layer(x) + change.scale * functional.conv2d(inner, up)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_those_of_finite_differences(kind: str, channels_last: bool) -> None:
    layer, x, down, up = made(kind, channels_last=channels_last)
    change = Change(0.7, None, None)
    assert gradcheck(lambda *inputs: with_lora(layer, *inputs, change), (x, down, up))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_equal_to_the_formula(kind: str, masked: bool, channels_last: bool) -> None:
    layer, x, down, up = made(kind, channels_last=channels_last)
    masks = None
    if masked:
        places = layer(x).numel() // 5
        inner = torch.rand(x.shape[0], RANK * places) > 0.3
        masks = LayerMasks(inner, torch.tensor([[True, False, True]]).expand(x.shape[0], -1), 1.5)
    change = Change(0.7 * 1.5, masks, None)
    weights = torch.randn_like(layer(x))
    found = []
    for compute in (with_lora, plain):
        output = compute(layer, x, down, up, change)
        (output * weights).sum().backward()
        found.append([output, *(tensor.grad.clone() for tensor in (x, down, up))])
        for tensor in (x, down, up):
            tensor.grad = None
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_added_to_their_buffers(kind: str, dtype: torch.dtype) -> None:
    """Twice, as two batches of a step do; in bf16 within its 8 bits, of which several are added up."""
    layer, x, down, up = made(kind, dtype=torch.float32)
    change = Change(0.7, None, None)
    plain(layer, x, down, up, change).square().sum().backward()
    wanted = [2 * tensor.grad for tensor in (down, up)]
    down, up = nn.Parameter(down.detach()), nn.Parameter(up.detach())
    part = FlatPart({"down": down, "up": up}, dtype)
    numbers, gradients = part.split(part.copy), part.split(part.copy_gradients)
    buffers = Buffers(numbers["down"], numbers["up"], gradients["down"], gradients["up"])
    layer = layer.to(dtype)
    for _ in range(2):
        x = x.detach().to(dtype)  # nothing before the first LoRA wants gradients
        output = with_lora(layer, x, down, up, change._replace(buffers=buffers))
        output.float().square().sum().backward()
        part.collect()
    tolerance = 1e-5 if dtype == torch.float32 else 0.04
    for own, expected in zip((down.grad, up.grad), wanted, strict=True):
        assert own is not None
        assert float((own - expected).norm() / expected.norm()) < tolerance


def test_nothing_is_kept_of_what_no_one_asks_for() -> None:
    layer, x, down, up = made("linear")
    with torch.no_grad():
        assert not with_lora(layer, x, down, up, Change(1.0, None, None)).requires_grad
    frozen = with_lora(layer, x, down.detach(), up.detach(), Change(1.0, None, None))
    frozen.sum().backward()
    torch.testing.assert_close(x.grad, (layer.weight + up @ down).sum(0).expand_as(x))
