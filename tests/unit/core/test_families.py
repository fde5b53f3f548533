"""Families by names and shapes of tensors, in the order in which WebUIs test for them.

The shapes are those of the public models: text widths 768 (SD1), 1024 (SD2), 2048 (SDXL), 1280 (its
refiner); 4 input channels, 9 for inpainting, 8 for InstructPix2Pix, 5 for depth.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from lora_train.core.checkpoints import require_supported
from lora_train.core.errors import ModelError
from lora_train.core.families import CheckpointFacts, detect_checkpoint, guess_kind
from lora_train.core.model_folders import detect_folder, find_weights
from lora_train.core.tensor_infos import TensorInfo

Shapes = dict[str, tuple[int, ...]]

UNET = "model.diffusion_model."
CLIP = "cond_stage_model.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
VAE = "first_stage_model."


def tensors(shapes: Shapes, dtype: str = "F16") -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, dtype, shape, 0, 0) for name, shape in shapes.items()}


def unet(text_dim: int, in_channels: int = 4, channels: int = 320) -> Shapes:
    block = UNET + "middle_block.1.transformer_blocks.0."
    return {
        UNET + "input_blocks.0.0.weight": (channels, in_channels, 3, 3),
        UNET + "time_embed.0.weight": (channels * 4, channels),
        block + "attn1.to_q.weight": (channels * 4, channels * 4),
        block + "attn2.to_k.weight": (channels * 4, text_dim),
    }


SD1_TEXT: Shapes = {CLIP + "encoder.layers.0.mlp.fc1.weight": (3072, 768)}
SD1: Shapes = unet(768) | SD1_TEXT | {VAE + "decoder.conv_in.weight": (512, 4, 3, 3)}
SDXL_TEXT: Shapes = {
    "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768),
    "conditioner.embedders.1.model.ln_final.weight": (1280,),
}
SDXL: Shapes = unet(2048) | SDXL_TEXT | {UNET + "label_emb.0.0.weight": (1280, 2816)}
REFINER: Shapes = unet(1280, channels=384) | {UNET + "label_emb.0.0.weight": (1536, 2560)}
REFINER_TEXT: Shapes = {"conditioner.embedders.0.model.ln_final.weight": (1280,)}


def without_middle(shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if "middle_block" not in name}


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        (SD1, "sd1"),
        (unet(64, channels=64) | SD1_TEXT, "sd1"),
        (unet(1024) | SD1_TEXT, "sd1"),
        (unet(768), "sd1"),
        (unet(768, 9) | SD1_TEXT, "sd1-inpaint"),
        (unet(768, 8) | SD1_TEXT, "instruct-pix2pix"),
        (unet(1024) | {OPEN_CLIP: (3072, 1024)}, "sd2"),
        (unet(64) | {OPEN_CLIP: (192, 64)}, "sd2"),
        (unet(1024), "sd2"),
        (unet(1024, 9) | {OPEN_CLIP: (3072, 1024)}, "sd2-inpaint"),
        (unet(1024) | {"conditioner.embedders.0.model.ln_final.weight": (1024,)}, "sd2"),
        (
            unet(1024, 5)
            | {
                OPEN_CLIP: (3072, 1024),
                "depth_model.model.pretrained.act_postprocess3.0.project.0.bias": (768,),
            },
            "sd2-depth",
        ),
        (
            unet(1024) | {OPEN_CLIP: (3072, 1024), "embedder.model.ln_final.weight": (1024,)},
            "unclip",
        ),
        (SDXL, "sdxl"),
        (unet(2048) | {UNET + "label_emb.0.0.weight": (1280, 2816)}, "sdxl"),
        (SDXL | unet(2048, 9), "sdxl-inpaint"),
        (without_middle(SDXL), "ssd-1b"),
        (REFINER | REFINER_TEXT, "sdxl-refiner"),
        (REFINER, "sdxl-refiner"),
        (
            unet(768) | {"cond_stage_model.roberta.embeddings.word_embeddings.weight": (250002, 1024)},
            "altdiffusion",
        ),
        ({UNET + "x_embedder.proj.weight": (1536, 16, 2, 2)}, "sd3"),
        ({"joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)}, "sd3"),
        ({UNET + "double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "flux"),
        ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "flux"),
    ],
)
def test_family(shapes: Shapes, family: str) -> None:
    facts = detect_checkpoint(tensors(shapes))
    assert facts.family == family
    assert facts.reason == ""


def test_facts_of_sd1() -> None:
    shapes = SD1 | {"model_ema.decay": ()}
    assert detect_checkpoint(tensors(shapes, "BF16")) == CheckpointFacts(
        "sd1",
        prediction="epsilon",
        has_text_encoder=True,
        has_vae=True,
        has_ema=True,
        unet_dtype="BF16",
        in_channels=4,
        model_channels=320,
        cross_attention_dim=768,
        text_encoder_layout="text_model",
    )


def test_facts_of_a_unet_alone() -> None:
    facts = detect_checkpoint(tensors(unet(768)))
    assert (facts.has_text_encoder, facts.has_vae, facts.has_ema) == (False, False, False)
    assert facts.text_encoder_layout is None


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", None),
        ("cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight", "text_model"),
        ("cond_stage_model.transformer.encoder.layers.0.mlp.fc1.weight", "bare"),
        ("cond_stage_model.transformer.embeddings.position_ids", "bare"),
        (OPEN_CLIP, "open_clip"),
    ],
)
def test_text_encoder_layout(name: str, layout: str | None) -> None:
    facts = detect_checkpoint(tensors(unet(768) | {name: (8, 8)}))
    assert facts.has_text_encoder
    assert facts.text_encoder_layout == (layout or "text_model")


@pytest.mark.parametrize(
    ("shapes", "prediction", "zero_terminal_snr"),
    [
        (SD1, "epsilon", False),
        (SD1 | {"v_pred": ()}, "v_prediction", False),
        (SDXL, "epsilon", False),
        (SDXL | {"v_pred": (), "ztsnr": ()}, "v_prediction", True),
        (SDXL | {"edm_mean": (1, 4, 1, 1)}, "unknown", False),
        (unet(1024) | {OPEN_CLIP: (3072, 1024)}, "unknown", False),
    ],
)
def test_prediction(shapes: Shapes, prediction: str, zero_terminal_snr: bool) -> None:
    facts = detect_checkpoint(tensors(shapes))
    assert (facts.prediction, facts.zero_terminal_snr) == (prediction, zero_terminal_snr)


@pytest.mark.parametrize(
    ("shapes", "kind", "says"),
    [
        ({"lora_unet_x.lora_down.weight": (8, 320)}, "lora", "a LoRA"),
        ({"unet.x.to_q.lora_A.weight": (8, 320)}, "lora", "a LoRA"),
        ({"unet.x.processor.to_q_lora.down.weight": (8, 320)}, "lora", "a LoRA"),
        ({"lora_te_x.hada_w1_a": (8, 320)}, "lora", "a LoRA"),
        ({"lora_unet_x.diff": (8, 320)}, "lora", "a LoRA"),
        ({VAE + "decoder.conv_in.weight": (512, 4, 3, 3)}, "vae", "a VAE"),
        ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "vae", "a VAE"),
        ({"emb_params": (4, 768)}, "embedding", "a textual inversion"),
        ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "embedding", "a textual inversion"),
        ({"string_to_param.*": (4, 768)}, "embedding", "a textual inversion"),
        ({"<my-token>": (4, 768)}, "embedding", "a textual inversion"),
        ({"control_model.zero_convs.0.0.weight": (8, 8)}, "unknown", "a ControlNet"),
        (
            {"down_blocks.0.resnets.0.conv1.weight": (8, 8), "conv_in.weight": (8, 4, 3, 3)},
            "unknown",
            "model_index.json",
        ),
        (
            {"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8), "x": (8,)},
            "unknown",
            "a text encoder",
        ),
        ({"layer1.weight": (8,), "layer1.bias": (8,)}, "unknown", "no names of Stable Diffusion"),
        (unet(768, 7), "checkpoint", "takes 7 input channels"),
    ],
)
def test_what_is_no_base_model_is_called_by_its_name(shapes: Shapes, kind: str, says: str) -> None:
    facts = detect_checkpoint(tensors(shapes))
    assert guess_kind(tensors(shapes)).kind == kind
    assert facts.family == "unknown"
    assert says in facts.reason
    with pytest.raises(ModelError, match="can't be trained on") as error:
        require_supported(facts, Path("some.safetensors"))
    assert facts.reason in error.value.message
    assert "some.safetensors" in error.value.message


def test_nothing_at_all() -> None:
    assert detect_checkpoint({}).family == "unknown"


def test_the_demo_model() -> None:
    from lora_train.core.tensorfiles import read_tensor_file

    package = Path(__file__).parents[3] / "lora_train"
    facts = detect_checkpoint(read_tensor_file(package / "assets/demo/tiny_sd.safetensors").tensors)
    assert (facts.family, facts.unet_dtype) == ("sd1", "F16")
    assert (facts.model_channels, facts.cross_attention_dim) == (64, 64)
    assert facts.has_text_encoder
    assert facts.has_vae


# --- diffusers folders ---


def folder(path: Path, pipeline: str, unet: dict[str, Any] | None = None, **configs: dict[str, Any]) -> Path:
    """A diffusers folder without weights; `configs` by part, e.g. `scheduler={...}`."""
    files = {"model_index.json": {"_class_name": pipeline, "unet": ["diffusers", "X"]}}
    if unet is not None:
        files["unet/config.json"] = {"block_out_channels": [320, 640, 1280, 1280], **unet}
    for part, config in configs.items():
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        files[f"{part}/{name}"] = config
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("pipeline", "config", "family"),
    [
        ("StableDiffusionPipeline", {"in_channels": 4, "cross_attention_dim": 768}, "sd1"),
        ("StableDiffusionPipeline", {"in_channels": 4, "cross_attention_dim": 1024}, "sd2"),
        ("StableDiffusionPipeline", {"in_channels": 4, "cross_attention_dim": 64}, "sd1"),
        (
            "StableDiffusionInpaintPipeline",
            {"in_channels": 9, "cross_attention_dim": 768},
            "sd1-inpaint",
        ),
        (
            "StableDiffusionInpaintPipeline",
            {"in_channels": 9, "cross_attention_dim": 1024},
            "sd2-inpaint",
        ),
        ("StableDiffusionXLPipeline", {"in_channels": 4, "cross_attention_dim": 2048}, "sdxl"),
        ("StableDiffusionXLPipeline", {"in_channels": 4, "mid_block_type": None}, "ssd-1b"),
        ("StableDiffusionXLInpaintPipeline", {"in_channels": 9}, "sdxl-inpaint"),
        (
            "StableDiffusionXLImg2ImgPipeline",
            {"in_channels": 4, "cross_attention_dim": 1280},
            "sdxl-refiner",
        ),
        ("StableDiffusionInstructPix2PixPipeline", {"in_channels": 8}, "instruct-pix2pix"),
        ("StableDiffusionDepth2ImgPipeline", {"in_channels": 5}, "sd2-depth"),
        ("StableUnCLIPImg2ImgPipeline", {"in_channels": 4}, "unclip"),
        ("StableDiffusion3Pipeline", None, "sd3"),
        ("FluxPipeline", None, "flux"),
        ("KandinskyPipeline", {"in_channels": 4}, "unknown"),
        ("StableDiffusionUpscalePipeline", {"in_channels": 7}, "unknown"),
        ("StableDiffusionPipeline", None, "unknown"),
    ],
)
def test_folders(pipeline: str, config: dict[str, Any] | None, family: str, tmp_path: Path) -> None:
    facts = detect_folder(folder(tmp_path, pipeline, config))
    assert facts.family == family
    assert (facts.reason != "") == (family == "unknown")


def test_small_folder_with_the_text_encoder_of_sd2(tmp_path: Path) -> None:
    config = {"in_channels": 4, "cross_attention_dim": [32, 32]}
    path = folder(tmp_path, "StableDiffusionPipeline", config, text_encoder={"hidden_act": "gelu"})
    facts = detect_folder(path)
    assert (facts.family, facts.cross_attention_dim) == ("sd2", 32)


def test_facts_of_a_folder(tmp_path: Path) -> None:
    path = folder(
        tmp_path,
        "StableDiffusionPipeline",
        {"in_channels": 4, "cross_attention_dim": 1024},
        scheduler={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        vae={},
    )
    header = json.dumps({"w": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    content = struct.pack("<Q", len(header)) + header + b"00"
    (path / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(content)
    (path / "unet/diffusion_pytorch_model.bin").write_bytes(b"")
    (path / "vae/diffusion_pytorch_model.bin").write_bytes(b"")
    assert detect_folder(path) == CheckpointFacts(
        "sd2",
        prediction="v_prediction",
        zero_terminal_snr=True,
        has_vae=True,
        unet_dtype="F16",
        in_channels=4,
        model_channels=320,
        cross_attention_dim=1024,
        unet_weights="unet/diffusion_pytorch_model.fp16.safetensors",
    )


def test_weights_are_found_best_first(tmp_path: Path) -> None:
    assert find_weights(tmp_path) is None
    for name in (
        "pytorch_model.bin",
        "model.fp16.safetensors",
        "model.safetensors",
    ):
        (tmp_path / name).write_bytes(b"")
        assert find_weights(tmp_path) == tmp_path / name


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        detect_folder(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": 5}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"model_index\.json can't be read"):
        detect_folder(tmp_path)
    (tmp_path / "model_index.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"model_index\.json can't be read"):
        detect_folder(tmp_path)
