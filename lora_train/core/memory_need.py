"""What a training will take on its device, foretold from sizes alone; the worker's trial is what counts.

The tables were counted, not measured: what `lora-train bench --count` finds of a step of SD 1.5 and SDXL at its peak,
less weights, LoRA, optimizer and caches. Within a family the count was proportional to latent pixels (512, 768 and
1024 px), to views (1 and 4) and to bytes per number (bf16 and fp32), each to half a percent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from lora_train.core.conditioning import trains_text_encoders
from lora_train.core.config import TrainSettings
from lora_train.core.memory import Checkpointing, MemoryNeed, MemoryPlan, asked_plan, backward_passes
from lora_train.core.optimizers import OPTIMIZERS, sees_shapes
from lora_train.core.ranks import ranks_of

VAE_FACTOR = 8
"""Pixels on a side that one latent pixel stands for."""
CHUNK_TOKENS = 77
"""A chunk of a caption as the text encoder takes it: 75 tokens, beginning and end."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What the need depends on beside the settings."""

    family: str
    """One that is trained; an inpainting model needs what its family does."""
    model_channels: int | None = None
    """Of the UNet's finest level; None: as the family has them."""
    area_px: int
    """Of the largest bucket: width x height."""
    pictures: int = 0
    """Whose latents are kept."""
    captions: int = 0
    """Different ones of an epoch, whose embeddings are kept."""
    bytes_per_number: Literal[2, 4]
    """Of the compute precision."""
    on_cpu: bool = False
    stays_half: bool = False
    """On a CPU that computes in float32: the file has the UNet in 16 bits, in which the largest convolutions stay."""


class _Activations(NamedTuple):
    """Bytes of one view with numbers of 2 bytes, rank 16 and 77 tokens: the peak, less weights and gradients."""

    per_latent_pixel: float
    per_rank: float
    """For each rank more and latent pixel: what went through the LoRA's first half."""
    per_token: float
    """For each token more: keys and values of the captions in every cross-attention."""


class _Family(NamedTuple):
    unet_weights: int
    large_conv_weights: int
    """Those of the UNet that stay in 16 bits on a CPU (`engine.lowered`), where the file has them so."""
    text_weights: int
    text_width: int
    """Of a token's embedding."""
    pooled_width: int
    unet_lora_weights: int
    """For each rank, in the attention blocks."""
    conv_lora_weights: int
    """For each convolution rank, in all others."""
    text_lora_weights: int
    text_activations: float
    """Bytes of one token with numbers of 2 bytes, where text encoders are trained."""
    activations: dict[Checkpointing, _Activations]


_SD1 = _Family(
    unet_weights=859_520_964,
    large_conv_weights=464_486_400,
    text_weights=123_060_480,
    text_width=768,
    pooled_width=0,
    unet_lora_weights=423_936,
    conv_lora_weights=626_880,
    text_lora_weights=165_888,
    text_activations=390e3,
    activations={
        "none": _Activations(188_769, 132.8, 54.0e3),
        "some": _Activations(105_276, 77.3, 27.9e3),
        "all": _Activations(45_100, 29.2, 4.4e3),
    },
)
_OF = {
    "sd1": _SD1,
    "sd2": _SD1._replace(  # the same blocks; heads and the text's width make no difference in activations
        unet_weights=865_910_724,
        text_weights=340_387_840,
        text_width=1024,
        unet_lora_weights=432_128,
        text_lora_weights=423_936,
        text_activations=783e3,
    ),
    "sdxl": _Family(
        unet_weights=2_567_463_684,
        large_conv_weights=243_302_400,
        text_weights=817_720_320,
        text_width=2048,
        pooled_width=1280,
        unet_lora_weights=2_659_840,
        conv_lora_weights=414_400,
        text_lora_weights=903_168,
        text_activations=1739e3,
        activations={
            "none": _Activations(349_297, 107.8, 345.5e3),
            "some": _Activations(177_577, 51.3, 174.2e3),
            "all": _Activations(32_629, 6.5, 8.2e3),
        },
    ),
}
_FULL_CHANNELS = 320
_CONV_PER_LATENT_PIXEL, _CONV_PER_RANK = 22_000.0, 40.0
"""With LoRA on the other convolutions too, their inputs are kept: about as counted with rank 16 and 128."""
_WIDEST_CONV_WEIGHTS = 2560 * 1280 * 9
"""Of the widest convolution of all three families."""
_LARGEST_UNIT_WEIGHTS = (2560 + 1280) * 1280 * 9 + 2560 * 1280
"""The widest residual block of all three. Where weights wait in main memory, there is room for two: the one that
computes, and the one that comes next."""
_FLOAT32 = 4
_TEXTS_ON_DEVICE_BYTES = 256_000_000
"""Embeddings that are more than this are kept in main memory."""
_CPU_PROCESS_BYTES, _CPU_UNUSED_SHARE = 450_000_000, 0.09
"""Python with torch and diffusers, before any model, as measured on Linux; and what convolutions take besides, and the
C library keeps between tensors: as measured with SD 1.5 at 256 and 512 px."""
_CUDA_CONTEXT_BYTES = 500_000_000
_UNUSED_SHARE = 0.06
"""Of an NVIDIA card: its driver's context with cuBLAS's and cuDNN's workspace, and memory between tensors. Rules of
thumb, which nobody has measured here: the trial replaces them."""


def predicted_need(settings: TrainSettings, work: Workload, plan: MemoryPlan) -> MemoryNeed:
    """The bytes that a training of `settings` takes on its device under `plan`, by what they are for.

    Pictures and captions are encoded before, one part of the base model after the other, which is not counted. Raises
    OSError where the LoRA to continue from can't be read.
    """
    family = _OF[work.family.removesuffix("-inpaint")]
    trains_text = trains_text_encoders(settings, work.family)
    numbers = int(_lora_weights(settings, family, trains_text=trains_text) * _width(work))
    network = int(numbers * _bytes_of_a_weight(settings))
    activations = _activations(settings, family, work, plan, trains_text=trains_text)
    if work.bytes_per_number != _FLOAT32:
        sums = numbers * _FLOAT32
        if backward_passes(settings, plan) > 1 or sees_shapes(settings):
            network += sums
        else:  # they are there when no activations are
            activations = max(activations, sums)
    tensors = MemoryNeed(
        weights_bytes=_weights(settings, family, work, plan, trains_text=trains_text),
        activations_bytes=activations,
        network_bytes=network,
        caches_bytes=_caches(settings, family, work, trains_text=trains_text),
    )
    fixed, share = (_CPU_PROCESS_BYTES, _CPU_UNUSED_SHARE) if work.on_cpu else (_CUDA_CONTEXT_BYTES, _UNUSED_SHARE)
    return msgspec.structs.replace(tensors, workspace_bytes=fixed + int(share * tensors.tensors_bytes))


def _width(work: Workload) -> float:
    """How wide the layers are, compared with the family's own: a small model's are a tenth."""
    return (work.model_channels or _FULL_CHANNELS) / _FULL_CHANNELS


def _weights(settings: TrainSettings, family: _Family, work: Workload, plan: MemoryPlan, *, trains_text: bool) -> int:
    """UNet, and text encoders where they can't be let go: trained, or with captions that change with every epoch, for
    which plans that save memory let them wait elsewhere between epochs.

    Weights of 8 bits are unpacked where they are used; the widest ones are, when few activations are there. For those
    that stay in 16 bits there is room for one in 32. On a CPU nothing waits elsewhere.
    """
    size = work.bytes_per_number
    stored = size if plan.base_weights == "full" else 1
    offload_share = 0 if work.on_cpu else plan.offload_share
    unet = family.unet_weights * stored * (1 - offload_share)
    if work.stays_half and plan.base_weights == "full" and _width(work) == 1:
        unet += _WIDEST_CONV_WEIGHTS * _FLOAT32 - family.large_conv_weights * (_FLOAT32 - 2)
    places = 2 * _LARGEST_UNIT_WEIGHTS * stored if offload_share else 0
    changes = settings.shuffle_captions or settings.caption_dropout > 0
    stays = trains_text or (changes and (work.on_cpu or plan == asked_plan(settings)))
    text = family.text_weights * size if stays else 0
    return int((unet + places + text) * _width(work) ** 2)


def _activations(
    settings: TrainSettings, family: _Family, work: Workload, plan: MemoryPlan, *, trains_text: bool
) -> int:
    views = min(plan.views_at_once or settings.batch_size, settings.batch_size)
    latent_pixels = work.area_px / VAE_FACTOR**2
    tokens = settings.max_tokens // (CHUNK_TOKENS - 2) * CHUNK_TOKENS
    rank = max(rank for part, (rank, _) in ranks_of(settings).items() if part not in ("conv", "text_encoder"))
    counted = family.activations[plan.checkpointing]
    each = (counted.per_latent_pixel + counted.per_rank * (rank - 16)) * latent_pixels
    if settings.conv_rank:
        each += (_CONV_PER_LATENT_PIXEL + _CONV_PER_RANK * settings.conv_rank) * latent_pixels
    each += counted.per_token * (tokens - CHUNK_TOKENS)
    each += family.text_activations * tokens if trains_text else 0
    return int(each * views * work.bytes_per_number / 2 * _width(work))


def _bytes_of_a_weight(settings: TrainSettings) -> float:
    """Of a LoRA: in float32 with its gradient, or in float32, with a copy and its gradient of 2 bytes each; the
    optimizer's state, and the averages where they are kept.
    """
    return 2 * _FLOAT32 + OPTIMIZERS[settings.optimizer].state_bytes + (_FLOAT32 if settings.ema_decay else 0)


def _lora_weights(settings: TrainSettings, family: _Family, *, trains_text: bool) -> int:
    """At most so many: block groups with a lower rank than the highest have fewer."""
    if settings.continue_from:
        return Path(settings.continue_from).stat().st_size // 2  # in half precision; else fewer
    ranks = ranks_of(settings)
    conv_rank, text_rank = ranks.pop("conv")[0], ranks.pop("text_encoder")[0]
    unet = max(rank for rank, _ in ranks.values()) * family.unet_lora_weights + conv_rank * family.conv_lora_weights
    return unet + (text_rank * family.text_lora_weights if trains_text else 0)


def _caches(settings: TrainSettings, family: _Family, work: Workload, *, trains_text: bool) -> int:
    """Mean and deviation of the latents in float32, mirrored too where views are; embeddings in the compute dtype."""
    one = 2 * 4 * work.area_px // VAE_FACTOR**2 * _FLOAT32
    latents = work.pictures * one * (2 if settings.flip else 1)
    tokens = settings.max_tokens // (CHUNK_TOKENS - 2) * CHUNK_TOKENS
    texts = work.captions * (tokens * family.text_width + family.pooled_width) * work.bytes_per_number
    stays_on_device = not trains_text and (work.on_cpu or texts <= _TEXTS_ON_DEVICE_BYTES)
    return latents + (texts if stays_on_device else 0)
