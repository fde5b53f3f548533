"""Preview pictures: the loaded model with a diffusers scheduler, without any pipeline class.

Legend: B pictures; sizes in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image

from lora_train.core.conditioning import conditioning_of
from lora_train.core.config import TrainSettings
from lora_train.core.preview_settings import Sampler
from lora_train.core.seeds import derive_seed
from lora_train.engine.denoiser import drawn_sizes, full_mask, predict
from lora_train.engine.loading import BaseModel
from lora_train.engine.text import Embeddings

_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


_MOST_TOGETHER = 8
_TOGETHER_PX = 512 * 512
"""Pictures are drawn together up to so many pixels: previews come on top of the memory that training takes."""


class DrawSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How pictures are drawn; the same for every LoRA that is compared."""

    width_px: int
    height_px: int
    sampler: Sampler = "Euler a"
    steps: int = 24
    cfg_scale: float = 7.0
    clip_skip: int | None = None
    """None where the family takes no notice of it."""


def draw_settings(settings: TrainSettings, model: BaseModel, size_px: int) -> DrawSettings:
    """The preview settings of a run; `size_px` where the person left the size open."""
    side_px = settings.preview_size_px or size_px
    return DrawSettings(
        width_px=side_px,
        height_px=side_px,
        sampler=settings.preview_sampler,
        steps=settings.preview_steps,
        cfg_scale=settings.preview_cfg_scale,
        clip_skip=settings.clip_skip if conditioning_of(model.family).clip_skip_matters else None,
    )


def make_scheduler(sampler: Sampler, prediction: str, *, zero_terminal_snr: bool = False) -> Any:
    """diffusers' scheduler for a sampler as the WebUI names it, with the WebUI's spacing of timesteps.

    With zero terminal SNR the steps begin at pure noise, timestep 999: trailing spacing (Lin et al. 2023, section 3.3).
    """
    import diffusers

    spacing = "trailing" if zero_terminal_snr else "leading" if sampler == "DDIM" else "linspace"
    shared = {
        **_SCHEDULE,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": zero_terminal_snr,
        "timestep_spacing": spacing,
    }
    if sampler == "DDIM":
        return diffusers.DDIMScheduler(**shared, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    kinds = {
        "Euler": diffusers.EulerDiscreteScheduler,
        "Euler a": diffusers.EulerAncestralDiscreteScheduler,
        "DPM++ 2M": diffusers.DPMSolverMultistepScheduler,
    }
    return kinds[sampler](**shared)


def draw(
    model: BaseModel,
    positive: Sequence[Embeddings],
    negative: Embeddings,
    seeds: Sequence[int],
    settings: DrawSettings,
) -> list[Image.Image]:
    """One picture for each of `positive`, each of one caption and maybe of another length; `negative` serves all.

    A picture depends on its own prompt and seed only: those that are drawn together are equally long.
    """
    together = pictures_together(settings)
    by_length: dict[int, list[int]] = {}
    for index, text in enumerate(positive):
        by_length.setdefault(text.hidden.shape[1], []).append(index)
    pictures: dict[int, Image.Image] = {}
    for indices in by_length.values():
        for start in range(0, len(indices), together):
            chosen = indices[start : start + together]
            text = Embeddings.join([positive[index] for index in chosen])
            latents = denoise(model, text, negative, [seeds[index] for index in chosen], settings)
            pictures.update(zip(chosen, decode(model, latents), strict=True))
    return [pictures[index] for index in range(len(seeds))]


def pictures_together(settings: DrawSettings) -> int:
    """How many pictures of this size are drawn at the same time."""
    return max(1, min(_MOST_TOGETHER, _TOGETHER_PX // (settings.width_px * settings.height_px)))


@torch.no_grad()
def denoise(
    model: BaseModel,
    positive: Embeddings,
    negative: Embeddings,
    seeds: Sequence[int],
    settings: DrawSettings,
) -> torch.Tensor:
    """Latents (B, 4, h, w) for `decode`, of B prompts and a negative one for all of them."""
    scheduler = make_scheduler(settings.sampler, model.prediction, zero_terminal_snr=model.zero_terminal_snr)
    scheduler.set_timesteps(settings.steps)
    text = Embeddings.join(_same_length(positive, negative.expand(len(seeds))))
    sizes = drawn_sizes(model, settings.width_px, settings.height_px, 2 * len(seeds))
    inpaint = full_mask(model, settings.width_px, settings.height_px)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (1, 4, settings.height_px // 8, settings.width_px // 8)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    latents = noise.to(model.device) * scheduler.init_noise_sigma
    extra = {} if settings.sampler in ("DDIM", "DPM++ 2M") else {"generator": generators}
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        timesteps = timestep.to(model.device)
        output = predict(model.unet, torch.cat([scaled, scaled]), timesteps, text, sizes, inpaint).float()
        wanted, unwanted = output.chunk(2)
        guided = unwanted + settings.cfg_scale * (wanted - unwanted)
        latents = scheduler.step(guided, timestep, latents, **extra).prev_sample
    return latents


def decode(model: BaseModel, latents: torch.Tensor) -> list[Image.Image]:
    """Latents (B, 4, h, w) of the UNet's scale -> pictures of 8 h x 8 w pixels."""
    vae_weight = next(model.vae.parameters())
    with torch.no_grad():
        pixels = model.vae.decode((latents / model.vae_scale).to(vae_weight.dtype)).sample
    array = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    return [Image.fromarray(np.ascontiguousarray(row.permute(1, 2, 0).numpy())) for row in array]


def picture_seeds(seed: int, count: int) -> list[int]:
    """Seeds of a row of pictures: the first is `seed` itself."""
    return [seed, *(derive_seed(seed, "picture", index) for index in range(1, count))]


def _same_length(first: Embeddings, second: Embeddings) -> tuple[Embeddings, Embeddings]:
    """Pad the shorter text with its own last chunk of 77 tokens until both are equally long."""
    length = max(first.hidden.shape[1], second.hidden.shape[1])
    return _padded(first, length), _padded(second, length)


def _padded(text: Embeddings, length: int) -> Embeddings:
    missing = (length - text.hidden.shape[1]) // 77
    return Embeddings(torch.cat([text.hidden, *[text.hidden[:, -77:]] * missing], dim=1), text.pooled)
