"""`inspect_file` on LoRAs, checkpoints and other files, written by hand as safetensors.

Widths are those of the public models (text 768, 1024 and 2048 for SD1, SD2 and SDXL).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lora_train.core.errors import ModelError
from lora_train.core.inspection import Inspection, describe, inspect_file
from lora_train.core.lora_facts import LoraFacts

BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I64": 8, "U8": 1}

Tensor = tuple[str, tuple[int, ...], bytes | None]


def half(*shape: int) -> Tensor:
    return "F16", shape, None


def scalar(value: float, dtype: str = "F32") -> Tensor:
    if dtype == "BF16":
        return dtype, (), struct.pack("<f", value)[2:]
    return (
        dtype,
        (),
        struct.pack({"F16": "<e", "F32": "<f", "F64": "<d", "I64": "<q"}[dtype], value),
    )


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        if content is None:
            content = bytes(math.prod(shape) * BYTES[dtype])
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def kohya(module: str, *, inputs: int = 768, rank: int = 4, alpha: float = 2) -> dict[str, Tensor]:
    return {
        f"{module}.lora_down.weight": half(rank, inputs),
        f"{module}.lora_up.weight": half(8, rank),
        f"{module}.alpha": scalar(alpha),
    }


def lora_of(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> LoraFacts:
    inspection = inspect_file(write(path / "lora.safetensors", tensors, metadata))
    assert inspection.kind == "lora"
    assert inspection.checkpoint is None
    assert inspection.lora
    return inspection.lora


BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
CONVOLUTION = "lora_unet_down_blocks_0_resnets_0_conv1"


def test_lora_of_kohya(tmp_path: Path) -> None:
    tensors = kohya(BLOCK + "attn2_to_k") | kohya(BLOCK + "ff_net_2", inputs=1280, alpha=4)
    tensors |= kohya(TEXT)
    tensors |= {
        CONVOLUTION + ".lora_down.weight": half(2, 320, 3, 3),
        CONVOLUTION + ".lora_up.weight": half(320, 2, 1, 1),
        CONVOLUTION + ".alpha": scalar(1, "F16"),
        BLOCK + "proj_in.lora_down.weight": half(4, 320, 1, 1),
        BLOCK + "proj_in.lora_up.weight": half(320, 4, 1, 1),
        BLOCK + "proj_in.alpha": scalar(1.5, "BF16"),
    }
    assert lora_of(tmp_path, tensors) == LoraFacts(
        network_types=["lora"],
        naming="kohya",
        family="sd1",
        family_from="shapes",
        ranks=[2, 4],
        alphas=[1, 1.5, 2, 4],
        unet_modules=4,
        text_encoder_modules=1,
        second_text_encoder_modules=0,
        other_modules=0,
        convolution_modules=1,
        incomplete=[],
    )


@pytest.mark.parametrize(
    ("module", "inputs", "metadata", "family", "source"),
    [
        (BLOCK + "attn2_to_k", 768, {}, "sd1", "shapes"),
        (BLOCK + "attn2_to_k", 1024, {"ss_base_model_version": "sd_v1"}, "sd2", "shapes"),
        (BLOCK + "attn2_to_k", 2048, {}, "sdxl", "shapes"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 2048, {}, "sdxl", "shapes"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 768, {}, "sd1", "shapes"),
        ("lora_unet_input_blocks_4_1_proj_in", 640, {}, "sdxl", "names"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", 768, {}, "sdxl", "names"),
        ("lora_unet_double_blocks_0_img_attn_proj", 3072, {}, "flux", "names"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", 1536, {}, "sd3", "names"),
        (TEXT, 768, {}, "sd1", "shapes"),
        (TEXT, 1024, {}, "sd2", "shapes"),
        (BLOCK + "attn2_to_k", 64, {"ss_base_model_version": "sd_v1"}, "sd1", "metadata"),
        (BLOCK + "attn2_to_k", 64, {"ss_base_model_version": "sd_v2_v"}, "sd2", "metadata"),
        (BLOCK + "attn2_to_k", 64, {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl", "metadata"),
        (
            BLOCK + "attn2_to_k",
            64,
            {"modelspec.architecture": "stable-diffusion-v1/lora"},
            "sd1",
            "metadata",
        ),
        (
            BLOCK + "attn2_to_k",
            64,
            {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
            "sdxl",
            "metadata",
        ),
        (BLOCK + "attn2_to_k", 64, {"ss_v2": "True"}, "sd2", "metadata"),
        (BLOCK + "attn2_to_k", 64, {}, "unknown", ""),
    ],
)
def test_family_of_a_lora(
    module: str, inputs: int, metadata: dict[str, str], family: str, source: str, tmp_path: Path
) -> None:
    facts = lora_of(tmp_path, kohya(module, inputs=inputs), metadata)
    assert (facts.family, facts.family_from) == (family, source)


DIFFUSERS = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (f"unet.{DIFFUSERS}.to_k.lora_A.weight", f"unet.{DIFFUSERS}.to_k.lora_B.weight"),
        (
            f"base_model.model.{DIFFUSERS}.to_k.lora_A.default.weight",
            f"base_model.model.{DIFFUSERS}.to_k.lora_B.default.weight",
        ),
        (f"unet.{DIFFUSERS}.to_k.lora.down.weight", f"unet.{DIFFUSERS}.to_k.lora.up.weight"),
        (
            f"unet.{DIFFUSERS}.processor.to_k_lora.down.weight",
            f"unet.{DIFFUSERS}.processor.to_k_lora.up.weight",
        ),
    ],
)
def test_lora_of_diffusers(down: str, up: str, tmp_path: Path) -> None:
    facts = lora_of(tmp_path, {down: half(16, 768), up: half(320, 16)})
    assert facts.naming == "diffusers"
    assert (facts.family, facts.ranks, facts.alphas) == ("sd1", [16], [])
    assert (facts.unet_modules, facts.incomplete) == (1, [])


@pytest.mark.parametrize(
    ("parts", "types", "ranks"),
    [
        ({"lora_down.weight": half(4, 768), "lora_up.weight": half(8, 4)}, ["lora"], [4]),
        (
            {
                "lora_down.weight": half(4, 768),
                "lora_up.weight": half(8, 4),
                "dora_scale": half(8, 1),
            },
            ["dora", "lora"],
            [4],
        ),
        (
            {
                "hada_w1_a": half(8, 6),
                "hada_w1_b": half(6, 768),
                "hada_w2_a": half(8, 6),
                "hada_w2_b": half(6, 768),
            },
            ["loha"],
            [6],
        ),
        ({"lokr_w1": half(4, 4), "lokr_w2": half(80, 192)}, ["lokr"], []),
        (
            {"lokr_w1": half(4, 4), "lokr_w2_a": half(80, 3), "lokr_w2_b": half(3, 192)},
            ["lokr"],
            [3],
        ),
        ({"diff": half(8, 768), "diff_b": half(8)}, ["full"], []),
        ({"w_norm": half(8), "b_norm": half(8)}, ["norm"], []),
        ({"oft_blocks": half(4, 8, 8)}, ["oft"], []),
        ({"on_input": half(1), "weight": half(8)}, ["ia3"], []),
        ({"a1.weight": half(8, 4), "b1.weight": half(4, 8)}, ["glora"], []),
    ],
)
def test_network_types(parts: dict[str, Tensor], types: list[str], ranks: list[int], tmp_path: Path) -> None:
    tensors = {f"{BLOCK}attn2_to_k.{part}": tensor for part, tensor in parts.items()}
    facts = lora_of(tmp_path, tensors | {f"{BLOCK}attn2_to_k.alpha": scalar(1)})
    assert facts.network_types == types
    assert facts.ranks == ranks
    assert facts.incomplete == []
    assert facts.unet_modules == 1


def test_incomplete_modules_are_listed(tmp_path: Path) -> None:
    tensors = kohya("lora_unet_whole")
    tensors |= {"lora_unet_a.lora_down.weight": half(4, 8), "lora_unet_a.alpha": scalar(1)}
    tensors |= {
        "lora_unet_b.lora_down.weight": half(4, 8),
        "lora_unet_b.lora_up.weight": half(8, 4),
    }
    tensors |= {"lora_unet_c.hada_w1_a": half(4, 8)}
    tensors |= {"lora_unet_d.surprise": half(4, 8)}
    assert lora_of(tmp_path, tensors).incomplete == [
        "lora_unet_a: no up",
        "lora_unet_b: no alpha",
        "lora_unet_c: no hada_w1_b, no hada_w2_a, no hada_w2_b, no alpha",
        "lora_unet_d: no known part",
    ]


def test_hash_is_computed_only_when_asked_for(tmp_path: Path) -> None:
    tensors = kohya("lora_unet_a")
    path = write(tmp_path / "a.safetensors", tensors)
    raw = path.read_bytes()
    right = hashlib.sha256(raw[8 + struct.unpack("<Q", raw[:8])[0] :]).hexdigest()
    for value, is_right in ((right, True), ("0" * 64, False)):
        write(path, tensors, {"sshs_model_hash": value})
        lora = inspect_file(path).lora
        assert lora
        assert (lora.model_hash, lora.hash_is_right) == (value, None)
        checked = inspect_file(path, verify_hash=True)
        assert checked.lora
        assert checked.lora.hash_is_right is is_right
        assert ("WRONG" in describe(checked)) is not is_right


def test_metadata_is_parsed_where_it_is_json(tmp_path: Path) -> None:
    metadata = {
        "ss_tag_frequency": '{"10_cat": {"1girl": 20}}',
        "ss_datasets": "[1, 2]",
        "ss_network_dim": "32",
        "ss_resolution": "(512, 512)",
        "broken": '{"a": ',
        "deep": "[" * 100_000,
        "title": "猫",
    }
    path = write(tmp_path / "a.safetensors", kohya("lora_unet_a"), metadata)
    assert inspect_file(path).metadata == {
        **metadata,
        "ss_tag_frequency": {"10_cat": {"1girl": 20}},
        "ss_datasets": [1, 2],
    }


def test_checkpoint(tmp_path: Path) -> None:
    tensors = {
        "model.diffusion_model.input_blocks.0.0.weight": half(64, 4, 3, 3),
        "cond_stage_model.transformer.encoder.layers.0.mlp.fc1.weight": half(8, 8),
        "cond_stage_model.transformer.embeddings.position_ids": ("I64", (1, 77), None),
    }
    path = write(tmp_path / "模型.safetensors", tensors)
    inspection = inspect_file(path)
    assert (inspection.kind, inspection.format) == ("checkpoint", "safetensors")
    assert inspection.size_bytes == path.stat().st_size
    assert (inspection.tensor_count, inspection.dtypes) == (3, {"F16": 2, "I64": 1})
    assert inspection.lora is None
    assert inspection.checkpoint
    assert inspection.checkpoint.family == "sd1"
    text = describe(inspection)
    assert "sd1: a Stable Diffusion 1.x checkpoint" in text
    assert "names without text_model" in text


@pytest.mark.parametrize(
    ("tensors", "kind", "note"),
    [
        ({"decoder.conv_in.weight": half(1, 1)}, "vae", "this is a VAE, not a base model"),
        ({"emb_params": half(2, 768)}, "embedding", "this is a textual inversion"),
        ({"a.weight": half(2), "b.weight": half(2)}, "unknown", "no names of Stable Diffusion"),
    ],
)
def test_other_kinds(tensors: dict[str, Tensor], kind: str, note: str, tmp_path: Path) -> None:
    inspection = inspect_file(write(tmp_path / "a.safetensors", tensors))
    assert inspection.kind == kind
    assert note in inspection.note
    assert note in describe(inspection)


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}', encoding="utf-8")
    inspection = inspect_file(tmp_path)
    assert (inspection.kind, inspection.format) == ("diffusers folder", "folder")
    assert inspection.size_bytes == len('{"_class_name": "FluxPipeline"}')
    assert inspection.checkpoint
    assert (inspection.checkpoint.family, inspection.checkpoint.prediction) == ("flux", "unknown")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        inspect_file(tmp_path / "none.safetensors")


def test_inspections_are_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", kohya(TEXT), {"ss_x": '{"a": 1}'})
    inspection = inspect_file(path)
    assert msgspec.json.decode(msgspec.json.encode(inspection), type=Inspection) == inspection


def test_description_is_aligned(tmp_path: Path) -> None:
    tensors = kohya(TEXT) | {f"lora_unet_{index}.lora_up.weight": half(8, 4) for index in range(5)}
    long = "x" * 300
    path = write(tmp_path / "a.safetensors", tensors, {"ss_note": long, "ss_training_comment": "a\nb"})
    lines = describe(inspect_file(path)).splitlines()
    column = lines[0].index(str(path))
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines)
    values = {line[: column - 2].strip(): line[column:] for line in lines}
    assert values["Rank"] == "4"
    assert values["Alpha"] == "2"
    assert values["Incomplete"].startswith("lora_unet_0: no down, no alpha; ")
    assert values["Incomplete"].endswith(" and 2 more")
    assert values["ss_note"] == "x" * 100 + "…"
    assert values["ss_training_comment"] == "a b"


def test_lora_saved_by_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    down, up = torch.zeros(4, 768), torch.zeros(8, 4)
    names = (f"{TEXT}.lora_down.weight", f"{TEXT}.lora_up.weight", f"{TEXT}.alpha")
    torch.save(dict(zip(names, (down, up, torch.tensor(3.0)), strict=True)), tmp_path / "a.pt")
    inspection = inspect_file(tmp_path / "a.pt", verify_hash=True)
    assert (inspection.kind, inspection.format, inspection.metadata) == ("lora", "ckpt", {})
    assert inspection.lora
    assert (inspection.lora.ranks, inspection.lora.alphas) == ([4], [3.0])
