"""Model sizes from tensor shapes; what shapes can't tell (attention heads) from the `.yaml` beside the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from lora_train.core.errors import ModelError
from lora_train.engine import ldm_names

Shapes = Mapping[str, tuple[int, ...]]

_SD1_HEADS = 8
_CLIP_HEAD_CHANNELS = 64
_NORM_GROUPS = 32


class Hints(msgspec.Struct, frozen=True):
    """What a checkpoint's yaml says and its tensors don't."""

    heads: int = _SD1_HEADS
    prediction: str = "epsilon"
    vae_scale: float = 0.18215
    text_config: dict[str, Any] = {}
    text_folder: Path | None = None


def read_hints(checkpoint: Path) -> Hints:
    """The original (LDM) config beside `checkpoint`, under the same name with `.yaml`; defaults where there is none.

    A relative text-encoder folder (`cond_stage_config.params.version`) is read against the yaml's own folder.
    Raises ModelError for a yaml that can't be read.
    """
    path = checkpoint.with_suffix(".yaml")
    if not path.is_file():
        return Hints()
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        params = config["model"]["params"]
        unet = params["unet_config"]["params"]
        version = str(params.get("cond_stage_config", {}).get("params", {}).get("version", ""))
        is_remote = version.startswith(("\\\\", "//"))  # Windows would log in to the server it names
        folder = (path.parent / version) if version and not is_remote else None
        has_config = folder is not None and (folder / "config.json").is_file()
        return Hints(
            heads=int(unet.get("num_heads", _SD1_HEADS)),
            prediction="v_prediction" if params.get("parameterization") == "v" else "epsilon",
            vae_scale=float(params.get("scale_factor", 0.18215)),
            text_config=msgspec.json.decode((folder / "config.json").read_bytes())
            if folder is not None and has_config
            else {},
            text_folder=folder if has_config else None,
        )
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{path} is not an LDM config: {error!r}.", "Repair it, or remove it for a standard model."
        ) from None


def unet_config(shapes: Shapes, hints: Hints) -> dict[str, Any]:
    """Arguments of diffusers' UNet2DConditionModel for an original-layout SD1 checkpoint. Raises ModelError."""
    prefix = ldm_names.UNET_PREFIX
    conv_in = _shape(shapes, prefix + "input_blocks.0.0.weight")
    conv_out = _shape(shapes, prefix + "out.2.weight")
    channels: list[int] = []
    attention: list[bool] = []
    layers: list[int] = [0]
    block = 1
    while True:
        name = f"{prefix}input_blocks.{block}"
        resnet = shapes.get(f"{name}.0.in_layers.2.weight")
        if resnet is not None:
            if layers[-1] == 0:
                channels.append(resnet[0])
                attention.append(f"{name}.1.proj_in.weight" in shapes)
            layers[-1] += 1
        elif f"{name}.0.op.weight" in shapes:
            layers.append(0)
        else:
            break
        block += 1
    if len(channels) != len(layers) or len(set(layers)) != 1:
        raise ModelError("The checkpoint's UNet is not built like Stable Diffusion 1.x.")
    text_name = next((name for name in shapes if name.endswith("attn2.to_k.weight")), "")
    return {
        "in_channels": conv_in[1],
        "out_channels": conv_out[0],
        "block_out_channels": tuple(channels),
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        "layers_per_block": layers[0],
        "cross_attention_dim": _shape(shapes, text_name)[1],
        "attention_head_dim": hints.heads,  # diffusers' name for the number of heads
        "norm_num_groups": _NORM_GROUPS,
    }


def vae_config(shapes: Shapes, prefix: str, hints: Hints) -> dict[str, Any]:
    """Arguments of diffusers' AutoencoderKL for an original-layout VAE under `prefix`. Raises ModelError."""
    channels: list[int] = []
    while (name := f"{prefix}decoder.up.{len(channels)}.block.0.conv1.weight") in shapes:
        channels.append(shapes[name][0])
    blocks = 0
    while f"{prefix}decoder.up.0.block.{blocks}.conv1.weight" in shapes:
        blocks += 1
    if not channels:
        raise ModelError("The checkpoint has no VAE.", "Give a VAE file with the setting vae.")
    count = len(channels)
    return {
        "in_channels": _shape(shapes, prefix + "encoder.conv_in.weight")[1],
        "out_channels": _shape(shapes, prefix + "decoder.conv_out.weight")[0],
        "block_out_channels": tuple(channels),
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
        "layers_per_block": blocks - 1,
        "latent_channels": _shape(shapes, prefix + "post_quant_conv.weight")[0],
        "norm_num_groups": _NORM_GROUPS,
        "scaling_factor": hints.vae_scale,
    }


def text_config(shapes: Shapes, prefix: str, hints: Hints) -> dict[str, Any]:
    """Arguments of transformers' CLIPTextConfig for the text encoder under `prefix`. Raises ModelError."""
    vocabulary, width = _shape(shapes, prefix + "embeddings.token_embedding.weight")
    layers = 0
    while f"{prefix}encoder.layers.{layers}.mlp.fc1.weight" in shapes:
        layers += 1
    told = hints.text_config
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _shape(shapes, prefix + "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": layers,
        "num_attention_heads": told.get("num_attention_heads", max(1, width // _CLIP_HEAD_CHANNELS)),
        "max_position_embeddings": _shape(shapes, prefix + "embeddings.position_embedding.weight")[0],
        "hidden_act": told.get("hidden_act", "quick_gelu"),
        "layer_norm_eps": told.get("layer_norm_eps", 1e-5),
        "projection_dim": told.get("projection_dim", width),
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 1,
    }


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    try:
        return shapes[name]
    except KeyError:
        raise ModelError(f"The checkpoint lacks the tensor {name}.", "It may be cut off or of another kind.") from None
