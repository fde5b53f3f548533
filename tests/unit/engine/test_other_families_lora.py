"""LoRAs of SD2, SDXL and inpainting models: their layers, names, files, and what inspection tells of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_train.core.errors import ModelError
from lora_train.core.inspection import describe, inspect_file
from lora_train.engine.network import LoraNetwork, Target, text_encoder_targets, unet_targets
from lora_train.engine.network_file import checked, load_network, module_name, named_parts, save_lora
from lora_train.engine.random_model import SDXL, checkpoint_shapes

pytestmark = pytest.mark.compat

VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
UNET = "model.diffusion_model."


def targets_of(model: Any, *, convolutions: bool = True) -> list[Target]:
    return unet_targets(model.unet, with_convolutions=convolutions) + text_encoder_targets(*model.text_encoders)


def save(path: Path, tensors: dict[str, torch.Tensor], family: str) -> Path:
    """Small models have none of the public widths: the metadata tells the family."""
    save_lora(path, tensors, {"ss_base_model_version": VERSIONS[family.partition("-")[0]]})
    return path


# --- which layers ---


@pytest.mark.parametrize(
    ("family", "unet", "with_convolutions", "texts"),
    [
        # Of SD1, two text layers of 6, and the small model's channels never change: 2 layers fewer than 278.
        ("sd1-inpaint", 192, 276, {"lora_te_": 12}),
        ("sd2", 192, 278, {"lora_te_": 138}),
        ("sd2-inpaint", 192, 278, {"lora_te_": 138}),
        ("sdxl", 722, 788, {"lora_te1_": 72, "lora_te2_": 192}),
        ("sdxl-inpaint", 722, 788, {"lora_te1_": 72, "lora_te2_": 192}),
    ],
)
def test_module_counts(
    family: str, unet: int, with_convolutions: int, texts: dict[str, int], model_of: Callable[[str], Any]
) -> None:
    """As kohya's scripts and WebUIs count them."""
    model = model_of(family)
    assert len(unet_targets(model.unet, with_convolutions=False)) == unet
    assert len(unet_targets(model.unet, with_convolutions=True)) == with_convolutions
    names = [module_name(target) for target in text_encoder_targets(*model.text_encoders)]
    assert {prefix: sum(name.startswith(prefix) for name in names) for prefix in texts} == texts
    assert len(names) == sum(texts.values())
    parts = [target.part for target in text_encoder_targets(*model.text_encoders)]
    assert sorted(set(parts)) == ["text_encoder", "text_encoder_2"][: len(texts)]


def test_names_of_sdxl_are_those_of_its_checkpoint(model_of: Callable[[str], Any]) -> None:
    """Each name is that of a weight in the original layout, dots as underscores, and each such weight has one."""
    shapes = checkpoint_shapes(SDXL)
    weights = {
        name.removeprefix(UNET).removesuffix(".weight").replace(".", "_")
        for name, shape in shapes.items()
        if name.startswith(UNET) and name.endswith(".weight") and len(shape) > 1
    }
    plain = {module_name(target) for target in unet_targets(model_of("sdxl").unet, with_convolutions=False)}
    everything = {module_name(target) for target in unet_targets(model_of("sdxl").unet, with_convolutions=True)}
    assert plain == {f"lora_unet_{name}" for name in weights if "_1_proj_" in name or "_transformer_blocks_" in name}
    outside = {"time_embed_0", "time_embed_2", "label_emb_0_0", "label_emb_0_2", "input_blocks_0_0", "out_2"}
    assert everything == {f"lora_unet_{name}" for name in weights - outside}
    for name in (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj",
    ):
        assert name in everything


@pytest.mark.parametrize(("family", "fused"), [("sd1", 0), ("sd2", 23 * 4), ("sdxl", 32 * 4)])
def test_attentions_of_open_clip_stay_whole(family: str, fused: int, model_of: Callable[[str], Any]) -> None:
    targets = [target for target in targets_of(model_of(family)) if target.is_fused]
    assert len(targets) == fused
    prefix = "lora_te2_" if family == "sdxl" else "lora_te_"
    assert all(module_name(target).startswith(f"{prefix}text_model_encoder_layers_") for target in targets)
    layers: dict[str, set[str]] = {}
    for target in targets:
        layer, _, part = target.name.rpartition(".")
        layers.setdefault(layer, set()).add(part)
    assert all(parts == {"q_proj", "k_proj", "v_proj", "out_proj"} for parts in layers.values())


# --- files ---


@pytest.mark.parametrize("family", ["sd2", "sdxl", "sdxl-inpaint"])
def test_round_trip(family: str, model_of: Callable[[str], Any], make_lora: Callable[..., Any], tmp_path: Path) -> None:
    network = make_lora(model_of(family), convolutions=True)
    path = save(tmp_path / "a.safetensors", checked(named_parts(network), torch.float32), family)
    loaded = load_network(path, targets_of(model_of(family)))
    ours, theirs = network.tensors(), loaded.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("family", "texts", "second", "unet"), [("sd2", 138, 0, 278), ("sdxl", 72, 192, 788), ("sd1", 12, 0, 276)]
)
def test_inspection(
    family: str,
    texts: int,
    second: int,
    unet: int,
    model_of: Callable[[str], Any],
    make_lora: Callable[..., Any],
    tmp_path: Path,
) -> None:
    tensors = checked(named_parts(make_lora(model_of(family), convolutions=True)), torch.float16)
    inspection = inspect_file(save(tmp_path / "a.safetensors", tensors, family))
    assert inspection.lora is not None
    facts = inspection.lora
    assert (facts.family, facts.ranks, facts.alphas, facts.incomplete) == (family, [2, 4], [1.0, 3.0], [])
    counts = (facts.text_encoder_modules, facts.second_text_encoder_modules, facts.unet_modules)
    assert counts == (texts, second, unet)
    words = f"{texts} and {second}" if second else str(texts)
    assert re.search(rf"^Text modules +{words}$", describe(inspection), re.MULTILINE)


@pytest.mark.parametrize(
    ("family", "base", "label", "layer"),
    [
        ("sdxl", "sd1", "SDXL", "986 of its layers are not there"),
        ("sdxl", "sd2", "SDXL", "lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        ("sd2", "sdxl", "Stable Diffusion 2.x", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
        ("sd2", "sd1", "Stable Diffusion 2.x", "has the shapes"),
        ("sd1", "sdxl", "Stable Diffusion 1.x", "204 of its layers are not there"),
    ],
)
def test_lora_of_another_family(
    family: str,
    base: str,
    label: str,
    layer: str,
    model_of: Callable[[str], Any],
    make_lora: Callable[..., Any],
    tmp_path: Path,
) -> None:
    path = save(tmp_path / "a.safetensors", checked(named_parts(make_lora(model_of(family))), torch.float16), family)
    with pytest.raises(ModelError) as error:
        load_network(path, targets_of(model_of(base)))
    assert f"{path} is a LoRA for {label} and does not fit this base model: " in error.value.message
    assert layer in error.value.message
    assert error.value.hint == "Choose a base model of the LoRA's family."


def test_layer_of_another_width_is_of_another_family(model_of: Callable[[str], Any], tmp_path: Path) -> None:
    """SD1's and SD2's UNets have the same names; the width of the text tells the family."""
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_down.weight": torch.ones(4, 1024), f"{name}.lora_up.weight": torch.ones(32, 4)}
    save_lora(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(ModelError, match=r"is a LoRA for Stable Diffusion 2\.x and does not fit this base model: "):
        load_network(tmp_path / "a.safetensors", targets_of(model_of("sd1")))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("sd2", "lora_te_text_model_encoder_layers_22_self_attn_k_proj"),
        ("sdxl", "lora_te2_text_model_encoder_layers_31_self_attn_out_proj"),
    ],
)
def test_part_of_a_fused_attention_is_refused(
    family: str, name: str, model_of: Callable[[str], Any], make_lora: Callable[..., Any], tmp_path: Path
) -> None:
    tensors = checked(named_parts(make_lora(model_of(family))), torch.float16)
    some = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{name}.")}
    assert len(some) == len(tensors) - 3
    path = save(tmp_path / "a.safetensors", some, family)
    with pytest.raises(ModelError) as error:
        load_network(path, targets_of(model_of(family)))
    assert f"{path} lacks {name}: " in error.value.message
    facts = inspect_file(path).lora
    assert facts is not None
    attention, _, part = name.rpartition("_self_attn_")
    assert facts.incomplete == [f"{attention}_self_attn: no {part}"]


def test_attention_of_clip_may_be_partial(
    model_of: Callable[[str], Any], make_lora: Callable[..., Any], tmp_path: Path
) -> None:
    """A layer that has none of the four, and CLIP-L's attentions, are as a file has them."""
    tensors = checked(named_parts(make_lora(model_of("sdxl"))), torch.float16)
    gone = ("lora_te1_text_model_encoder_layers_3_self_attn_q", "lora_te2_text_model_encoder_layers_3_self_attn_")
    some = {key: tensor for key, tensor in tensors.items() if not key.startswith(gone)}
    path = save(tmp_path / "a.safetensors", some, "sdxl")
    network = load_network(path, targets_of(model_of("sdxl")))
    assert isinstance(network, LoraNetwork)
    assert len(network.targets) == 72 + 192 + 722 - 5
    facts = inspect_file(path).lora
    assert facts is not None
    assert facts.incomplete == []
