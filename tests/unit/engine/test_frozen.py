"""The base model's weights packed in 8 bits, in main memory, or both: what a UNet computes, and its gradients."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_train.core.assets import DEMO_MODEL
from lora_train.core.errors import ConfigError
from lora_train.core.memory import Checkpointing
from lora_train.core.memory_settings import BaseWeights
from lora_train.engine import lowered, quantised
from lora_train.engine.checkpointing import checkpoint_blocks, checkpointed
from lora_train.engine.denoiser import predict
from lora_train.engine.frozen import FrozenConv2d, FrozenLinear, block_layers, freeze, unpack
from lora_train.engine.loading import load_base_model
from lora_train.engine.offload import Offload
from lora_train.engine.quantised import pack, quantise, require_kind
from lora_train.engine.text import Embeddings

pytestmark = pytest.mark.compat

PACKED: list[BaseWeights] = ["int8", "fp8"]
WORST_ERROR = {"int8": 0.005, "fp8": 0.02}
"""Relative, of the demo model's prediction. Measured in fp32: int8 0.0020, fp8 0.0109."""


@pytest.fixture
def late_mover(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "assets")
    return importlib.import_module("movers").LateMover()


def demo_unet(kind: BaseWeights = "full", dtype: torch.dtype = torch.float32, path: Path = DEMO_MODEL) -> Any:
    model = load_base_model(path, vae_path=None, device=torch.device("cpu"), dtype=dtype, base_weights=kind)
    return model.unet


def inputs(unet: Any, views: int = 2) -> tuple[torch.Tensor, torch.Tensor, Embeddings]:
    generator = torch.Generator().manual_seed(5)
    noisy = torch.randn(views, 4, 8, 8, generator=generator)
    text = torch.randn(views, 77, unet.config.cross_attention_dim, generator=generator)
    return noisy, torch.tensor([40, 900][:views]), Embeddings(text, None)


def prediction(unet: Any) -> torch.Tensor:
    with torch.no_grad():
        return predict(unet, *inputs(unet), None, None).float()


def learned(unet: Any, make_lora: Callable[..., Any]) -> dict[str, torch.Tensor]:
    """The LoRA's gradients."""

    class Model:
        text_encoders = ()

    model: Any = Model()
    model.unet = unet
    network = make_lora(model, convolutions=True)
    network.requires_grad_(True)
    network.attach()
    try:
        predict(unet, *inputs(unet), None, None).square().mean().backward()
    finally:
        network.detach()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("shape", [(6, 10), (6, 4, 3, 3)])
@pytest.mark.parametrize("kind", PACKED)
def test_packing_rounds_and_no_more(kind: BaseWeights, shape: tuple[int, ...]) -> None:
    """int8: to half of 1/127 of the channel's largest. fp8: to 1/16 of the number itself, having 3 bits behind the
    first, or, of the smallest numbers, half a step of 2^-9 of the scale."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight[2] *= 1e-3
    weight[3] = 0
    stored, scale = pack(weight, kind)
    assert stored.element_size() == 1
    assert stored.shape == weight.shape
    assert scale.shape == (6, *[1] * (len(shape) - 1))
    error = (unpack(stored, scale, torch.float32) - weight).abs()
    bound = scale / 2 if kind == "int8" else torch.maximum(weight.abs() / 16, scale * 2**-10)
    assert bool((error <= bound * 1.0001).all())
    assert bool((error[3] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_model_predicts_nearly_the_same(kind: BaseWeights, dtype: torch.dtype) -> None:
    """And the same to the bit, whether it was packed while it was read or later."""
    plain, packed, later = demo_unet(dtype=dtype), demo_unet(kind, dtype), demo_unet(dtype=dtype)
    quantise(later, kind)
    expected, found = prediction(plain), prediction(packed)
    assert torch.equal(found, prediction(later))
    error = ((found - expected).norm() / expected.norm()).item()
    assert 0 < error < WORST_ERROR[kind]
    assert packed.dtype == dtype  # as diffusers tells it, and asks for
    kept = {name for name, parameter in packed.named_parameters() if parameter.dtype == dtype and parameter.dim() > 1}
    assert {name.split(".")[0] for name in kept} == {"conv_in", "conv_out", "time_embedding"}


@pytest.mark.parametrize("lies_in", [torch.float16, torch.bfloat16])
def test_what_stays_in_the_16_bits_of_its_file_is_computed_with_as_before(
    monkeypatch: pytest.MonkeyPatch, make_lora: Callable[..., Any], tmp_path: Path, lies_in: torch.dtype
) -> None:
    """As it is done on a CPU with layers that are larger than the demo model's."""
    path = tmp_path / "half.safetensors"
    tensors = load_file(DEMO_MODEL)
    save_file({name: own.to(lies_in) if own.is_floating_point() else own for name, own in tensors.items()}, path)
    plain = demo_unet(path=path)
    monkeypatch.setattr(lowered, "_LEAST_WEIGHTS", 2000)
    half, packed = demo_unet(path=path), demo_unet(path=path)
    kept = {name for name, own in half.named_parameters() if own.dtype == lies_in}
    large = {name for name, own in block_layers(plain) if isinstance(own, nn.Conv2d) and own.weight.numel() >= 2000}
    assert kept == {f"{name}.weight" for name in large}
    assert all(torch.equal(own.float(), plain.get_parameter(name)) for name, own in half.named_parameters())
    assert half.dtype == torch.float32
    torch.testing.assert_close(prediction(half), prediction(plain), atol=1e-6, rtol=1e-4)
    assert_same(learned(half, make_lora), learned(plain, make_lora))
    monkeypatch.setattr(lowered, "_MOST_PLACES", 0)
    torch.testing.assert_close(prediction(half), prediction(plain), atol=1e-6, rtol=1e-4)
    assert_same(learned(half, make_lora), learned(plain, make_lora))
    quantise(packed, "int8")
    quantise(plain, "int8")
    assert torch.equal(prediction(packed), prediction(plain))


@pytest.mark.parametrize("kind", PACKED)
def test_gradients_are_those_of_the_unpacked_weights(kind: BaseWeights, make_lora: Callable[..., Any]) -> None:
    packed, plain = demo_unet(kind), demo_unet()
    packed_layers = dict(block_layers(packed))
    for name, layer in block_layers(plain):
        layer.weight.data = packed_layers[name].unpacked_weight()
    assert_same(learned(packed, make_lora), learned(plain, make_lora))


def test_no_unpacked_weight_is_kept_for_the_backward_pass() -> None:
    layer = nn.Linear(8, 4)
    layer.requires_grad_(False)
    freeze(layer, torch.float32)
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.ones(2, 8, requires_grad=True))
    assert not saved


@pytest.mark.parametrize(
    ("made", "x"),
    [
        (lambda: nn.Linear(6, 4), torch.randn(2, 3, 6)),
        (lambda: nn.Linear(6, 4, bias=False), torch.randn(2, 6)),
        (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1), torch.randn(2, 6, 8, 8)),
        (lambda: nn.Conv2d(6, 4, 1), torch.randn(2, 6, 8, 8)),
    ],
)
def test_a_frozen_layer_is_the_layer(made: Callable[[], Any], x: torch.Tensor) -> None:
    plain = made().requires_grad_(False)
    frozen = made().requires_grad_(False)
    frozen.load_state_dict(plain.state_dict())
    freeze(frozen, torch.float32)
    assert isinstance(frozen, (FrozenLinear, FrozenConv2d))
    found: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for layer in (plain, frozen):
        own = x.clone().requires_grad_(True)
        output = layer(own)
        output.square().sum().backward()
        found.append((output.detach(), own.grad))
    torch.testing.assert_close(found[0], found[1])


def test_what_torch_cannot_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("not implemented for 'Float8_e4m3fn'")

    require_kind("fp8", torch.device("cpu"), torch.float32)
    monkeypatch.setattr(quantised, "pack", fails)
    require_kind("full", torch.device("cpu"), torch.float32)
    with pytest.raises(ConfigError, match=r"no fp8 on this device \(cpu\); choose int8 or full"):
        require_kind("fp8", torch.device("cpu"), torch.float32)


# --- checkpointing ---


@pytest.mark.parametrize("which", ["some", "all"])
def test_checkpoints_change_no_gradient(which: Checkpointing, make_lora: Callable[..., Any]) -> None:
    unet = demo_unet()
    expected = learned(unet, make_lora)
    checkpoint_blocks(unet, which)
    count = len(checkpointed(unet))
    assert count > 0
    seen: list[int] = []
    hook = unet.up_blocks[-1].resnets[0].register_forward_pre_hook(lambda *_: seen.append(1))
    assert_same(learned(unet, make_lora), expected)
    assert len(seen) == 2, "once forward, and once more in the backward pass"
    seen.clear()
    checkpoint_blocks(unet, "none")
    assert not checkpointed(unet)
    assert_same(learned(unet, make_lora), expected)
    assert len(seen) == 1
    hook.remove()


def test_some_are_the_up_blocks(small_model: Any) -> None:
    unet = small_model.unet
    try:
        checkpoint_blocks(unet, "all")
        everything = set(checkpointed(unet))
        checkpoint_blocks(unet, "some")
        some = set(checkpointed(unet))
    finally:
        checkpoint_blocks(unet, "none")
    assert some == everything & {*unet.up_blocks.modules()}
    assert unet.up_blocks[-1] in some
    assert some < everything


# --- main memory ---


@pytest.fixture
def small_unets(load_small: Callable[[], Any]) -> Iterator[tuple[Any, Any]]:
    return load_small().unet, load_small().unet


@pytest.mark.parametrize("which", ["none", "some", "all"])
@pytest.mark.parametrize("kind", ["full", "int8"])
def test_weights_in_main_memory_are_there_when_they_are_needed(
    small_unets: Any, late_mover: Any, make_lora: Callable[..., Any], which: Checkpointing, kind: BaseWeights
) -> None:
    plain, unet = small_unets
    quantise(plain, kind)
    quantise(unet, kind)
    offload = Offload(unet, late_mover)
    offload.take(0.6)
    checkpoint_blocks(plain, which)
    checkpoint_blocks(unet, which)
    for _ in range(2):
        assert_same(learned(unet, make_lora), learned(plain, make_lora))
        assert torch.equal(prediction(unet), prediction(plain))


@pytest.mark.parametrize("which", ["none", "all"])
def test_units_are_fetched_ahead_of_need(
    load_small: Callable[[], Any], late_mover: Any, make_lora: Callable[..., Any], which: Checkpointing
) -> None:
    """From the second step on, when their order is known; blocks that are computed again make a few guesses wrong."""
    unet = load_small().unet
    Offload(unet, late_mover).take(0.6)
    checkpoint_blocks(unet, which)
    learned(unet, make_lora)
    learned(unet, make_lora)
    late_mover.copies = late_mover.ahead = 0
    learned(unet, make_lora)
    assert late_mover.copies > 20
    assert late_mover.ahead / late_mover.copies > (0.95 if which == "none" else 0.6)


def test_shares_grow_and_can_be_packed_later(small_unets: Any, late_mover: Any, make_lora: Callable[..., Any]) -> None:
    plain, unet = small_unets
    whole = sum(parameter.nbytes for parameter in unet.parameters())
    offload = Offload(unet, late_mover)
    waiting = []
    for share in (0.3, 0.6):
        offload.take(share)
        waiting.append(offload.waiting_bytes)
        assert share * whole <= offload.waiting_bytes < (share + 0.2) * whole
        torch.testing.assert_close(prediction(unet), prediction(plain))
    quantise(unet, "int8")
    offload.take(0.6)
    quantise(plain, "int8")
    assert_same(learned(unet, make_lora), learned(plain, make_lora))
    offload.take(1.0)
    assert torch.equal(prediction(unet), prediction(plain))
