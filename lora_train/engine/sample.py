"""Preview pictures: the loaded model and a sampler, without any pipeline class.

Legend: B pictures; sizes in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch
from PIL import Image

from lora_train.core.conditioning import conditioning_of
from lora_train.core.config import TrainSettings
from lora_train.core.samplers import Sampler
from lora_train.core.seeds import derive_seed
from lora_train.engine.denoiser import drawn_sizes, full_mask, predict
from lora_train.engine.loading import BaseModel
from lora_train.engine.samplers import NoiseLevels, initial_noise, sample
from lora_train.engine.text import Embeddings

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
    told: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Latents (B, 4, h, w) for `decode`, of B prompts and a negative one for all of them.

    `told` is called before each look of the UNet, and ends the drawing by raising. The noise is drawn on the CPU, each
    picture's from its own seed: what a host draws whose "Random number generator source" is CPU.
    """
    levels = NoiseLevels(zero_terminal_snr=model.zero_terminal_snr)
    steps = levels.steps(settings.sampler, settings.steps)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (1, 4, settings.height_px // 8, settings.width_px // 8)

    def noise() -> torch.Tensor:
        return torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(model.device)

    guided = _Guided(model, positive, negative.expand(len(seeds)), settings)

    def denoised(x: torch.Tensor, sigma: float) -> torch.Tensor:
        told()
        scale = math.hypot(sigma, 1)
        output = guided.predict(x / scale, levels.timestep(sigma))
        if model.prediction == "v_prediction":
            return x / scale**2 - output * (sigma / scale)
        return x - output * sigma

    return sample(settings.sampler, denoised, initial_noise(noise(), settings.sampler, steps[0]), steps, noise)


class _Guided:
    """The UNet with classifier-free guidance (Ho & Salimans 2022). Prompts of another length than the negative one's
    are asked apart, as in the hosts: none is filled up because of the other.
    """

    def __init__(self, model: BaseModel, positive: Embeddings, negative: Embeddings, settings: DrawSettings) -> None:
        self._model = model
        self._cfg_scale = settings.cfg_scale
        is_together = positive.hidden.shape == negative.hidden.shape
        self._texts = [Embeddings.join([positive, negative])] if is_together else [positive, negative]
        self._size_px = settings.width_px, settings.height_px
        self._inpaint = full_mask(model, *self._size_px)

    def predict(self, scaled: torch.Tensor, timestep: float) -> torch.Tensor:
        """What the model predicts for scaled-down latents (B, 4, h, w), float32."""
        model, count = self._model, 2 // len(self._texts)
        told = torch.tensor(timestep, dtype=torch.float32, device=model.device)
        seen = torch.cat([scaled] * count)
        sizes = drawn_sizes(model, *self._size_px, len(seen))
        outputs = [predict(model.unet, seen, told, text, sizes, self._inpaint).float() for text in self._texts]
        wanted, unwanted = torch.cat(outputs).chunk(2)
        return unwanted + self._cfg_scale * (wanted - unwanted)


@torch.no_grad()
def decode(model: BaseModel, latents: torch.Tensor) -> list[Image.Image]:
    """Latents (B, 4, h, w) of the UNet's scale -> pictures of 8 h x 8 w pixels, one after the other as in the hosts:
    the VAE takes more memory for a picture than the UNet."""
    vae_weight = next(model.vae.parameters())
    return [
        _picture(model.vae.decode((row / model.vae_scale).to(vae_weight.dtype)).sample[0]) for row in latents.split(1)
    ]


def _picture(pixels: torch.Tensor) -> Image.Image:
    """(3, H, W) from -1 to 1 -> RGB."""
    array = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    return Image.fromarray(np.ascontiguousarray(array.permute(1, 2, 0).numpy()))


def picture_seeds(seed: int, count: int) -> list[int]:
    """Seeds of a row of pictures: the first is `seed` itself."""
    return [seed, *(derive_seed(seed, "picture", index) for index in range(1, count))]
