"""A layer and its LoRA in one function: against autograd's own gradients, and against the plain formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from lora_train.engine import frozen, fused, lowered
from lora_train.engine.dropout import LayerMasks
from lora_train.engine.flat import gradients
from lora_train.engine.frozen import freeze
from lora_train.engine.network import LoraLayer, LoraNetwork, Target

pytestmark = pytest.mark.compat

KINDS: dict[str, Callable[[], nn.Linear | nn.Conv2d]] = {
    "linear": lambda: nn.Linear(6, 5),
    "linear without bias": lambda: nn.Linear(6, 5, bias=False),
    "convolution 1x1": lambda: nn.Conv2d(6, 5, 1),
    "convolution 1x1, stride 2": lambda: nn.Conv2d(6, 5, 1, stride=2),
    "convolution 3x3": lambda: nn.Conv2d(6, 5, 3, padding=1),
    "convolution 3x3, stride 2": lambda: nn.Conv2d(6, 5, 3, stride=2, padding=1),
    "convolution 3x3, dilation 2": lambda: nn.Conv2d(6, 5, 3, padding=2, dilation=2),
}
RANK, VIEWS, SCALE = 3, 2, 0.75


def made(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A frozen layer, an input that wants a gradient, `down` and `up`."""
    torch.manual_seed(0)
    layer = KINDS[kind]().to(dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    lora = LoraLayer.new(layer, rank=RANK, alpha=2.0, seed=3)
    up = torch.randn(lora.up.shape, generator=generator).to(dtype)
    shape = (VIEWS, 4, 6) if isinstance(layer, nn.Linear) else (VIEWS, 6, 5, 4)
    x = torch.randn(shape, generator=generator).to(dtype)
    return layer, x.requires_grad_(), lora.down.detach().to(dtype).requires_grad_(), up.requires_grad_()


def masks_for(layer: nn.Module) -> LayerMasks:
    """Of every kind of dropout, without the growth, which callers have in the scale."""
    generator = torch.Generator().manual_seed(7)
    inner = torch.rand(VIEWS, RANK * 20, generator=generator) >= 0.3
    return LayerMasks(inner, torch.tensor([[True, False, True], [True, True, False]]), 1.0)


def output(
    layer: Any, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, masks: LayerMasks | None = None
) -> torch.Tensor:
    own = fused.factors_of(layer, down.detach().to(x.dtype), up.detach().to(x.dtype))
    return fused.output(layer, x, (down, up), own, SCALE, masks)


def plain(
    layer: Any, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, masks: LayerMasks | None = None
) -> torch.Tensor:
    """The formula as it is written, one operation after the other; down and up are cast, as x may be half."""
    down, up = down.to(x.dtype), up.to(x.dtype)
    if isinstance(layer, nn.Conv2d):
        inner = functional.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
        return layer(x) + SCALE * functional.conv2d(inner if masks is None else masks.keep(inner, 1), up)
    inner = functional.linear(x, down)
    return layer(x) + SCALE * functional.linear(inner if masks is None else masks.keep(inner, -1), up)


@pytest.mark.parametrize("has_masks", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_gradients_against_finite_differences(kind: str, has_masks: bool) -> None:
    """torch's gradcheck in float64, of x, down and up."""
    layer, *tensors = made(kind)
    masks = masks_for(layer) if has_masks else None
    assert torch.autograd.gradcheck(lambda x, down, up: output(layer, x, down, up, masks), tensors)


@pytest.mark.filterwarnings("ignore:Input #")  # torch warns of what is meant here: float32
@pytest.mark.parametrize("kind", ["linear", "convolution 1x1", "convolution 3x3", "convolution 3x3, stride 2"])
def test_gradients_against_finite_differences_in_float32(kind: str) -> None:
    """Differences of 1e-2 lose about 1e-7 / 1e-2 of a value near 1; the function is linear in each, so no curvature."""
    layer, *tensors = made(kind, torch.float32)
    assert torch.autograd.gradcheck(lambda *own: output(layer, *own), tensors, eps=1e-2, atol=1e-3, rtol=1e-3)


TOLERANCES = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-5, 1e-5), torch.bfloat16: (3e-2, 6e-2)}
"""(relative, absolute): some roundings of each format, at values and sums of about 1 to 10."""


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("kind", list(KINDS))
def test_equals_the_plain_formula(kind: str, dtype: torch.dtype, channels_last: bool) -> None:
    """Outputs, and gradients of x, down and up; with masks and without; masters in float32 beside bfloat16."""
    layer, x, down, up = made(kind, dtype)
    if channels_last:
        if isinstance(layer, nn.Linear):
            pytest.skip("pictures alone have a channel order")
        layer = layer.to(memory_format=torch.channels_last)
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    if dtype == torch.bfloat16:
        down, up = (tensor.detach().float().requires_grad_() for tensor in (down, up))
    rtol, atol = TOLERANCES[dtype]
    for masks in (None, masks_for(layer)):
        found, wanted = output(layer, x, down, up, masks), plain(layer, x, down, up, masks)
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)
        assert found.stride() == layer(x).stride(), "the layout is the base's own"
        direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(5)).to(dtype)
        if channels_last:
            direction = direction.contiguous(memory_format=torch.channels_last)
        ours = torch.autograd.grad(found, (x, down, up), direction)
        theirs = torch.autograd.grad(wanted, (x, down, up), direction)
        for own, their in zip(ours, theirs, strict=True):
            assert own.dtype == their.dtype
            torch.testing.assert_close(own, their, rtol=rtol, atol=atol)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("stored_in", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "convolution" in kind])
def test_deep_convolutions_of_a_cpu_are_products_here_too(
    kind: str, stored_in: torch.dtype, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x, down, up = made(kind, torch.float32)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    layer.weight.data = layer.weight.half().float().to(memory_format=layout)
    x = x.detach().to(memory_format=layout).requires_grad_()
    expected = plain(layer, x, down, up)
    expected_gradients = torch.autograd.grad(expected.square().sum(), (x, down, up))
    layer.weight.data = layer.weight.to(stored_in)
    freeze(layer, torch.float32)
    monkeypatch.setattr(lowered, "_LEAST_WEIGHTS", 0)
    monkeypatch.setattr(frozen, "functional", None)  # the library's own, which is not to be asked
    found = output(layer, x, down, up)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    found_gradients = torch.autograd.grad(found.square().sum(), (x, down, up))
    torch.testing.assert_close(found_gradients, expected_gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", list(KINDS))
def test_layouts_that_do_not_match_are_right_too(kind: str) -> None:
    """An expanded gradient, and an input whose strides are neither layout's."""
    layer, x, down, up = made(kind)
    strange = x.detach().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_()
    ours = torch.autograd.grad(output(layer, strange, down, up).sum(), (strange, down, up))
    theirs = torch.autograd.grad(plain(layer, x, down, up).sum(), (x, down, up))
    for own, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, their)


# --- flat buffers ---


def flat_network(kind: str, dtype: torch.dtype) -> tuple[Any, LoraNetwork, Any, torch.Tensor, LoraLayer]:
    layer, x, _, up = made(kind, dtype)
    ranks = {"linear": (RANK, RANK * SCALE), "conv": (RANK, RANK * SCALE)}
    network = LoraNetwork.new([Target("unet", "mid_block.x", layer)], ranks, 3)
    ((_, lora),) = network.pairs()
    lora.up.data.copy_(up.detach())
    part = network.flatten(["unet"], dtype)["unet"]
    network.attach()
    return layer, network, part, x, lora


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", list(KINDS))
def test_gradients_are_added_to_the_flat_buffer(kind: str, dtype: torch.dtype) -> None:
    """Over two passes; autograd itself is left nothing to do for `down` and `up`."""
    layer, network, part, x, lora = flat_network(kind, dtype)
    part.keep_sums()
    (sums,) = gradients([part])
    places = [tensor.data_ptr() for tensor in (sums, part.copy_gradients, part.weights, part.copy)]
    for _ in range(2):
        layer(x).float().square().sum().backward()
        part.collect()
    network.detach()
    rtol, atol = TOLERANCES[dtype]
    wanted = torch.autograd.grad(2 * plain(layer, x, lora.down, lora.up).float().square().sum(), (lora.down, lora.up))
    size = max(gradient.abs().max().item() for gradient in wanted)
    for parameter, gradient in zip((lora.down, lora.up), wanted, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=rtol, atol=atol * size)
    assert sums.data_ptr() == lora.down.grad.data_ptr()
    tensors = (*gradients([part]), part.copy_gradients, part.weights, part.copy)
    assert [tensor.data_ptr() for tensor in tensors] == places
    part.forget()
    assert not lora.up.grad.any()


@pytest.mark.parametrize("kind", ["linear", "convolution 3x3"])
def test_checkpointing_gives_the_same_gradients(kind: str) -> None:
    layer, network, part, x, _ = flat_network(kind, torch.float32)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for run in (lambda own: layer(own), lambda own: checkpoint(layer, own, use_reentrant=False)):
        (gradient,) = torch.autograd.grad(run(x).square().sum(), x)
        found.append((gradient, part.gradients.clone()))
        part.forget()
    network.detach()
    for plainly, again in zip(*found, strict=True):
        assert plainly.any()
        torch.testing.assert_close(plainly, again)


@pytest.mark.parametrize("kind", ["linear", "convolution 1x1", "convolution 3x3"])
def test_an_input_without_gradient_gets_none(kind: str) -> None:
    layer, network, part, x, _ = flat_network(kind, torch.float32)
    fixed = x.detach()
    layer(fixed).sum().backward()
    assert fixed.grad is None
    assert part.gradients.any()
    with torch.no_grad():
        assert not layer(x).requires_grad
    network.multiplier = 0.0
    assert torch.equal(layer(fixed), type(layer).forward(layer, fixed))
    network.detach()


def test_a_network_that_is_not_trained_passes_gradients_on() -> None:
    layer, x, down, up = made("linear")
    frozen = (down.detach(), up.detach())
    (ours,) = torch.autograd.grad(output(layer, x, *frozen).sum(), x)
    (theirs,) = torch.autograd.grad(plain(layer, x, *frozen).sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_the_copy_follows_when_it_is_told() -> None:
    layer, network, part, x, lora = flat_network("linear", torch.bfloat16)
    with torch.no_grad():
        before = layer(x)
        lora.up.zero_()
        assert torch.equal(layer(x), before)
        part.refresh()
        assert torch.equal(layer(x), type(layer).forward(layer, x))
    network.detach()


# --- what it costs ---


class _Kernels(TorchDispatchMode):
    """Names of the operations, except those that only look at memory in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = [own.alias_info for own in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in returned):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "forward", "backward"),
    [("linear", 3, 5), ("convolution 1x1", 3, 5), ("convolution 3x3", 3, 6)],
)
def test_kernels_are_products_alone(kind: str, forward: int, backward: int) -> None:
    """By hand: base, down, up; back up's gradient, inner, down's gradient, x through the base, x through the LoRA.
    A convolution of torch can't add to what is there: two sums more, but one call for x and weight.
    """
    layer, network, _, x, _ = flat_network(kind, torch.float32)
    with _Kernels() as seen:
        y = layer(x)
    assert len(seen.names) == forward, seen.names
    direction = torch.ones_like(y)
    with _Kernels() as seen:
        torch.autograd.grad(y, x, direction)
    assert len(seen.names) == backward, seen.names
    network.detach()
