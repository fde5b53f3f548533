"""Model sizes from tensor shapes; what shapes can't tell (attention heads) from the `.yaml` beside the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lora_train.core.errors import ModelError
from lora_train.engine import ldm_names

Shapes = Mapping[str, tuple[int, ...]]

SD1_HEADS = 8
CLIP_HEAD_CHANNELS = 64
"""Channels of one attention head in every CLIP text encoder, and in the UNets of SD2 and SDXL."""
TIME_EMBEDDING_CHANNELS = 256
"""SDXL: channels that each of the six sizes is turned into."""
_SD2_TEXT_LAYERS = 23
"""SD2 reads the last layer but one of its encoder's 24; a file that went through diffusers has only these."""
_NORM_GROUPS = 32


class Hints(msgspec.Struct, frozen=True):
    """What a checkpoint's yaml says and its tensors don't; None where it says nothing."""

    heads: int | None = None
    vae_scale: float | None = None
    text_config: dict[str, Any] = {}
    text_folder: Path | None = None


def read_hints(checkpoint: Path) -> Hints:
    """The original (LDM) config beside `checkpoint`, under the same name with `.yaml`; nothing where there is none.

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
        unet = (params.get("unet_config") or params["network_config"])["params"]  # the second is SDXL's name
        version = str(params.get("cond_stage_config", {}).get("params", {}).get("version", ""))
        is_remote = version.startswith(("\\\\", "//"))  # Windows would log in to the server it names
        folder = (path.parent / version) if version and not is_remote else None
        has_config = folder is not None and (folder / "config.json").is_file()
        heads, scale = unet.get("num_heads", -1), params.get("scale_factor")
        return Hints(
            heads=int(heads) if int(heads) > 0 else None,
            vae_scale=float(scale) if scale is not None else None,
            text_config=msgspec.json.decode((folder / "config.json").read_bytes())
            if folder is not None and has_config
            else {},
            text_folder=folder if has_config else None,
        )
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{path} is not an LDM config: {error!r}.", "Repair it, or remove it for a standard model."
        ) from None


def heads_of(channels: Iterable[int]) -> tuple[int, ...]:
    """Attention heads on each level of SD2's and SDXL's UNet: one for 64 channels, (5, 10, 20, 20) in SD2.

    A small model's levels have at least one.
    """
    return tuple(max(1, count // CLIP_HEAD_CHANNELS) for count in channels)


def unet_config(shapes: Shapes, hints: Hints, family: str) -> dict[str, Any]:
    """Arguments of diffusers' UNet2DConditionModel for an original-layout checkpoint. Raises ModelError.

    SD1 has 8 heads on every level unless the yaml tells another number; SD2 and SDXL: `heads_of`.
    """
    prefix = ldm_names.UNET_PREFIX
    channels, depths, layers_per_block = _unet_levels(shapes)
    down = tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths)
    text_name = next((name for name in shapes if name.endswith("attn2.to_k.weight")), "")
    projections = [
        shape for name, shape in shapes.items() if name.startswith(prefix) and name.endswith("proj_in.weight")
    ]
    heads = SD1_HEADS if family.startswith("sd1") else heads_of(channels)
    config: dict[str, Any] = {
        "in_channels": _shape(shapes, prefix + "input_blocks.0.0.weight")[1],
        "out_channels": _shape(shapes, prefix + "out.2.weight")[0],
        "block_out_channels": channels,
        "down_block_types": down,
        "up_block_types": tuple(kind.replace("Down", "Up") for kind in reversed(down)),
        "layers_per_block": layers_per_block,
        "transformer_layers_per_block": tuple(max(1, depth) for depth in depths),
        "cross_attention_dim": _shape(shapes, text_name)[1],
        "attention_head_dim": hints.heads or heads,  # diffusers' name for the number of heads
        "use_linear_projection": bool(projections) and len(projections[0]) == 2,
        "norm_num_groups": _NORM_GROUPS,
    }
    if f"{prefix}label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_EMBEDDING_CHANNELS,
            "projection_class_embeddings_input_dim": shapes[f"{prefix}label_emb.0.0.weight"][1],
        }
    return config


def _unet_levels(shapes: Shapes) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Channels and transformer depth of each level, and the residual blocks per level. Raises ModelError.

    Every attention of a level must be equally deep, on both sides and in the middle (as on the last level).
    """
    prefix = ldm_names.UNET_PREFIX
    channels: list[int] = []
    depths: list[int] = []
    layers: list[int] = [0]
    block = 1
    while True:
        name = f"{prefix}input_blocks.{block}"
        resnet = shapes.get(f"{name}.0.in_layers.2.weight")
        if resnet is not None:
            if layers[-1] == 0:
                channels.append(resnet[0])
                depths.append(_depth(shapes, name))
            layers[-1] += 1
        elif f"{name}.0.op.weight" in shapes:
            layers.append(0)
        else:
            break
        block += 1
    if len(channels) != len(layers) or len(set(layers)) != 1:
        raise ModelError("The checkpoint's UNet is not built like Stable Diffusion's.")
    each = layers[0]
    expected = {f"{prefix}middle_block": max(1, depths[-1])}
    for level, depth in enumerate(depths):
        below = len(depths) - 1 - level
        expected |= {f"{prefix}input_blocks.{1 + level * (each + 1) + index}": depth for index in range(each)}
        expected |= {f"{prefix}output_blocks.{below * (each + 1) + index}": depth for index in range(each + 1)}
    for name, depth in expected.items():
        if _depth(shapes, name) != depth:
            raise ModelError(
                f"The checkpoint's UNet is not built like Stable Diffusion's: {name} has "
                f"{_depth(shapes, name)} transformer blocks, {depth} were expected.",
                "Shortened (distilled) models can't be trained here.",
            )
    return tuple(channels), tuple(depths), each


def _depth(shapes: Shapes, block: str) -> int:
    """Transformer blocks in the attention of an input, middle or output block."""
    depth = 0
    while f"{block}.1.transformer_blocks.{depth}.norm1.weight" in shapes:
        depth += 1
    return depth


def vae_config(shapes: Shapes, prefix: str, vae_scale: float) -> dict[str, Any]:
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
        "scaling_factor": vae_scale,
    }


def text_config(shapes: Shapes, place: Callable[[str], str], hints: Hints, *, is_open_clip: bool) -> dict[str, Any]:
    """Arguments of transformers' CLIPTextConfig for a text encoder whose tensors `place` finds by transformers' names.

    OpenCLIP's encoders have the exact GELU, CLIP-L its approximation. Raises ModelError.
    """
    vocabulary, width = _shape(shapes, place("embeddings.token_embedding.weight"))
    layers = 0
    while place(f"encoder.layers.{layers}.mlp.fc1.weight") in shapes:
        layers += 1
    told = {} if is_open_clip else hints.text_config
    projection = shapes.get(place("text_projection.weight"), (width, width)) if is_open_clip else (width, width)
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _shape(shapes, place("encoder.layers.0.mlp.fc1.weight"))[0],
        "num_hidden_layers": layers,
        "num_attention_heads": told.get("num_attention_heads", max(1, width // CLIP_HEAD_CHANNELS)),
        "max_position_embeddings": _shape(shapes, place("embeddings.position_embedding.weight"))[0],
        "hidden_act": told.get("hidden_act", "gelu" if is_open_clip else "quick_gelu"),
        "layer_norm_eps": told.get("layer_norm_eps", 1e-5),
        "projection_dim": told.get("projection_dim", projection[1]),
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 1,
    }


def without_last_layer(config: dict[str, Any]) -> dict[str, Any]:
    """SD2's encoder as SD2 reads it: the first 23 of its 24 layers."""
    return {**config, "num_hidden_layers": min(config["num_hidden_layers"], _SD2_TEXT_LAYERS)}


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    try:
        return shapes[name]
    except KeyError:
        raise ModelError(f"The checkpoint lacks the tensor {name}.", "It may be cut off or of another kind.") from None
