"""SD2, SDXL and inpainting models of every layout, against diffusers' own conversion and OpenCLIP worked by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file

from lora_train.core.errors import ConfigError, ModelError
from lora_train.engine.loading import BaseModel, load_base_model
from lora_train.engine.random_model import SMALL_SD2, SMALL_SDXL, write_random_checkpoint

pytestmark = pytest.mark.compat

Tensors = dict[str, torch.Tensor]
FAMILIES = ["sd1-inpaint", "sd2", "sd2-inpaint", "sdxl", "sdxl-inpaint"]
UNET = "model.diffusion_model."
VAE = "first_stage_model."
SD2_TEXT = "cond_stage_model.model."
SDXL_TEXTS = ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model.")
SD2_TELLTALE = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"


def load(path: Path, **choices: Any) -> BaseModel:
    return load_base_model(path, vae_path=None, device=torch.device("cpu"), dtype=torch.float32, **choices)


def save(path: Path, tensors: Tensors) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def text_core(text_encoder: Any) -> Any:
    return getattr(text_encoder, "text_model", text_encoder)


def parts_of(model: BaseModel) -> dict[str, Any]:
    texts = {f"text {number}": encoder for number, encoder in enumerate(model.text_encoders, start=1)}
    return {"unet": model.unet, "vae": model.vae, **texts}


def assert_same_weights(one: BaseModel, other: BaseModel) -> None:
    ours, theirs = parts_of(one), parts_of(other)
    assert ours.keys() == theirs.keys()
    for part, module in ours.items():
        weights, others = dict(module.named_parameters()), dict(theirs[part].named_parameters())
        assert weights.keys() == others.keys()
        assert [name for name in weights if not torch.equal(weights[name], others[name])] == []


# --- single files ---


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_conversion_of_diffusers(
    family: str, checkpoint_of: Callable[[str], Path], model_of: Callable[[str], Any]
) -> None:
    """Bit for bit, and neither has a weight that the other lacks."""
    from diffusers.loaders import single_file_utils

    model = model_of(family)
    assert model.family == family
    assert model.unet.config.in_channels == model.in_channels == (9 if "inpaint" in family else 4)
    tensors = load_file(checkpoint_of(family))
    for module, converted in (
        (model.unet, single_file_utils.convert_ldm_unet_checkpoint(dict(tensors), dict(model.unet.config))),
        (model.vae, single_file_utils.convert_ldm_vae_checkpoint(dict(tensors), dict(model.vae.config))),
    ):
        own = dict(module.named_parameters())
        assert own.keys() == converted.keys()
        assert [name for name in own if not torch.equal(own[name], converted[name].reshape(own[name].shape))] == []


def open_clip(tensors: Tensors, prefix: str, ids: torch.Tensor, heads: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """OpenCLIP's text transformer on its own tensors: what comes out of each layer, (B, 77, D), and the pooled text.

    Causal attention, norms before attention and MLP, exact GELU; pooled is the end token's, projected.
    """

    def own(name: str) -> torch.Tensor:
        return tensors[prefix + name]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], own(f"{name}.weight"), own(f"{name}.bias"))

    x = own("token_embedding.weight")[ids] + own("positional_embedding")
    mask = torch.full((ids.shape[1],) * 2, -math.inf).triu(1)
    outputs: list[torch.Tensor] = []
    while f"{prefix}transformer.resblocks.{len(outputs)}.ln_1.weight" in tensors:
        block = f"transformer.resblocks.{len(outputs)}"
        query = norm(f"{block}.ln_1", x).transpose(0, 1)
        attention, _ = functional.multi_head_attention_forward(
            *(query, query, query, query.shape[-1], heads),
            *(own(f"{block}.attn.in_proj_weight"), own(f"{block}.attn.in_proj_bias")),
            *(None, None, False, 0.0),
            *(own(f"{block}.attn.out_proj.weight"), own(f"{block}.attn.out_proj.bias")),
            training=False,
            need_weights=False,
            attn_mask=mask,
        )
        x = x + attention.transpose(0, 1)
        inner = norm(f"{block}.ln_2", x) @ own(f"{block}.mlp.c_fc.weight").t() + own(f"{block}.mlp.c_fc.bias")
        x = x + functional.gelu(inner) @ own(f"{block}.mlp.c_proj.weight").t() + own(f"{block}.mlp.c_proj.bias")
        outputs.append(x)
    ends = norm("ln_final", x)[torch.arange(len(ids)), ids.argmax(-1)]
    return outputs, ends @ own("text_projection")


def some_ids() -> torch.Tensor:
    """(2, 77) ids, the end token after 5 and 9 words, then OpenCLIP's padding."""
    ids = torch.zeros(2, 77, dtype=torch.long)
    ids[:, 0] = 49406
    for row, length in enumerate((5, 9)):
        ids[row, 1 : 1 + length] = torch.randint(0, 49000, (length,), generator=torch.Generator().manual_seed(row))
        ids[row, 1 + length] = 49407
    return ids


@torch.no_grad()
def test_sd2_reads_the_last_layer_but_one(checkpoint_of: Callable[[str], Path], model_of: Callable[[str], Any]) -> None:
    (encoder,) = model_of("sd2").text_encoders
    assert encoder.config.num_hidden_layers == 23
    tensors = load_file(checkpoint_of("sd2"))
    by_hand, _ = open_clip(tensors, SD2_TEXT, some_ids(), heads=1)
    assert len(by_hand) == 24
    ours = encoder(some_ids(), output_hidden_states=True)
    torch.testing.assert_close(ours.hidden_states[-1], by_hand[22], rtol=1e-5, atol=1e-5)
    norm = (tensors[f"{SD2_TEXT}ln_final.weight"], tensors[f"{SD2_TEXT}ln_final.bias"])
    last = functional.layer_norm(by_hand[22], (64,), *norm)
    torch.testing.assert_close(ours.last_hidden_state, last, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_second_text_encoder_of_sdxl(checkpoint_of: Callable[[str], Path], model_of: Callable[[str], Any]) -> None:
    _, encoder = model_of("sdxl").text_encoders
    by_hand, pooled = open_clip(load_file(checkpoint_of("sdxl")), SDXL_TEXTS[1], some_ids(), heads=1)
    assert len(by_hand) == encoder.config.num_hidden_layers == 32
    ours = encoder(some_ids(), output_hidden_states=True)
    # 31 layers of rounding, which each version of transformers does in its own order: 1.1e-5 was seen.
    torch.testing.assert_close(ours.hidden_states[-2], by_hand[30], rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(ours.text_embeds, pooled, rtol=1e-5, atol=5e-5)


def test_open_clip_has_heads_of_64_channels() -> None:
    """The widths of the public encoders: CLIP-L 768, SD2's 1024, SDXL's second 1280."""
    from lora_train.engine.topology import Hints, heads_of, text_config

    for width, heads in ((768, 12), (1024, 16), (1280, 20), (64, 1), (32, 1)):
        shapes = {
            "embeddings.token_embedding.weight": (49408, width),
            "embeddings.position_embedding.weight": (77, width),
            "encoder.layers.0.mlp.fc1.weight": (4 * width, width),
        }
        config = text_config(shapes, lambda name: name, Hints(), is_open_clip=True)
        assert (config["num_attention_heads"], config["hidden_act"]) == (heads, "gelu")
    assert heads_of((320, 640, 1280, 1280)) == (5, 10, 20, 20)
    assert heads_of((320, 640, 1280)) == (5, 10, 20)


def test_first_text_encoder_of_sdxl(checkpoint_of: Callable[[str], Path], model_of: Callable[[str], Any]) -> None:
    encoder, _ = model_of("sdxl").text_encoders
    tensors = load_file(checkpoint_of("sdxl"))
    weights = dict(text_core(encoder).named_parameters())
    assert encoder.config.hidden_act == "quick_gelu"
    assert {f"{SDXL_TEXTS[0]}{name}" for name in weights} == {
        name for name in tensors if name.startswith(SDXL_TEXTS[0]) and "position_ids" not in name
    }
    assert all(torch.equal(own, tensors[SDXL_TEXTS[0] + name]) for name, own in weights.items())


@pytest.mark.parametrize(
    ("family", "kinds", "pads", "scale"),
    [
        ("sd1-inpaint", ["CLIPTextModel"], [49407], 0.18215),
        ("sd2", ["CLIPTextModel"], [0], 0.18215),
        ("sdxl", ["CLIPTextModel", "CLIPTextModelWithProjection"], [49407, 0], 0.13025),
    ],
)
def test_parts_by_family(
    family: str, kinds: list[str], pads: list[int], scale: float, model_of: Callable[[str], Any]
) -> None:
    model = model_of(family)
    assert [type(encoder).__name__ for encoder in model.text_encoders] == kinds
    assert [tokenizer.pad_token_id for tokenizer in model.tokenizers] == pads
    # What pads is a word of captions too, with the end-of-word that CLIP's vocabulary gives it.
    assert [tokenizer("hello!").input_ids for tokenizer in model.tokenizers] == [[49406, 3306, 256, 49407]] * len(pads)
    assert model.vae_scale == model.vae.config.scaling_factor == scale
    assert (model.native_resolution_px, model.bucket_step_px) == (64, 8)
    assert [type(encoder).__name__ for encoder in model.text_encoders] == kinds
    model.drop_text_encoders()
    assert len(model.text_encoders) == len(kinds)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_ckpt_with_everything_in_a_state_dict(
    family: str, zipped: bool, checkpoint_of: Callable[[str], Path], model_of: Callable[[str], Any], tmp_path: Path
) -> None:
    content = {"epoch": 3, "state_dict": load_file(checkpoint_of(family))}
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    assert_same_weights(load(tmp_path / "model.ckpt"), model_of(family))


def test_sd2_with_the_names_of_its_turbo_in_a_ckpt(
    checkpoint_of: Callable[[str], Path], model_of: Callable[[str], Any], tmp_path: Path
) -> None:
    tensors = load_file(checkpoint_of("sd2"))
    renamed = {name.replace(SD2_TEXT, "conditioner.embedders.0.model."): own for name, own in tensors.items()}
    assert renamed.keys() != tensors.keys()
    torch.save({"state_dict": renamed}, tmp_path / "turbo.ckpt")
    model = load(tmp_path / "turbo.ckpt")
    assert model.family == "sd2"
    assert_same_weights(model, model_of("sd2"))


def test_sdxl_without_text_model_in_its_names(
    checkpoint_of: Callable[[str], Path], model_of: Callable[[str], Any], tmp_path: Path
) -> None:
    tensors = load_file(checkpoint_of("sdxl"))
    bare = {name.replace(".transformer.text_model.", ".transformer."): own for name, own in tensors.items()}
    assert bare.keys() != tensors.keys()
    assert_same_weights(load(save(tmp_path / "a.safetensors", bare)), model_of("sdxl"))


def test_sd2_that_went_through_diffusers(
    checkpoint_of: Callable[[str], Path], model_of: Callable[[str], Any], tmp_path: Path
) -> None:
    """Such files have the 23 layers that are read, and no more."""
    tensors = {name: own for name, own in load_file(checkpoint_of("sd2")).items() if ".resblocks.23." not in name}
    assert_same_weights(load(save(tmp_path / "a.safetensors", tensors)), model_of("sd2"))


# --- what it predicts ---


def test_marker_tensors_of_sdxl(tmp_path: Path) -> None:
    """They are empty in the files that people share."""
    path = tmp_path / "v.safetensors"
    markers = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    write_random_checkpoint(path, SMALL_SDXL, dtype=torch.float16, seed=7, extra=markers)
    model = load(path)
    assert (model.family, model.prediction, model.zero_terminal_snr) == ("sdxl", "v_prediction", True)
    chosen = load(path, prediction="epsilon")
    assert (chosen.prediction, chosen.zero_terminal_snr) == ("epsilon", False)
    assert not load(path, zero_terminal_snr="off").zero_terminal_snr


def test_prediction_of_sd2(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    telltale = {SD2_TELLTALE: torch.tensor([0.2, -0.2] * 16)}
    write_random_checkpoint(path, SMALL_SD2, dtype=torch.float32, seed=7, extra=telltale)
    assert load(path).prediction == "v_prediction"
    assert load(checkpoint_of("sd2")).prediction == "epsilon"
    assert load(checkpoint_of("sd2"), prediction="v_prediction", zero_terminal_snr="on").zero_terminal_snr
    with pytest.raises(ConfigError, match="epsilon"):
        load(checkpoint_of("sd2"), zero_terminal_snr="on")


# --- diffusers folders ---


def write_folder(folder: Path, model: BaseModel, scheduler: dict[str, Any], **saving: Any) -> Path:
    """The model as diffusers keeps it; `saving` goes to the UNet's `save_pretrained`."""
    is_sdxl = len(model.text_encoders) == 2
    model.unet.save_pretrained(folder / "unet", **saving)
    model.vae.save_pretrained(folder / "vae")
    for name, encoder in zip(("text_encoder", "text_encoder_2"), model.text_encoders, strict=False):
        encoder.save_pretrained(folder / name)
    kind = "StableDiffusionXL" if is_sdxl else "StableDiffusion"
    kind += "InpaintPipeline" if model.in_channels == 9 else "Pipeline"
    (folder / "scheduler").mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}), encoding="utf-8")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler), encoding="utf-8")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_folder(family: str, model_of: Callable[[str], Any], tmp_path: Path) -> None:
    scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    folder = load(write_folder(tmp_path / "model", model_of(family), scheduler))
    assert_same_weights(folder, model_of(family))
    assert (folder.family, folder.prediction, folder.zero_terminal_snr) == (family, "v_prediction", True)
    assert folder.vae_scale == model_of(family).vae_scale
    assert [own.pad_token_id for own in folder.tokenizers] == [own.pad_token_id for own in model_of(family).tokenizers]
    assert load(tmp_path / "model", prediction="epsilon").prediction == "epsilon"


def test_unet_in_several_files(model_of: Callable[[str], Any], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", model_of("sdxl"), {}, max_shard_size="3MB")
    pieces = sorted((folder / "unet").glob("*.safetensors"))
    assert len(pieces) > 1
    assert_same_weights(load(folder), model_of("sdxl"))
    pieces[0].unlink()
    with pytest.raises(ModelError, match="does not exist"):
        _ = load(folder).unet
    index = next((folder / "unet").glob("*.index.json"))
    index.write_text('{"weight_map": 3}', encoding="utf-8")
    with pytest.raises(ModelError, match="can't be read"):
        _ = load(folder).unet


# --- what is no model of these families ---


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("output_blocks.1.1.transformer_blocks.9.", "output_blocks.1 has 9 transformer blocks, 10 were expected"),
        ("middle_block.1.transformer_blocks.9.", "middle_block has 9 transformer blocks, 10 were expected"),
        ("label_emb.0.2.", "lacks 2 tensors, the first is model.diffusion_model.label_emb.0.2.weight"),
    ],
)
def test_shortened_models_are_named(gone: str, says: str, checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = {name: own for name, own in load_file(checkpoint_of("sdxl")).items() if UNET + gone not in name}
    model = load(save(tmp_path / "a.safetensors", tensors))
    with pytest.raises(ModelError) as error:
        _ = model.unet
    assert says in error.value.message
    assert "a.safetensors" in error.value.message


def test_missing_second_text_encoder_is_named(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = load_file(checkpoint_of("sdxl"))
    without = {name: own for name, own in tensors.items() if not name.endswith("1.model.token_embedding.weight")}
    model = load(save(tmp_path / "a.safetensors", without))
    with pytest.raises(ModelError, match="has no text encoder"):
        _ = model.text_encoders
