"""What pictures show, in numbers of the base model itself: nothing has to be downloaded.

A picture's features are the activations of the UNet's last up block for its slightly noised latents and an empty
prompt, averaged over the picture (mean and standard deviation of every channel). Such activations carry meaning
(Tang et al. 2023, "Emergent Correspondence from Image Diffusion"), and they know any subject the model can draw.

Legend: N pictures, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from lora_train.engine import diffusion
from lora_train.engine.denoiser import drawn_sizes, full_mask, predict
from lora_train.engine.loading import BaseModel
from lora_train.engine.text import Prompts

_TIMESTEP = 50
_MOST_AT_ONCE = 8
_AT_ONCE_PX = _MOST_AT_ONCE * 512 * 512
"""Pictures are read together up to so many pixels: the VAE's widest layers take 2 kB for each."""


class Reader(Protocol):
    """What turns pictures into features."""

    def read(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(N, F) float32 on the CPU; all pictures of one size."""
        ...


class FeatureReader:
    """Features of pictures from a base model. No LoRA may be in force (multiplier 0) while it reads."""

    def __init__(self, model: BaseModel, prompts: Prompts) -> None:
        self._model = model
        self._device = next(model.unet.parameters()).device
        schedule = diffusion.alphas_cumprod(zero_terminal_snr=model.zero_terminal_snr)
        self._alpha_bar = schedule[_TIMESTEP].to(self._device)
        with torch.no_grad():
            self._empty = prompts.encode_each([""])[0]

    @torch.no_grad()
    def read(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(N, F) float32 on the CPU; all pictures of one size."""
        width_px, height_px = pictures[0].size
        together = max(1, min(_MOST_AT_ONCE, _AT_ONCE_PX // (width_px * height_px)))
        rows = [self._read(pictures[start : start + together]) for start in range(0, len(pictures), together)]
        return torch.cat(rows)

    def _read(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        model = self._model
        latents = encode_pictures(model, pictures)
        noise = torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(0))
        noise = noise.to(self._device).expand_as(latents)
        noisy = diffusion.add_noise(latents, noise, self._alpha_bar.expand(len(pictures)))
        timesteps = torch.full((len(pictures),), _TIMESTEP, device=self._device)
        text = self._empty.expand(len(pictures))
        width_px, height_px = pictures[0].size
        sizes = drawn_sizes(model, width_px, height_px, len(pictures))
        found: list[torch.Tensor] = []

        def keep(_: Any, __: Any, output: torch.Tensor) -> None:
            found.append(output.float())

        handle = model.unet.up_blocks[-1].register_forward_hook(keep)
        try:
            predict(model.unet, noisy, timesteps, text, sizes, full_mask(model, width_px, height_px))
        finally:
            handle.remove()
        activations = found[0].flatten(2)
        return torch.cat([activations.mean(2), activations.std(2)], dim=1).cpu()


@torch.no_grad()
def encode_pictures(model: BaseModel, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Latents (N, 4, h, w) float32 of the UNet's scale on the model's device; all pictures of one size."""
    weight = next(model.vae.parameters())
    pixels = torch.stack([_pixels(picture) for picture in pictures]).to(weight.device, weight.dtype)
    return model.vae.encode(pixels).latent_dist.mean.float() * model.vae_scale


def _pixels(picture: Image.Image) -> torch.Tensor:
    """(3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1.0
