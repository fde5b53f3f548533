"""Diffusion mathematics as pure functions; all randomness is handed in.

Legend: B batch; latents, noise, target (B, 4, h, w); timesteps (B,) whole numbers from 0 to 999.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

TIMESTEPS = 1000
_BETA_START = 0.00085
_BETA_END = 0.012


def alphas_cumprod(*, zero_terminal_snr: bool = False) -> torch.Tensor:
    """(1000,) float32: the cumulative signal share of the scaled-linear schedule (Rombach et al. 2022).

    With zero terminal SNR the last is 0, pure noise.
    """
    betas = torch.linspace(_BETA_START**0.5, _BETA_END**0.5, TIMESTEPS, dtype=torch.float32) ** 2
    alpha_bar = torch.cumprod(1.0 - betas, dim=0)
    return rescaled_to_zero_snr(alpha_bar) if zero_terminal_snr else alpha_bar


def rescaled_to_zero_snr(alpha_bar: torch.Tensor) -> torch.Tensor:
    """The same schedule moved and stretched so that its end is 0 and its beginning stays as it is.

    Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.
    """
    root = alpha_bar.sqrt()
    moved = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return moved**2


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise (Ho et al. 2020, eq. 4); alpha_bar (B,)."""
    share = alpha_bar.reshape(-1, 1, 1, 1)
    return share.sqrt() * latents + (1 - share).sqrt() * noise


def target(latents: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor, prediction: str) -> torch.Tensor:
    """What the model should predict: the noise, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0.

    v is from Salimans & Ho 2022, appendix D.
    """
    if prediction == "epsilon":
        return noise
    share = alpha_bar.reshape(-1, 1, 1, 1)
    return share.sqrt() * noise - (1 - share).sqrt() * latents


def offset_noise(noise: torch.Tensor, offset: torch.Tensor, strength: float) -> torch.Tensor:
    """Noise whose mean varies by picture and channel, `offset` being (B, 4, 1, 1) (Guttenberg 2023)."""
    return noise + strength * offset


def pyramid_noise(noise: torch.Tensor, layers: Sequence[torch.Tensor], discount: float) -> torch.Tensor:
    """(4, h, w): noise with that of coarser grids in it (Whitaker 2023, "Multi-Resolution Noise").

    `layers` are standard normal numbers (4, h_i, w_i); the i-th, from 0 on, is enlarged to (h, w) bilinearly and
    added with the weight discount^i. The sum is scaled back to a standard deviation of 1.
    """
    total = noise.clone()
    for index, layer in enumerate(layers):
        large = F.interpolate(layer[None], size=noise.shape[-2:], mode="bilinear", align_corners=False)[0]
        total += discount**index * large
    return total / total.std()


def logit_normal_timesteps(normal: torch.Tensor, mean: float, std: float, low: int, high: int) -> torch.Tensor:
    """(B,) timesteps from low to high - 1: sigmoid(mean + std * normal) of the way (Esser et al. 2024, section 3.1).

    `normal` (B,) are standard normal numbers.
    """
    way = torch.sigmoid(mean + std * normal.double())
    return (low + (way * (high - low)).long()).clamp(max=high - 1)
