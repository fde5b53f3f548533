"""What the lean UNet is made of: gradients proven against autograd's, layouts, and joined layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import nn

from lora_train.engine.activations import gated_gelu, norm_silu
from lora_train.engine.joint import JointProduct

pytestmark = pytest.mark.compat


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def check_gradient(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    """Along some directions, against differences (torch's gradcheck goes back several times, which is refused here)."""
    step = 1e-6
    weights = torch.randn_like(function(x))
    (found,) = torch.autograd.grad(function(x.requires_grad_() * 1), x, weights)
    with torch.no_grad():
        for _ in range(20):
            direction = torch.randn_like(x)
            difference = function(x + step * direction) - function(x - step * direction)
            wanted = (difference * weights).sum() / (2 * step)
            torch.testing.assert_close((found * direction).sum(), wanted, rtol=1e-6, atol=1e-8)


# --- gated GELU ---


def plain_gated_gelu(projected: torch.Tensor) -> torch.Tensor:
    hidden, gate = projected.chunk(2, dim=-1)
    return hidden * functional.gelu(gate)


def test_gated_gelu_has_the_right_gradient() -> None:
    x = numbers(2, 3, 8)
    assert torch.equal(gated_gelu(x), plain_gated_gelu(x))
    check_gradient(gated_gelu, x)


def test_a_second_way_back_is_refused() -> None:
    """As the first one writes over what it was given."""
    output = gated_gelu(numbers(2, 3, 8).requires_grad_() * 1).sum()
    output.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_gelu_equals_autograd_bit_for_bit(dtype: torch.dtype) -> None:
    x, grad = numbers(2, 5, 64, dtype=dtype).requires_grad_(), numbers(2, 5, 32, dtype=dtype)
    (found,) = torch.autograd.grad(gated_gelu(x * 1), x, grad)
    (wanted,) = torch.autograd.grad(plain_gated_gelu(x), x, grad)
    assert torch.equal(found, wanted)
    with torch.no_grad():
        assert torch.equal(gated_gelu(x), plain_gated_gelu(x))


# --- norm and SiLU ---


def a_norm(dtype: torch.dtype = torch.float64) -> nn.GroupNorm:
    norm = nn.GroupNorm(2, 6, eps=1e-3).to(dtype).requires_grad_(False)
    norm.weight.copy_(numbers(6) + 2)
    norm.bias.copy_(numbers(6).flip(0))
    return norm


def test_norm_silu_has_the_right_gradient() -> None:
    norm = a_norm()
    x = numbers(2, 6, 3, 4)
    torch.testing.assert_close(norm_silu(norm, x), functional.silu(norm(x)), rtol=0, atol=0)
    check_gradient(lambda x: norm_silu(norm, x), x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_silu_equals_autograd(dtype: torch.dtype, layout: torch.memory_format) -> None:
    norm = a_norm(dtype)
    x = numbers(2, 6, 8, 5, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    grad = numbers(2, 6, 8, 5, dtype=dtype)
    found, wanted = norm_silu(norm, x), functional.silu(norm(x))
    assert torch.equal(found, wanted)
    assert found.stride() == x.stride()
    for own, theirs in zip(torch.autograd.grad(found, x, grad), torch.autograd.grad(wanted, x, grad), strict=True):
        torch.testing.assert_close(own, theirs)


def test_norm_silu_copies_between_layouts_once_where_kernels_want_them() -> None:
    """As on CUDA, whose choices the meta device shares: pictures come in with the channels of a pixel side by side."""
    from torch.utils._python_dispatch import TorchDispatchMode

    copies: list[str] = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            copies.extend([str(func)] if "clone" in str(func) or "copy" in str(func) else [])
            return func(*args, **(kwargs or {}))

    norm = a_norm().to("meta")
    x = torch.empty(2, 6, 8, 5, device="meta", dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    grad = torch.empty_like(x)
    with Copies():
        output = norm_silu(norm, x.requires_grad_())
        torch.autograd.grad(output, x, grad)
    assert output.stride() == x.stride()
    assert copies == ["aten.clone.default"]


# --- joined layers ---


def test_joined_layers_are_what_they_were() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, size) for size in (3, 5, 2)]
    weights = [layer.weight.clone() for layer in layers]
    x = torch.randn(4, 7, 6)
    wanted = [layer(x) for layer in layers]
    shared = JointProduct(layers)(x)
    assert all(output is not None for output in shared.outputs)
    for place, layer in enumerate(layers):
        torch.testing.assert_close(shared.output(place, layer), wanted[place])
        assert torch.equal(layer.weight, weights[place])
        torch.testing.assert_close(layer(x), wanted[place])
    storages = {layer.weight.untyped_storage().data_ptr() for layer in layers}
    assert len(storages) == 1, "the weights are in memory once"


def test_layers_that_are_unlike_are_left_alone() -> None:
    torch.manual_seed(0)
    with_lora = nn.Linear(6, 4)
    with_lora.forward = lambda x: x[..., :4]
    layers = [nn.Linear(6, 3), nn.Linear(6, 3).double(), with_lora, nn.Linear(6, 3, bias=False), nn.Linear(6, 2)]
    x = torch.randn(4, 6)
    shared = JointProduct(layers)(x)
    assert [output is not None for output in shared.outputs] == [True, False, False, False, True]
    assert torch.equal(shared.output(2, with_lora), x[..., :4])


def test_layers_that_change_are_asked_themselves() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 3) for _ in range(3)]
    product, x = JointProduct(layers), torch.randn(4, 6)
    layers[1].weight = nn.Parameter(torch.zeros(3, 6))
    layers[2].forward = lambda x: x[..., :3]
    shared = product(x)
    assert [output is not None for output in shared.outputs] == [True, False, False]
    assert torch.equal(shared.output(1, layers[1]), layers[1].bias.expand(4, 3))
    assert torch.equal(shared.output(2, layers[2]), x[..., :3])


def test_a_single_layer_is_not_joined() -> None:
    layer = nn.Linear(6, 3)
    own = layer.weight.data_ptr()
    shared = JointProduct([layer])(torch.ones(1, 6))
    assert shared.outputs == (None,)
    assert layer.weight.data_ptr() == own
