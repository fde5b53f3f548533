"""Diffusion mathematics as pure functions; all randomness is handed in.

Legend: B batch; latents, noise, target (B, 4, h, w); timesteps (B,) whole numbers from 0 to 999.
"""

from __future__ import annotations

import torch

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


def min_snr_weight(alpha_bar: torch.Tensor, gamma: float, prediction: str) -> torch.Tensor:
    """(B,) loss weights: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v (Hang et al. 2023).

    gamma 0 switches the weighting off. Pure noise (SNR 0) has the limits: 1 for epsilon, 0 for v.
    """
    if gamma == 0:
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar)
    if prediction == "epsilon":
        return (gamma / snr).clamp(max=1)
    return snr.clamp(max=gamma) / (snr + 1)


def offset_noise(noise: torch.Tensor, offset: torch.Tensor, strength: float) -> torch.Tensor:
    """Noise whose mean varies by picture and channel, `offset` being (B, 4, 1, 1) (Guttenberg 2023)."""
    return noise + strength * offset


def weighted_mse(prediction: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B,) squared error of each sample, averaged over its elements in float32, times its weight."""
    error = (prediction.float() - wanted.float()).square().mean(dim=(1, 2, 3))
    return error * weights
