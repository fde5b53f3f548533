"""LoRA files: names that a WebUI finds, complete triples, formats, hashes, and nothing written by halves."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

from lora_train.core.errors import ModelError, TrainToolsError
from lora_train.core.tensorfiles import read_tensor_file
from lora_train.engine.network import (
    LoraLayer,
    LoraNetwork,
    Target,
    text_encoder_targets,
    unet_targets,
)
from lora_train.engine.network_file import (
    checked,
    load_network,
    module_name,
    named_parts,
    save_lora,
    with_hashes,
)
from lora_train.engine.random_model import SMALL, random_checkpoint

pytestmark = pytest.mark.compat

METADATA = {"ss_output_name": "自作LORA-v1", "ss_seed": "23", "modelspec.title": "自作LORA-v1"}
MODULES = 276 + 12
"""Of the small model: equal channels spare it two shortcuts of the 278, and its text encoder has two layers."""
PARTS = {"lora_down.weight", "lora_up.weight", "alpha"}


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, torch.Tensor]:
    return random_checkpoint(SMALL, dtype=torch.float32, seed=7)


@pytest.fixture
def network(small_model: Any, make_lora: Callable[..., Any]) -> LoraNetwork:
    return make_lora(small_model, convolutions=True)


def _all_targets(model: Any) -> list[Target]:
    return unet_targets(model.unet, with_convolutions=True) + text_encoder_targets(model.text_encoders[0])


def _one_layer(*values: float) -> LoraNetwork:
    """A network whose only layer has these `up` weights."""
    layer = nn.Linear(3, len(values))
    lora = LoraLayer(torch.ones(1, 3), torch.tensor(values).reshape(-1, 1), alpha=1.0)
    return LoraNetwork([(Target("unet", "mid_block.attentions.0.proj_in", layer), lora)])


# --- names ---


def test_names_of_a_full_size_model() -> None:
    """Spelled out for Stable Diffusion 1.5: 264 modules, 792 tensors."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=12))
    names = [module_name(target) for target in unet_targets(unet, with_convolutions=False) + text_encoder_targets(text)]
    assert len(names) == len(set(names)) == 264
    block = r"(down_blocks_[0-2]_attentions_[01]|mid_block_attentions_0|up_blocks_[1-3]_attentions_[0-2])"
    attention = r"attn[12]_to_(q|k|v|out_0)"
    unet_name = rf"lora_unet_{block}_(proj_(in|out)|transformer_blocks_0_({attention}|ff_net_(0_proj|2)))"
    text_name = r"lora_te_text_model_encoder_layers_([0-9]|1[01])_(self_attn_(q|k|v|out)_proj|mlp_fc[12])"
    assert sum(bool(re.fullmatch(unet_name, name)) for name in names) == 192
    assert sum(bool(re.fullmatch(text_name, name)) for name in names) == 72


RESNET_PARTS = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}


def _host_module(name: str) -> str:
    """The module that Automatic1111 looks up for a LoRA of this name: its table for SD1, worked independently."""
    if name.startswith("lora_te_text_model_encoder_layers_"):
        return name.replace("lora_te_", "transformer_", 1)
    words = name.removeprefix("lora_unet_").split("_")
    side, block = words[0], "_".join(words)
    if side == "mid":
        kind, index, rest = words[2], int(words[3]), "_".join(words[4:])
        if kind == "attentions":
            return f"diffusion_model_middle_block_1_{rest}"
        return f"diffusion_model_middle_block_{2 * index}_{RESNET_PARTS[rest]}"
    level, kind, index, rest = int(words[2]), words[3], int(words[4]), "_".join(words[5:])
    if block == f"down_blocks_{level}_downsamplers_0_conv":
        return f"diffusion_model_input_blocks_{3 + 3 * level}_0_op"
    if block == f"up_blocks_{level}_upsamplers_0_conv":
        return f"diffusion_model_output_blocks_{2 + 3 * level}_{2 if level > 0 else 1}_conv"
    number = 3 * level + index
    place = f"input_blocks_{1 + number}" if side == "down" else f"output_blocks_{number}"
    if kind == "attentions":
        return f"diffusion_model_{place}_1_{rest}"
    return f"diffusion_model_{place}_0_{RESNET_PARTS[rest]}"


def test_a_host_finds_the_layer_of_every_tensor(network: LoraNetwork, checkpoint: dict[str, torch.Tensor]) -> None:
    """A host splits at the first dot, rewrites the module's name, and looks for it in its own checkpoint."""
    weights = {
        name.removesuffix(".weight").removeprefix("model.").removeprefix("cond_stage_model.").replace(".", "_"): tensor
        for name, tensor in checkpoint.items()
        if name.endswith(".weight")
    }
    tensors = checked(named_parts(network), torch.float32)
    modules = {name.partition(".")[0] for name in tensors}
    assert len(modules) == MODULES
    for module in modules:
        host_weight = weights[_host_module(module)]
        up, down = (tensors[f"{module}.lora_{part}.weight"] for part in ("up", "down"))
        assert (up.shape[0], *down.shape[1:]) == tuple(host_weight.shape), module
    assert len({_host_module(module) for module in modules}) == len(modules)


# --- tensors ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_only_complete_triples(network: LoraNetwork, dtype: torch.dtype, tmp_path: Path) -> None:
    save_lora(tmp_path / "a.safetensors", checked(named_parts(network), dtype), METADATA)
    stored = load_file(tmp_path / "a.safetensors")
    parts: dict[str, set[str]] = {}
    for name, tensor in stored.items():
        module, _, part = name.partition(".")
        parts.setdefault(module, set()).add(part)
        assert tensor.dtype == (torch.float32 if part == "alpha" else dtype)
    assert len(parts) == MODULES
    assert all(own == PARTS for own in parts.values())
    for target, lora in network.pairs():
        name = module_name(target)
        assert torch.equal(stored[f"{name}.lora_up.weight"], lora.up.to(dtype))
        assert torch.equal(stored[f"{name}.lora_down.weight"], lora.down.to(dtype))
        alpha = stored[f"{name}.alpha"]
        assert (alpha.shape, alpha.item()) == ((), lora.alpha)


def test_shapes_by_kind_of_layer(network: LoraNetwork) -> None:
    """Linear (r, in) and (out, r); convolutions (r, in, k, k) and (out, r, 1, 1), also when k is 1."""
    tensors = checked(named_parts(network), torch.float32)
    shapes = {
        "down_blocks_0_attentions_0_proj_in": ((4, 32, 1, 1), (32, 4, 1, 1)),
        "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": ((4, 64), (32, 4)),
        "down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj": ((4, 32), (256, 4)),
        "down_blocks_0_resnets_0_conv1": ((2, 32, 3, 3), (32, 2, 1, 1)),
        "up_blocks_0_resnets_0_conv_shortcut": ((4, 64, 1, 1), (32, 4, 1, 1)),
        "up_blocks_0_resnets_0_time_emb_proj": ((4, 128), (32, 4)),
    }
    for name, (down, up) in shapes.items():
        assert tensors[f"lora_unet_{name}.lora_down.weight"].shape == down
        assert tensors[f"lora_unet_{name}.lora_up.weight"].shape == up


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 6.1e4, -7e4])
def test_numbers_no_host_can_use_are_refused(bad: float) -> None:
    with pytest.raises(TrainToolsError, match="lora_unet_mid_block_attentions_0_proj_in") as error:
        checked(named_parts(_one_layer(0.5, bad)), torch.float32)
    assert "learning rate" in error.value.hint
    assert checked(named_parts(_one_layer(0.5, 5.9e4)), torch.float32)


# --- writing ---


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(TrainToolsError, match="exists already"):
        save_lora(path, checked(named_parts(_one_layer(1.0)), torch.float32), METADATA)
    assert [(own.name, own.read_bytes()) for own in tmp_path.iterdir()] == [("a.safetensors", b"mine")]


def test_no_temporary_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = checked(named_parts(_one_layer(1.0)), torch.float32)
    save_lora(tmp_path / "good.safetensors", tensors, METADATA)

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_lora(tmp_path / "bad.safetensors", tensors, METADATA)
    assert [path.name for path in tmp_path.iterdir()] == ["good.safetensors"]


# --- hashes ---


def _header_and_data(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def test_hashes_of_a_small_file(network: LoraNetwork, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, checked(named_parts(network), torch.float16), METADATA)
    header, data = _header_and_data(path)
    metadata = header["__metadata__"]
    digest = hashlib.sha256(data).hexdigest()
    assert metadata["sshs_model_hash"] == digest
    assert metadata["modelspec.hash_sha256"] == "0x" + digest
    # Nothing lies behind 1 MiB, and this is how the sha256 of nothing begins.
    assert path.stat().st_size < 2**20
    assert metadata["sshs_legacy_hash"] == "e3b0c442"
    assert {key: metadata[key] for key in METADATA} == METADATA


def test_hashes_of_a_large_file(tmp_path: Path) -> None:
    """Over 1 MiB the old hash covers 64 KiB at 1 MiB of a file whose metadata is the ss_* keys alone."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "lora_unet_a.lora_down.weight": torch.randn(4, 100_000, generator=generator),
        "lora_unet_a.lora_up.weight": torch.randn(8, 4, generator=generator),
        "lora_unet_a.alpha": torch.tensor(4.0),
    }
    path = tmp_path / "large.safetensors"
    save_lora(path, tensors, METADATA)
    header, data = _header_and_data(path)
    only_ss = {key: value for key, value in METADATA.items() if key.startswith("ss_")}
    old_file = save(tensors, metadata=only_ss)
    assert len(old_file) > 0x110000
    old_hash = hashlib.sha256(old_file[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    assert header["__metadata__"]["sshs_legacy_hash"] == old_hash
    assert header["__metadata__"]["sshs_model_hash"] == hashlib.sha256(data).hexdigest()


def test_hashes_depend_on_tensors_alone() -> None:
    tensors = checked(named_parts(_one_layer(1.0)), torch.float32)
    one = with_hashes(tensors, {"ss_seed": "1"})
    other = with_hashes(tensors, {"ss_seed": "2", "modelspec.title": "x" * 1000})
    assert one["sshs_model_hash"] == other["sshs_model_hash"]
    changed = with_hashes(checked(named_parts(_one_layer(2.0)), torch.float32), {"ss_seed": "1"})
    assert changed["sshs_model_hash"] != one["sshs_model_hash"]


# --- reading ---


def test_round_trip(network: LoraNetwork, small_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "自作LORA.safetensors"
    save_lora(path, checked(named_parts(network), torch.float32), METADATA)
    loaded = load_network(path, _all_targets(small_model))
    assert loaded.tensors().keys() == network.tensors().keys()
    for name, tensor in loaded.tensors().items():
        assert torch.equal(tensor, network.tensors()[name])
    assert [lora.alpha for _, lora in loaded.pairs()] == [lora.alpha for _, lora in network.pairs()]
    assert read_tensor_file(path).metadata["ss_output_name"] == "自作LORA-v1"


def test_file_with_some_layers_only(small_model: Any, tmp_path: Path) -> None:
    """A LoRA without its text encoder loads; one without alpha has a scale of 1, as in the hosts."""
    targets = unet_targets(small_model.unet, with_convolutions=False)
    network = LoraNetwork.new(targets, {"linear": (4, 2.0)}, seed=1)
    tensors = {
        name: tensor
        for name, tensor in checked(named_parts(network), torch.float32).items()
        if not name.endswith("alpha")
    }
    save_file(tensors, tmp_path / "a.safetensors")
    loaded = load_network(tmp_path / "a.safetensors", _all_targets(small_model))
    assert len(loaded.targets) == 192
    assert {lora.scale for _, lora in loaded.pairs()} == {1.0}


def _save_changed(network: LoraNetwork, path: Path, change: dict[str, torch.Tensor | None]) -> None:
    """The network's file with some tensors replaced (None: removed)."""
    tensors: dict[str, Any] = {**checked(named_parts(network), torch.float32), **change}
    save_file({name: own for name, own in tensors.items() if own is not None}, path)


PROJ_IN = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lora_te1_text_model_x.lora_down.weight": torch.ones(1)}, "lora_te1_text_model_x"),
        ({f"{PROJ_IN}.lora_down.weight": torch.ones(4, 33, 1, 1)}, PROJ_IN),
        ({f"{PROJ_IN}.lora_up.weight": torch.ones(33, 4, 1, 1)}, PROJ_IN),
        ({f"{PROJ_IN}.lora_down.weight": torch.ones(5, 32, 1, 1)}, PROJ_IN),
        ({f"{PROJ_IN}.lora_up.weight": None}, PROJ_IN),
        ({f"{PROJ_IN}.lora_mid.weight": torch.ones(4, 4, 1, 1)}, f"{PROJ_IN}.lora_mid.weight"),
        ({"lora_unet_x.hada_w1_a": torch.ones(1)}, "lora_unet_x.hada_w1_a"),
    ],
    ids=["other layers", "inputs", "outputs", "ranks", "no up", "tucker", "other kind"],
)
def test_wrong_file_is_refused_with_the_reason(
    network: LoraNetwork,
    small_model: Any,
    tmp_path: Path,
    change: dict[str, torch.Tensor | None],
    says: str,
) -> None:
    path = tmp_path / "wrong.safetensors"
    _save_changed(network, path, change)
    with pytest.raises(ModelError) as error:
        load_network(path, _all_targets(small_model))
    assert str(path) in error.value.message
    assert says in error.value.message


def test_checkpoint_is_no_lora(small_model: Any, small_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="is not a LoRA in kohya's layout"):
        load_network(small_checkpoint, _all_targets(small_model))
