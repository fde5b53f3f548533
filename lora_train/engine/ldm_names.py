"""Names of the original (LDM) checkpoint layout for modules that diffusers and transformers name differently.

    UNet, L = layers per block                              prefix model.diffusion_model.
    down_blocks.i.resnets.j      input_blocks.(1+(L+1)i+j).0        (inside: conv1 -> in_layers.2 ...)
    down_blocks.i.attentions.j   input_blocks.(1+(L+1)i+j).1
    down_blocks.i.downsamplers.0 input_blocks.((L+1)(i+1)).0.op
    mid_block.*                  middle_block.0, 1, 2
    up_blocks.i.resnets.j        output_blocks.((L+1)i+j).0
    up_blocks.i.upsamplers.0     output_blocks.((L+1)i+L).(2 behind attentions, else 1).conv
    add_embedding.*              label_emb.0.0, 2                   (SDXL: pooled text and sizes)

    OpenCLIP's text encoder              prefix cond_stage_model.model. (SD2), conditioner.embedders.1.model. (SDXL)
    encoder.layers.n.self_attn.{q,k,v}_proj    transformer.resblocks.n.attn.in_proj_*, a third of the rows each
    encoder.layers.n.mlp.fc1, fc2              transformer.resblocks.n.mlp.c_fc, c_proj
    text_projection.weight                     text_projection, transposed

Read from the two layouts themselves (HOSTS: key conversion); the host's LoRA loader inverts the same map.
"""

from __future__ import annotations

import re
from typing import NamedTuple

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

CLIP_PREFIXES = tuple(
    owner + wrapper
    for owner in ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
    for wrapper in ("text_model.", "")
)
"""Where CLIP-L lies: in SD1's files and in SDXL's, each with `text_model.` and, in some files, without it."""
SD2_TEXT_PREFIXES = ("cond_stage_model.model.", "conditioner.embedders.0.model.")
"""Where SD2's OpenCLIP lies; the second is SD 2.1 Turbo's."""
SDXL_TEXT_PREFIXES = ("conditioner.embedders.1.model.",)
"""Where SDXL's second text encoder lies, an OpenCLIP."""

_UNET_FIXED = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_SAMPLER = re.compile(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv")


def unet_module_name(name: str, layers_per_block: int, levels_with_attention: list[bool]) -> str:
    """LDM name of a UNet module or parameter, without the prefix.

    `name` is diffusers' dotted name; `levels_with_attention` tells for each down level whether it has attention.
    Raises KeyError for a name that the original layout has no place for.
    """
    for ours, theirs in _UNET_FIXED.items():
        if name == ours or name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    if match := _BLOCK.fullmatch(name):
        side, level, kind, layer, rest = match.groups()
        index = int(level) * (layers_per_block + 1) + int(layer)
        block = f"input_blocks.{index + 1}" if side == "down" else f"output_blocks.{index}"
        return f"{block}.0.{_resnet_part(rest)}" if kind == "resnets" else f"{block}.1.{rest}"
    if match := _MIDDLE.fullmatch(name):
        kind, layer, rest = match.groups()
        if kind == "resnets":
            return f"middle_block.{2 * int(layer)}.{_resnet_part(rest)}"
        return f"middle_block.1.{rest}"
    if match := _SAMPLER.match(name):
        side, level = match[1], int(match[2])
        rest = name[match.end() :]
        if side == "down":
            return f"input_blocks.{(layers_per_block + 1) * (level + 1)}.0.op{rest}"
        has_attention = levels_with_attention[len(levels_with_attention) - 1 - level]
        block = level * (layers_per_block + 1) + layers_per_block
        return f"output_blocks.{block}.{2 if has_attention else 1}.conv{rest}"
    raise KeyError(name)


def _resnet_part(rest: str) -> str:
    part, _, leaf = rest.partition(".")
    return _RESNET[part] + (f".{leaf}" if leaf else "")


_VAE_RULES = [
    (re.compile(r"down_blocks\.(\d+)\.resnets\.(\d+)"), r"down.\1.block.\2"),
    (re.compile(r"down_blocks\.(\d+)\.downsamplers\.0\."), r"down.\1.downsample."),
    (re.compile(r"mid_block\.attentions\.0\."), "mid.attn_1."),
    (re.compile(r"mid_block\.resnets\.0"), "mid.block_1"),
    (re.compile(r"mid_block\.resnets\.1"), "mid.block_2"),
    (re.compile(r"conv_shortcut"), "nin_shortcut"),
    (re.compile(r"conv_norm_out"), "norm_out"),
    (re.compile(r"attn_1\.group_norm"), "attn_1.norm"),
    (re.compile(r"attn_1\.to_([qkv])"), r"attn_1.\1"),
    (re.compile(r"attn_1\.to_out\.0"), "attn_1.proj_out"),
]
_VAE_UP = re.compile(r"up_blocks\.(\d+)\.(resnets\.(\d+)|upsamplers\.0)")


def vae_name(name: str, levels: int) -> str:
    """LDM name of a VAE parameter, without the prefix. The decoder counts its `levels` from the other end."""

    def up(match: re.Match[str]) -> str:
        part = "upsample" if match[3] is None else f"block.{match[3]}"
        return f"up.{levels - 1 - int(match[1])}.{part}"

    name = _VAE_UP.sub(up, name)
    for pattern, replacement in _VAE_RULES:
        name = pattern.sub(replacement, name)
    return name


_OLD_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_vae_name(name: str) -> str:
    """Name of a VAE parameter in diffusers folders made before 2023-02."""
    if ".attentions." in name:
        for new, old in _OLD_VAE_ATTENTION.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


class Place(NamedTuple):
    """Where a parameter lies in a file: a whole tensor, or the `third` (0, 1, 2) of its rows; perhaps transposed."""

    name: str
    third: int | None = None
    is_transposed: bool = False


_OPEN_CLIP_FIXED = {
    "embeddings.token_embedding.weight": Place("token_embedding.weight"),
    "embeddings.position_embedding.weight": Place("positional_embedding"),
    "final_layer_norm.weight": Place("ln_final.weight"),
    "final_layer_norm.bias": Place("ln_final.bias"),
    "text_projection.weight": Place("text_projection", is_transposed=True),
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_TEXT_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def open_clip_place(name: str) -> Place:
    """Where OpenCLIP keeps a parameter of transformers' CLIP text encoder, without the prefix of either.

    Raises KeyError for a name that OpenCLIP has no place for.
    """
    match = _TEXT_LAYER.fullmatch(name)
    if match is None:
        return _OPEN_CLIP_FIXED[name]
    layer, module, leaf = match.groups()
    block = f"transformer.resblocks.{layer}"
    if module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        return Place(f"{block}.attn.in_proj_{leaf}", third="qkv".index(module[len("self_attn.")]))
    return Place(f"{block}.{_OPEN_CLIP_LAYER[module]}.{leaf}")
