"""The lean UNet is diffusers' own in numbers and gradients, with fewer kernels, and can be taken back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lora_train.engine.fast_unet import FastUnet, is_plain
from lora_train.engine.network import LoraNetwork, unet_targets
from lora_train.engine.random_model import SD1, SDXL, Sizes, checkpoint_shapes
from lora_train.engine.topology import Hints, unet_config

pytestmark = pytest.mark.compat

FAMILIES = ["sd1", "sd2", "sdxl", "sd2-inpaint"]


@contextmanager
def fast(unet: Any) -> Iterator[FastUnet]:
    lean = FastUnet(unet)
    lean.attach()
    try:
        yield lean
    finally:
        lean.detach()


@contextmanager
def attached(network: LoraNetwork) -> Iterator[None]:
    network.attach()
    try:
        yield
    finally:
        network.detach()


def inputs(unet: Any, dtype: torch.dtype = torch.float32, side: int = 16) -> dict[str, Any]:
    """What the UNet is called with: 2 views, 7 tokens of text."""
    config, generator = unet.config, torch.Generator().manual_seed(4)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    given: dict[str, Any] = {
        "sample": draw(2, config.in_channels, side, side),
        "timestep": torch.tensor([3, 900]),
        "encoder_hidden_states": draw(2, 7, config.cross_attention_dim),
    }
    if config.addition_embed_type:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = torch.tensor([[700.0, 1023, 0, 31, 64, 64], [64, 64, 0, 0, 64, 64]])
        given["added_cond_kwargs"] = {"text_embeds": draw(2, pooled), "time_ids": sizes}
    return given


def gradients(unet: Any, network: LoraNetwork | None = None, **options: Any) -> dict[str, torch.Tensor]:
    """The prediction, and the gradients of the picture, the text and the network."""
    given = inputs(unet, **options)
    wanted = {"sample": given["sample"], "text": given["encoder_hidden_states"]}
    if network is not None:
        wanted |= network.tensors()
    for tensor in wanted.values():
        tensor.requires_grad_()
    output = unet(**given).sample
    found = torch.autograd.grad(output.float().square().mean(), list(wanted.values()))
    return {"output": output.detach(), **dict(zip(wanted, found, strict=True))}


def assert_alike(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    """Differences are measured against the largest number of a tensor.

    Where a group of a norm is one channel, the norm takes out the time's shift: its gradient is none but for errors of
    rounding, which are below a millionth of the largest gradient.
    """
    largest = max(tensor.abs().max() for name, tensor in wanted.items() if name != "output")
    for name, tensor in wanted.items():
        difference = (found[name].double() - tensor.double()).abs().max()
        is_none = "time_emb_proj" in name and tensor.abs().max() < 1e-6 * largest
        assert difference <= (1e-6 * largest if is_none else tolerance * tensor.abs().max()), name


# --- the same numbers ---


@pytest.mark.parametrize("convolutions", [None, False, True], ids=["bare", "lora", "lora with convolutions"])
@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_and_gradients_are_the_plain_ones(
    family: str, convolutions: bool | None, model_of: Callable[[str], Any], make_lora: Callable[..., Any]
) -> None:
    """float32: sums in another order differ by some 1e-6 of the largest gradient, after all of 70 layers."""
    model = model_of(family)
    if convolutions is None:
        wanted = gradients(model.unet)
        with fast(model.unet):
            found = gradients(model.unet)
        assert_alike(found, wanted, 1e-5)
        return
    network = LoraNetwork(
        (target, lora) for target, lora in make_lora(model, convolutions=convolutions).pairs() if target.part == "unet"
    )
    with attached(network):
        wanted = gradients(model.unet, network)
        with fast(model.unet):
            found = gradients(model.unet, network)
    assert_alike(found, wanted, 1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_predictions_in_either_layout(layout: torch.memory_format, load_small: Callable[[], Any]) -> None:
    unet = load_small().unet.to(memory_format=layout)
    given = inputs(unet)
    given["sample"] = given["sample"].contiguous(memory_format=layout)
    wanted = unet(**given).sample
    with fast(unet):
        found = unet(**given).sample
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert found.stride() == wanted.stride()


def test_half_precision_is_no_less_exact(load_small: Callable[[], Any]) -> None:
    """bfloat16 has 8 bits: both ways are as far from float32, within a quarter of it."""
    unet = load_small().unet
    exact = gradients(unet)
    unet.to(torch.bfloat16)
    plain = gradients(unet, dtype=torch.bfloat16)
    with fast(unet):
        found = gradients(unet, dtype=torch.bfloat16)
    for name, tensor in exact.items():
        assert found[name].dtype == torch.bfloat16
        error = (found[name].float() - tensor).norm()
        assert error <= 1.25 * (plain[name].float() - tensor).norm(), name
        assert error <= 0.1 * tensor.norm(), name


@torch.no_grad()
def test_attention_that_asks_for_float32_scores_is_the_same() -> None:
    """SD 2.1's configuration says so; PyTorch's attention sums up in float32 anyway, and diffusers' takes no notice."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(**TINY, upcast_attention=True).eval()
    given = inputs(unet)
    wanted = unet(**given).sample
    with fast(unet):
        assert torch.equal(unet(**given).sample, wanted)


def test_odd_sizes_and_single_timesteps(load_small: Callable[[], Any]) -> None:
    """72 x 40 px has no half of a half; previews tell one timestep, which may lie between two."""
    unet = load_small().unet
    given = inputs(unet) | {"sample": torch.randn(2, 4, 9, 5), "timestep": torch.tensor(17.25)}
    with torch.no_grad():
        wanted = unet(**given).sample
        with fast(unet):
            torch.testing.assert_close(unet(**given).sample, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_gradient_checkpointing_has_the_same_gradients(
    family: str, model_of: Callable[[str], Any], make_lora: Callable[..., Any]
) -> None:
    model = model_of(family)
    unet = model.unet
    network = make_lora(model, convolutions=True)
    with attached(network):
        wanted = gradients(unet)
        unet.enable_gradient_checkpointing()
        unet.train()
        try:
            with fast(unet):
                found = gradients(unet)
        finally:
            unet.disable_gradient_checkpointing()
            unet.eval()
    assert_alike(found, wanted, 1e-5)


# --- LoRAs ---


@torch.no_grad()
def test_loras_count_whenever_they_are_attached(load_small: Callable[[], Any], make_lora: Callable[..., Any]) -> None:
    """Also on layers that were joined before, and no more once they are detached."""
    model = load_small()
    unet, network = model.unet, make_lora(model, convolutions=True)
    given = inputs(unet)
    bare = unet(**given).sample
    with attached(network):
        wanted = unet(**given).sample
    with fast(unet):
        torch.testing.assert_close(unet(**given).sample, bare, rtol=1e-5, atol=1e-5)
        with attached(network):
            torch.testing.assert_close(unet(**given).sample, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(unet(**given).sample, bare, rtol=1e-5, atol=1e-5)
    assert (wanted - bare).abs().max() > 0.01


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_nothing_before_the_first_lora_is_in_the_graph(
    family: str, model_of: Callable[[str], Any], make_lora: Callable[..., Any]
) -> None:
    """The text, the times and every layer up to the first LoRA have no gradients, and so keep nothing in memory."""
    model = model_of(family)
    unet = model.unet
    network = make_lora(model).requires_grad_(True)
    first = next(target for target, _ in network.pairs() if target.part == "unet")
    seen: list[tuple[str, bool]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                seen.append((name, output.requires_grad))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in unet.named_modules()]
    try:
        with attached(network), fast(unet):
            unet(**inputs(unet))
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, _ in seen]
    place = names.index(first.name)
    assert {"time_embedding", "conv_in", "down_blocks.0.resnets.0.conv2"} <= set(names[:place])
    assert not any(has_gradients for _, has_gradients in seen[:place])
    assert seen[place][1]
    assert not any(has_gradients for name, has_gradients in seen if name in ("time_embedding", "add_embedding"))


# --- taken back ---


def test_detached_the_model_is_bit_identical(load_small: Callable[[], Any]) -> None:
    unet = load_small().unet
    own = {name: dict(vars(module)) for name, module in unet.named_modules()}
    names = list(own)
    weights = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    parameters = list(unet.parameters())
    before = gradients(unet)
    with fast(unet) as lean:
        assert [name for name, _ in unet.named_modules()] == names
        assert all(one is other for one, other in zip(unet.parameters(), parameters, strict=True))
        assert unet.state_dict().keys() == weights.keys()
        lean.attach()  # once more is harmless
    lean.detach()
    assert all(dict(vars(module)).keys() == own[name].keys() for name, module in unet.named_modules())
    assert not any("forward" in vars(module) for module in unet.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in unet.state_dict().items())
    after = gradients(unet)
    assert all(torch.equal(after[name], before[name]) for name in before)


TINY: dict[str, Any] = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}


@pytest.mark.parametrize(
    "odd",
    [
        {"resnet_time_scale_shift": "scale_shift"},
        {"time_embedding_act_fn": "silu"},
        {"act_fn": "mish"},
        {"dropout": 0.1},
        {"mid_block_scale_factor": 2.0},
        {"only_cross_attention": True},
        {"down_block_types": ("AttnDownBlock2D", "CrossAttnDownBlock2D")},
        {"class_embed_type": "timestep"},
    ],
)
def test_a_unet_of_another_build_is_left_alone(odd: dict[str, Any]) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        assert is_plain(UNet2DConditionModel(**TINY))
        unet: Any = UNet2DConditionModel(**{**TINY, **odd})
    own = [set(vars(module)) for module in unet.modules()]
    with fast(unet):
        assert [set(vars(module)) for module in unet.modules()] == own


def test_a_unet_with_another_attention_is_left_alone() -> None:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**TINY)
    unet.set_attn_processor(AttnProcessor())
    assert not is_plain(unet)


# --- fewer kernels ---


class Calls(TorchDispatchMode):
    """Names of the ATen calls, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(func).split(".")[1]] += 1
        return func(*args, **(kwargs or {}))


def calls_of(sizes: Sizes, family: str, *, is_fast: bool) -> tuple[Counter[str], Counter[str]]:
    """Of forward and backward pass of a full-size UNet in bfloat16 without a network, the text having gradients."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**unet_config(checkpoint_shapes(sizes), Hints(), family))
        unet = unet.to(torch.bfloat16).requires_grad_(False).eval()
        given = inputs_on_meta(unet)
        if is_fast:
            FastUnet(unet).attach()
        with Calls() as forward:
            output = unet(**given).sample
        with Calls() as backward:
            output.sum().backward()
    return forward.names, backward.names


def inputs_on_meta(unet: Any) -> dict[str, Any]:
    config = unet.config
    given: dict[str, Any] = {
        "sample": torch.empty(1, 4, 64, 64, dtype=torch.bfloat16),
        "timestep": torch.empty(1, dtype=torch.int64),
        "encoder_hidden_states": torch.empty(1, 77, config.cross_attention_dim, dtype=torch.bfloat16).requires_grad_(),
    }
    if config.addition_embed_type:
        given["added_cond_kwargs"] = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
    return given


@pytest.mark.parametrize(
    ("family", "sizes", "resnets", "blocks", "skips", "times"),
    [("sd1", SD1, 22, 16, 12, 1), ("sdxl", SDXL, 17, 70, 9, 2)],
)
def test_kernels_of_full_size_models(
    family: str, sizes: Sizes, resnets: int, blocks: int, skips: int, times: int
) -> None:
    """Counted on their diagrams: residual and transformer blocks, skip connections, embeddings of times and sizes."""
    plain, plain_backward = calls_of(sizes, family, is_fast=False)
    forward, backward = calls_of(sizes, family, is_fast=True)
    # Each residual block has two SiLUs, the embeddings one inside each; one is for all times, one before conv_out.
    assert plain["silu"] == 3 * resnets + times + 1
    assert forward["silu"] == 2 * resnets + times + 2
    # Each residual block and both attentions of a block were divided by 1.
    assert plain["div"] - forward["div"] >= resnets + 2 * blocks
    # One product for the time shifts, one for the keys and values of the text; so also for the text's gradient.
    assert plain["addmm"] - forward["addmm"] == resnets - 1
    assert plain["mm"] - forward["mm"] == 2 * blocks - 1
    assert plain_backward["mm"] - backward["mm"] == 2 * blocks - 1
    # What is joined: skip connections, waves, and SDXL's pooled text; nothing where GEGLU's gradient is made.
    assert forward["cat"] == skips + times + (family == "sdxl")
    assert plain_backward["cat"] - backward["cat"] == blocks - 1, "the gradients of keys and values are joined once"
    assert forward["exp"] == 0


def test_text_without_loras_is_asked_once(load_small: Callable[[], Any]) -> None:
    """Keys and values of all layers are one product, made before the first block."""
    unet = load_small().unet
    network = LoraNetwork.new(
        [target for target in unet_targets(unet, with_convolutions=False) if ".attn1." in target.name],
        {"linear": (2, 1.0)},
        seed=1,
    )
    asked: list[str] = []
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v", "time_emb_proj")):
            module.register_forward_hook(lambda *_, name=name: asked.append(name))
    with attached(network), fast(unet), torch.no_grad():
        unet(**inputs(unet))
        assert asked == []
    with torch.no_grad():
        unet(**inputs(unet))
    assert len(asked) == 22 + 2 * 16
