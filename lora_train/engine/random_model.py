"""Checkpoints with the true block topology of SD1, SD2 and SDXL and random weights, in the original layout.

For measuring (full size) and for tests (small channels): everything a real file has except what it knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from safetensors.torch import save_file
from torch import nn

from lora_train.engine import ldm_names
from lora_train.engine.topology import CLIP_HEAD_CHANNELS, SD1_HEADS, TIME_EMBEDDING_CHANNELS, heads_of

Tensors = dict[str, torch.Tensor]


class TextSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a text encoder under `prefix`, in CLIP's layout or OpenCLIP's; the defaults are CLIP-L's."""

    prefix: str = ldm_names.CLIP_PREFIXES[0]
    is_open_clip: bool = False
    width: int = 768
    layers: int = 12


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a checkpoint; the defaults are Stable Diffusion 1.5's. Channels must be multiples of 32.

    depths         transformer blocks in each attention of a level, 0 for a level without attention
    is_linear      SD2 and SDXL: attention blocks begin and end with a Linear and have heads of 64 channels
    pooled_width   SDXL: width of the pooled text, 0 for a UNet that takes none
    in_channels    4; 9 of an inpainting model
    """

    unet_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    depths: tuple[int, ...] = (1, 1, 1, 0)
    is_linear: bool = False
    pooled_width: int = 0
    in_channels: int = 4
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    text: tuple[TextSizes, ...] = (TextSizes(),)


SD1 = Sizes()
SD2 = Sizes(
    is_linear=True,
    text=(TextSizes(prefix=ldm_names.SD2_TEXT_PREFIXES[0], is_open_clip=True, width=1024, layers=24),),
)
SDXL = Sizes(
    unet_channels=(320, 640, 1280),
    depths=(0, 2, 10),
    is_linear=True,
    pooled_width=1280,
    text=(
        TextSizes(prefix="conditioner.embedders.0.transformer.text_model."),
        TextSizes(prefix=ldm_names.SDXL_TEXT_PREFIXES[0], is_open_clip=True, width=1280, layers=32),
    ),
)


def _small(sizes: Sizes, channels: tuple[int, ...], *widths: int, text_layers: int = 0) -> Sizes:
    """The same blocks with about as few channels as the 32 groups of the norms allow."""
    replace = msgspec.structs.replace
    return replace(
        sizes,
        unet_channels=channels,
        pooled_width=widths[-1] if sizes.pooled_width else 0,
        vae_channels=(32, 32, 32, 32),
        vae_layers=1,
        text=tuple(
            replace(text, width=width, layers=text_layers or text.layers)
            for text, width in zip(sizes.text, widths, strict=True)
        ),
    )


SMALL = _small(SD1, (32, 32, 32, 32), 64, text_layers=2)
"""About 1 M UNet weights."""
SMALL_SD2 = _small(SD2, (32, 64, 32, 32), 64)
"""All of SD2's 24 text layers; channels change where SD2's do, and so its residual blocks have the same layers."""
SMALL_SDXL = _small(SDXL, (32, 64, 32), 32, 64)
"""All of SDXL's 70 transformer blocks and 12 + 32 text layers; channels change where SDXL's do."""

_LAYERS_PER_BLOCK = 2


def with_in_channels(sizes: Sizes, in_channels: int) -> Sizes:
    """The same model with so many input channels: 9 for inpainting."""
    return msgspec.structs.replace(sizes, in_channels=in_channels)


def write_random_checkpoint(
    path: Path, sizes: Sizes, *, dtype: torch.dtype, seed: int, extra: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write a .safetensors file of 2 to 7 GB (fp16, full size) or 7 to 20 MB (small), with `extra` tensors in it.

    `extra` is for markers such as `v_pred`, and for tensors that take the place of random ones.
    """
    tensors = {**random_checkpoint(sizes, dtype=dtype, seed=seed), **(extra or {})}
    save_file(tensors, str(path), metadata={"format": "pt"})


def random_checkpoint(sizes: Sizes, *, dtype: torch.dtype, seed: int) -> Tensors:
    """Tensors by their original names; activations keep about the size that they have in a trained model."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.arange(shape[-1]).expand(shape).clone()
        if name.endswith("position_ids")
        else _random_weight(name, shape, generator).to(dtype)
        for name, shape in checkpoint_shapes(sizes).items()
    }


def checkpoint_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint by its original name, with its shape; takes no memory."""
    shapes = {**unet_shapes(sizes), **_vae_shapes(sizes)}
    for text in sizes.text:
        shapes.update(_open_clip_shapes(text) if text.is_open_clip else _clip_shapes(text))
    return shapes


def _random_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) < 2:  # norms have a weight of one, everything else here is a bias
        is_norm = name.endswith(".weight")
        near_zero = torch.randn(shape, generator=generator) * 0.02
        return near_zero + 1 if is_norm else near_zero
    fan_in = math.prod(shape[1:])
    return torch.randn(shape, generator=generator) / math.sqrt(fan_in)


def _shapes(module: nn.Module, rename: Callable[[str], str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, parameter in module.named_parameters():
        yield rename(name), tuple(parameter.shape)


def unet_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The UNet's share of `checkpoint_shapes`."""
    from diffusers import UNet2DConditionModel

    has_attention = [depth > 0 for depth in sizes.depths]
    down = tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in has_attention)
    added: dict[str, Any] = {}
    if sizes.pooled_width:
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_EMBEDDING_CHANNELS,
            "projection_class_embeddings_input_dim": sizes.pooled_width + 6 * TIME_EMBEDDING_CHANNELS,
        }
    with torch.device("meta"):
        unet: Any = cast("Any", UNet2DConditionModel)(
            in_channels=sizes.in_channels,
            block_out_channels=sizes.unet_channels,
            down_block_types=down,
            up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(down)),
            layers_per_block=_LAYERS_PER_BLOCK,
            transformer_layers_per_block=tuple(max(1, depth) for depth in sizes.depths),
            cross_attention_dim=sum(text.width for text in sizes.text),
            attention_head_dim=heads_of(sizes.unet_channels) if sizes.is_linear else SD1_HEADS,
            use_linear_projection=sizes.is_linear,
            **added,
        )

    def rename(name: str) -> str:
        return ldm_names.UNET_PREFIX + ldm_names.unet_module_name(name, _LAYERS_PER_BLOCK, has_attention)

    return dict(_shapes(unet, rename))


def _vae_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    from diffusers import AutoencoderKL

    count = len(sizes.vae_channels)
    with torch.device("meta"):
        vae: Any = cast("Any", AutoencoderKL)(
            block_out_channels=sizes.vae_channels,
            down_block_types=("DownEncoderBlock2D",) * count,
            up_block_types=("UpDecoderBlock2D",) * count,
            layers_per_block=sizes.vae_layers,
            latent_channels=4,
        )
    return {
        # The original VAE has 1x1 convolutions in its attention.
        name: (*shape, 1, 1) if ".attn_1." in name and len(shape) == 2 else shape
        for name, shape in _shapes(vae, lambda name: ldm_names.VAE_PREFIX + ldm_names.vae_name(name, count))
    }


def _clip_shapes(text: TextSizes) -> dict[str, tuple[int, ...]]:
    shapes = dict(_shapes(_text_core(text), lambda name: text.prefix + name))
    return {**shapes, f"{text.prefix}embeddings.position_ids": (1, 77)}


def _open_clip_shapes(text: TextSizes) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in _text_core(text).named_parameters():
        place = ldm_names.open_clip_place(name)
        rows = 1 if place.third is None else 3
        shapes[text.prefix + place.name] = (rows * parameter.shape[0], *parameter.shape[1:])
    return {**shapes, f"{text.prefix}text_projection": (text.width, text.width), f"{text.prefix}logit_scale": ()}


def _text_core(text: TextSizes) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        encoder: Any = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=text.width,
                intermediate_size=4 * text.width,
                num_hidden_layers=text.layers,
                num_attention_heads=max(1, text.width // CLIP_HEAD_CHANNELS),
                projection_dim=text.width,
            )
        )
    return getattr(encoder, "text_model", encoder)
