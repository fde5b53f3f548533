"""Checkpoints with the true topology of Stable Diffusion 1.x and random weights, in the original layout.

For measuring (full size) and for tests (small channels): everything a real file has except what it knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from safetensors.torch import save_file
from torch import nn

from lora_train.engine import ldm_names


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a checkpoint; the defaults are Stable Diffusion 1.5's. Channels must be multiples of 32."""

    unet_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12


SMALL = Sizes(
    unet_channels=(32, 32, 32, 32),
    vae_channels=(32, 32, 32, 32),
    vae_layers=1,
    text_width=64,
    text_layers=2,
    text_heads=1,
)
"""The same blocks with as few channels as the 32 groups of the norms allow: about 1 M UNet weights."""

_LAYERS_PER_BLOCK = 2
_HEADS = 8


def write_random_checkpoint(path: Path, sizes: Sizes, *, dtype: torch.dtype, seed: int) -> None:
    """Write a .safetensors file of about 2 GB (fp16, full size) or 7 MB (small)."""
    save_file(random_checkpoint(sizes, dtype=dtype, seed=seed), str(path), metadata={"format": "pt"})


def random_checkpoint(sizes: Sizes, *, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """Tensors by their original names; activations keep about the size that they have in a trained model."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in _named_parameters(sizes):
        shape = tuple(parameter.shape)
        if name.startswith(ldm_names.VAE_PREFIX) and ".attn_1." in name and parameter.ndim == 2:
            shape += (1, 1)  # the original VAE has 1x1 convolutions there
        tensors[name] = _random_weight(name, shape, generator).to(dtype)
    positions = f"{ldm_names.TEXT_PREFIX}text_model.embeddings.position_ids"
    tensors[positions] = torch.arange(77)[None]
    return tensors


def _random_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:  # norms have a weight of one, everything else here is a bias
        is_norm = name.endswith(".weight")
        near_zero = torch.randn(shape, generator=generator) * 0.02
        return near_zero + 1 if is_norm else near_zero
    fan_in = math.prod(shape[1:])
    return torch.randn(shape, generator=generator) / math.sqrt(fan_in)


def _named_parameters(sizes: Sizes) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter of the three models under its original name."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    levels = len(sizes.unet_channels)
    attention = [True] * (levels - 1) + [False]
    with torch.device("meta"):
        unet: Any = cast("Any", UNet2DConditionModel)(
            block_out_channels=sizes.unet_channels,
            down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
            layers_per_block=_LAYERS_PER_BLOCK,
            cross_attention_dim=sizes.text_width,
            attention_head_dim=_HEADS,
        )
        count = len(sizes.vae_channels)
        vae: Any = cast("Any", AutoencoderKL)(
            block_out_channels=sizes.vae_channels,
            down_block_types=("DownEncoderBlock2D",) * count,
            up_block_types=("UpDecoderBlock2D",) * count,
            layers_per_block=sizes.vae_layers,
            latent_channels=4,
        )
        text: Any = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=sizes.text_width,
                intermediate_size=4 * sizes.text_width,
                num_hidden_layers=sizes.text_layers,
                num_attention_heads=sizes.text_heads,
                projection_dim=sizes.text_width,
            )
        )

    def named(module: nn.Module, rename: Callable[[str], str]) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in module.named_parameters():
            yield rename(name), parameter

    yield from named(
        unet,
        lambda name: ldm_names.UNET_PREFIX + ldm_names.unet_module_name(name, _LAYERS_PER_BLOCK, attention),
    )
    yield from named(vae, lambda name: ldm_names.VAE_PREFIX + ldm_names.vae_name(name, count))
    core = getattr(text, "text_model", text)
    yield from named(core, lambda name: f"{ldm_names.TEXT_PREFIX}text_model.{name}")
