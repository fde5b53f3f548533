"""The LoRA on its layers: which ones, attached and detached, and that it equals a merged weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lora_train.engine.network import (
    LoraLayer,
    LoraNetwork,
    Target,
    block_group,
    text_encoder_targets,
    unet_targets,
)

pytestmark = pytest.mark.compat

ATTENTION_BLOCKS = [
    *(f"down_blocks.{level}.attentions.{index}" for level in range(3) for index in range(2)),
    "mid_block.attentions.0",
    *(f"up_blocks.{level}.attentions.{index}" for level in range(1, 4) for index in range(3)),
]
LAYERS_OF_A_BLOCK = ["proj_in", "proj_out"] + [
    f"transformer_blocks.0.{layer}"
    for layer in (
        *(f"attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")),
        "ff.net.0.proj",
        "ff.net.2",
    )
]
LAYERS_OF_TEXT = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
]
"""The children of attention blocks and text layers that kohya's LoRA has on Stable Diffusion 1.x."""

RANKS = {"linear": (4, 2.0), "conv": (2, 1.0)}


@pytest.fixture(scope="module")
def full_size() -> Any:
    """UNet and text encoder of Stable Diffusion 1.5, without memory for their weights."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
            )
        )
    return unet, text


# --- which layers ---


def test_modules_of_the_attention_blocks(full_size: Any) -> None:
    targets = unet_targets(full_size[0], with_convolutions=False)
    names = {target.name for target in targets}
    assert names == {f"{block}.{layer}" for block in ATTENTION_BLOCKS for layer in LAYERS_OF_A_BLOCK}
    assert len(targets) == 192
    assert {target.part for target in targets} == {"unet"}


def test_modules_with_convolutions(full_size: Any) -> None:
    attention = {target.name for target in unet_targets(full_size[0], with_convolutions=False)}
    targets = unet_targets(full_size[0], with_convolutions=True)
    added = [target for target in targets if target.name not in attention]
    assert (len(targets), len(added)) == (278, 86)
    kernels = [t.layer.kernel_size for t in added if isinstance(t.layer, nn.Conv2d)]
    assert kernels.count((3, 3)) == 50
    assert all(part not in target.name for target in targets for part in ("conv_in", "conv_out"))


def test_modules_of_the_text_encoder(full_size: Any) -> None:
    targets = text_encoder_targets(full_size[1])
    assert {target.name for target in targets} == {
        f"text_model.encoder.layers.{layer}.{name}" for layer in range(12) for name in LAYERS_OF_TEXT
    }
    assert len(targets) == 72


def test_ranks_by_kind_of_layer(full_size: Any) -> None:
    targets = unet_targets(full_size[0], with_convolutions=True)
    network = LoraNetwork.new(targets, {"linear": (5, 3.0), "conv": (2, 1.0)}, seed=1)
    for target, lora in network.pairs():
        is_large = getattr(target.layer, "kernel_size", (1, 1)) == (3, 3)
        assert (lora.down.shape[0], lora.alpha) == ((2, 1.0) if is_large else (5, 3.0)), target.name


def test_ranks_by_block_group(full_size: Any) -> None:
    """Of a full-size model: 6 attention blocks of 12 layers before, 1 in the middle, 9 after; 72 layers of text."""
    targets = unet_targets(full_size[0], with_convolutions=True) + text_encoder_targets(full_size[1])
    groups = Counter(block_group(target) for target in targets if ".attentions." in target.name)
    assert groups == {"input": 72, "middle": 12, "output": 108}
    assert Counter(block_group(target) for target in targets)["text_encoder"] == 72
    ranks = {"linear": (9, 9.0), "conv": (2, 1.0), "input": (3, 1.0), "middle": (4, 2.0), "text_encoder": (5, 5.0)}
    network = LoraNetwork.new(targets, ranks, seed=1)
    for target, lora in network.pairs():
        group = "conv" if getattr(target.layer, "kernel_size", (1, 1)) == (3, 3) else block_group(target)
        assert (lora.rank, lora.alpha) == ranks.get(group, (9, 9.0)), target.name


# --- the numbers at the start ---


def test_down_is_drawn_from_kaiming_uniform() -> None:
    """As torch's own `kaiming_uniform_(a=sqrt 5)`, whose bound is 1 / sqrt(inputs)."""
    layer = nn.Conv2d(40, 8, 3)
    down = LoraLayer.new(layer, rank=64, alpha=1.0, seed=1).down.detach()
    theirs = nn.init.kaiming_uniform_(torch.empty(down.shape), a=math.sqrt(5))
    bound = 1 / math.sqrt(40 * 9)
    assert theirs.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert bound * 0.999 < down.abs().max().item() <= bound
    # 23040 uniform numbers: the standard errors of mean and spread are below 0.7 % of the bound.
    assert abs(down.mean().item()) < 0.03 * bound
    assert down.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_first_weights_depend_on_seed_and_name_alone(small_model: Any) -> None:
    targets = unet_targets(small_model.unet, with_convolutions=False)
    network = LoraNetwork.new(targets, RANKS, seed=1)
    some = LoraNetwork.new(targets[7:3:-1], RANKS, seed=1)
    for name, tensor in some.tensors().items():
        assert torch.equal(tensor, network.tensors()[name])
    other = LoraNetwork.new(targets, RANKS, seed=2)
    drawn = [(name, tensor) for name, tensor in network.tensors().items() if name.endswith("down")]
    assert not any(torch.equal(tensor, other.tensors()[name]) for name, tensor in drawn)
    same_shape = [tensor for _, tensor in drawn if tensor.shape == drawn[1][1].shape]
    assert len({tuple(tensor.flatten().tolist()) for tensor in same_shape}) == len(same_shape)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


# --- attached = merged ---


def _layers() -> dict[str, nn.Linear | nn.Conv2d]:
    torch.manual_seed(0)
    return {
        "linear": nn.Linear(6, 5),
        "linear without bias": nn.Linear(6, 5, bias=False),
        "convolution 1x1": nn.Conv2d(6, 5, 1),
        "convolution 3x3": nn.Conv2d(6, 5, 3, padding=1),
        "convolution 3x3, stride 2": nn.Conv2d(6, 5, 3, stride=2, padding=1),
    }


def _input_for(layer: nn.Linear | nn.Conv2d) -> torch.Tensor:
    shape = (2, 7, 6) if isinstance(layer, nn.Linear) else (2, 6, 9, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _trained(layer: nn.Linear | nn.Conv2d) -> LoraNetwork:
    network = LoraNetwork.new([Target("unet", "x", layer)], {"linear": (3, 2.0), "conv": (3, 2.0)}, 1)
    generator = torch.Generator().manual_seed(2)
    for _, lora in network.pairs():
        lora.up.data.normal_(generator=generator)
    return network.requires_grad_(False)


@pytest.mark.parametrize("multiplier", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", list(_layers()))
@torch.no_grad()
def test_attached_equals_merged(kind: str, multiplier: float) -> None:
    layer = _layers()[kind]
    x = _input_for(layer)
    network = _trained(layer)
    network.multiplier = multiplier
    network.attach()
    attached = layer(x)
    network.detach()
    base = layer(x)
    (_, lora), *_ = network.pairs()
    layer.weight += multiplier * lora.delta_weight()
    torch.testing.assert_close(attached, layer(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(attached, base) == (multiplier == 0)


def test_delta_weight_by_hand() -> None:
    """rank 1, alpha 3: 3 * up x down."""
    lora = LoraLayer(torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0], [-1.0]]), 3.0)
    assert lora.delta_weight().tolist() == [[15.0, 30.0], [-3.0, -6.0]]


@torch.no_grad()
def test_whole_model_attached_equals_merged(load_small: Callable[[], Any], make_lora: Callable[..., Any]) -> None:
    model = load_small()
    network = make_lora(model, convolutions=True)
    network.multiplier = 0.7
    base = _outputs(model)
    network.attach()
    attached = _outputs(model)
    network.detach()
    for target, lora in network.pairs():
        target.layer.weight += 0.7 * lora.delta_weight()
    merged = _outputs(model)
    for one, other, without in zip(attached, merged, base, strict=True):
        difference = (one - other).abs().max()
        assert difference < 1e-4 * other.abs().max()
        assert difference < 1e-3 * (one - without).abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_computes_in_the_format_of_the_base(dtype: torch.dtype) -> None:
    layer = nn.Linear(6, 5).to(dtype)
    network = _trained(layer)
    network.attach()
    assert layer(torch.ones(1, 6, dtype=dtype)).dtype == dtype
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


# --- attach and detach ---


@torch.no_grad()
def _outputs(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the UNet and the text encoder make of fixed random inputs."""
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 77, 64, generator=generator)
    ids = torch.randint(0, 49000, (2, 77), generator=generator)
    noise = model.unet(latents, torch.tensor([3, 900]), text).sample
    return noise, model.text_encoders[0](ids).last_hidden_state


def _weights(model: Any) -> dict[str, torch.Tensor]:
    parts = {"unet": model.unet, "text": model.text_encoders[0]}
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def _instance_forwards(model: Any) -> list[str]:
    parts = (model.unet, model.text_encoders[0])
    return [name for part in parts for name, own in part.named_modules() if "forward" in vars(own)]


def test_detached_model_is_bit_identical(small_model: Any, make_lora: Callable[..., Any]) -> None:
    weights, outputs = _weights(small_model), _outputs(small_model)
    network = make_lora(small_model, convolutions=True)
    network.attach()
    attached = _outputs(small_model)
    assert not torch.equal(attached[0], outputs[0])
    assert not torch.equal(attached[1], outputs[1])
    assert _weights(small_model).keys() == weights.keys(), "a state dict names the base's tensors only"
    network.detach()
    assert _instance_forwards(small_model) == []
    after = _weights(small_model)
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    for one, other in zip(_outputs(small_model), outputs, strict=True):
        assert torch.equal(one, other)


def test_untrained_network_changes_nothing(small_model: Any) -> None:
    outputs = _outputs(small_model)
    targets = unet_targets(small_model.unet, with_convolutions=True)
    network = LoraNetwork.new(targets + text_encoder_targets(small_model.text_encoders[0]), RANKS, seed=1)
    network.attach()
    try:
        for one, other in zip(_outputs(small_model), outputs, strict=True):
            assert torch.equal(one, other)
    finally:
        network.detach()


def test_second_network_is_refused_and_changes_nothing() -> None:
    layers = [nn.Linear(6, 5) for _ in range(3)]
    targets = [Target("unet", f"layer {index}", layer) for index, layer in enumerate(layers)]
    first = LoraNetwork.new(targets[1:], RANKS, seed=1)
    second = LoraNetwork.new(targets, RANKS, seed=2)
    first.attach()
    with pytest.raises(RuntimeError, match="layer 1 has a LoRA attached already"):
        second.attach()
    with pytest.raises(RuntimeError, match="attached already"):
        first.attach()
    assert ["forward" in vars(layer) for layer in layers] == [False, True, True]
    first.detach()
    assert not any("forward" in vars(layer) for layer in layers)
    first.detach()  # once more is harmless


@pytest.mark.parametrize("is_flat", [False, True])
def test_parameters_by_part_and_their_gradients(load_small: Callable[[], Any], is_flat: bool) -> None:
    model = load_small()
    targets = unet_targets(model.unet, with_convolutions=False)
    network = LoraNetwork.new(targets + text_encoder_targets(model.text_encoders[0]), RANKS, seed=1)
    if is_flat:
        parts = network.flatten(("unet", "text_encoder", "text_encoder_2"), torch.float32)
        unet, text = ([*part.parameters.values()] for part in parts.values())
        assert (len(unet), len(text)) == (2 * 192, 2 * 2 * 6)
        assert {id(p) for p in unet + text} == {id(p) for p in network.parameters()}
    network.attach()
    ids = torch.tensor([[49406, *range(320, 395), 49407]])
    hidden = model.text_encoders[0](ids).last_hidden_state
    noise = model.unet(torch.ones(1, 4, 16, 16), torch.tensor([500]), hidden).sample
    noise.square().mean().backward()
    ups = [lora.up for target, lora in network.pairs() if target.part == "unet"]
    assert all(up.grad is not None and bool(up.grad.any()) for up in ups)
    texts = [lora.up for target, lora in network.pairs() if target.part == "text_encoder"]
    assert all(up.grad is not None and bool(up.grad.any()) for up in texts)
    frozen = [*model.unet.parameters(), *model.text_encoders[0].parameters()]
    assert all(parameter.grad is None for parameter in frozen)
