"""Convolutions as products, against torch's own."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from lora_train.engine import lowered
from lora_train.engine.frozen import convolved, freeze

pytestmark = pytest.mark.compat

FP32 = torch.float32


@pytest.mark.parametrize("stored_in", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize(
    "window",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (3, 1), "padding": (1, 0), "dilation": (2, 1)},
        {"kernel_size": 1},
    ],
)
def test_it_is_the_convolution(
    monkeypatch: pytest.MonkeyPatch,
    window: dict[str, int],
    pictures: int,
    bias: bool,
    layout: torch.memory_format,
    stored_in: torch.dtype,
) -> None:
    monkeypatch.setattr(lowered, "_LEAST_WEIGHTS", 0)
    monkeypatch.setattr(lowered, "_ROWS_AT_ONCE", 3)
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 7, bias=bias, **window).requires_grad_(False).to(memory_format=layout)
    plain.weight.data = plain.weight.to(stored_in).float()
    layer = copy.deepcopy(plain)
    layer.weight.data = plain.weight.to(stored_in)
    freeze(layer, torch.float32)
    x = torch.randn(pictures, 5, 4, 6, requires_grad=True)
    assert lowered.is_better_lowered(layer, layer.weight, x.shape, x.dtype) or pictures == 3
    expected = plain(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(lowered, "_MOST_PLACES", 1000)
    y = convolved(layer, x)
    assert y.is_contiguous(memory_format=layout) or window == {"kernel_size": 1}, "where both are the same"
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)  # float32, in another order of sums
    grad = torch.randn_like(expected)
    (own,), (theirs,) = torch.autograd.grad(y, x, grad), torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("own", "computes_in", "device", "may"),
    [
        (torch.float16, torch.float32, "cpu", True),
        (torch.bfloat16, torch.float32, "cpu", True),
        (torch.float32, torch.float32, "cpu", False),
        (torch.float8_e4m3fn, torch.float32, "cpu", False),
        (torch.float16, torch.bfloat16, "cpu", False),
        (torch.float16, torch.float32, "cuda", False),
    ],
)
def test_weights_in_16_bits_stay_so_on_a_cpu(
    own: torch.dtype, computes_in: torch.dtype, device: str, may: bool
) -> None:
    with torch.device("meta"):
        large, small = nn.Conv2d(1280, 1280, 3, padding=1), nn.Conv2d(640, 640, 3, padding=1)
        layers = [small, nn.Linear(4096, 4096), nn.Conv2d(1280, 1280, 3, padding="same")]
    assert lowered.may_stay_half(large, own, computes_in, torch.device(device)) == may
    assert not any(lowered.may_stay_half(layer, own, computes_in, torch.device(device)) for layer in layers)


def test_for_large_weights_and_few_places_in_float32_alone() -> None:
    """As in the middle of SD 1.5 at 256 px; weights without numbers, as none are looked at."""
    with torch.device("meta"):
        weight = torch.empty(1280, 1280, 3, 3)
        layer = nn.Conv2d(1280, 1280, 3, padding=1)
    here = torch.empty(1280, 1280, 3, 3)  # 59 MB that nobody touches
    assert lowered.is_better_lowered(layer, here, torch.Size((1, 1280, 8, 8)), FP32)
    assert not lowered.is_better_lowered(layer, weight, torch.Size((1, 1280, 8, 8)), FP32), "another device"
    assert not lowered.is_better_lowered(layer, here, torch.Size((2, 1280, 8, 8)), FP32)
    assert not lowered.is_better_lowered(layer, here, torch.Size((1, 1280, 8, 8)), torch.bfloat16)
    strange = torch.empty(1280, 3, 1280, 3).transpose(1, 2)
    assert not lowered.is_better_lowered(layer, strange, torch.Size((1, 1280, 8, 8)), FP32)
    grouped = nn.Conv2d(1280, 1280, 3, padding="same", device="meta")
    assert not lowered.is_better_lowered(grouped, here, torch.Size((1, 1280, 8, 8)), FP32)
    assert not lowered.is_better_lowered(nn.Conv2d(8, 8, 3), torch.empty(8, 8, 3, 3), torch.Size((1, 8, 8, 8)), FP32)
