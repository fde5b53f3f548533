"""How wrong a prediction is, and how much each noise level counts: pure functions.

Legend: B batch; predictions and targets (B, 4, h, w); alpha_bar (B,); SNR = alpha_bar / (1 - alpha_bar).
"""

from __future__ import annotations

import math

import torch

from lora_train.core.noise_settings import HuberSchedule, Loss
from lora_train.engine.diffusion import TIMESTEPS

_HIGHEST_DEBIASED_SNR = 1000.0
"""As in kohya's sd-scripts: the finest noise counts no less than 1 / sqrt(1000)."""


def squared_errors(prediction: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(B, 4, h, w) float32: the error of every element, squared ("mse")."""
    return (prediction.float() - wanted.float()).square()


def robust_errors(prediction: torch.Tensor, wanted: torch.Tensor, loss: Loss, c: torch.Tensor) -> torch.Tensor:
    """(B, 4, h, w) float32: "huber" is 2c (sqrt(e^2 + c^2) - c) of every error e, "smooth_l1" the same / c; c (B,).

    The pseudo-Huber loss (Charbonnier et al. 1997), scaled as kohya's sd-scripts do. "huber" is the squared error
    where |e| is far below c, and 2c|e| far above; "smooth_l1" is e^2 / c and 2|e| there.
    """
    c = c.reshape(-1, 1, 1, 1)
    squared = squared_errors(prediction, wanted)
    # sqrt(e^2 + c^2) - c = e^2 / (sqrt(e^2 + c^2) + c), which loses no digits where e is small.
    smooth_l1 = 2 * squared / ((squared + c.square()).sqrt() + c)
    return c * smooth_l1 if loss == "huber" else smooth_l1


def huber_c(timesteps: torch.Tensor, alpha_bar: torch.Tensor, schedule: HuberSchedule, c: float) -> torch.Tensor:
    """(B,) the c of each sample (Khrapov et al. 2024, scheduled pseudo-Huber loss).

    "constant": c. "exponential": from 1 at timestep 0 to c at 1000. "snr": (1 - c) / (1 + sigma)^2 + c with
    sigma = sqrt(1 / SNR), from about 1 to c; at SNR 0 it is c.
    """
    if schedule == "constant":
        return torch.full_like(alpha_bar, c)
    if schedule == "exponential":
        return torch.exp(timesteps * (math.log(c) / TIMESTEPS)).to(alpha_bar.dtype)
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    return (1 - c) / (1 + sigma).square() + c


def min_snr_weight(alpha_bar: torch.Tensor, gamma: float, prediction: str) -> torch.Tensor:
    """(B,) loss weights: min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v (Hang et al. 2023).

    gamma 0 switches the weighting off. At SNR 0, pure noise, the weight is 1 for epsilon and 0 for v: with zero
    terminal SNR nothing is learned there, as in kohya's sd-scripts.
    """
    if gamma == 0:
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar)
    clipped = snr.clamp(max=gamma)
    if prediction == "epsilon":
        return torch.where(snr > gamma, clipped / snr, torch.ones_like(snr))
    return clipped / (snr + 1)


def debiased_weight(alpha_bar: torch.Tensor, prediction: str) -> torch.Tensor:
    """(B,) loss weights: 1 / sqrt(SNR) for epsilon (Yu et al. 2023, "Debias the Training of Diffusion Models").

    The paper has none for v; 1 / (SNR + 1) is that of kohya's sd-scripts, which makes the error of v that of x_0
    (Salimans & Ho 2022, section 4), and is 1 at SNR 0. SNR counts as at most 1000.
    """
    snr = (alpha_bar / (1 - alpha_bar)).clamp(max=_HIGHEST_DEBIASED_SNR)
    return snr.rsqrt() if prediction == "epsilon" else 1 / (snr + 1)


def sample_losses(errors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B,) the mean error of each sample times its weight (B,)."""
    return errors.mean(dim=(1, 2, 3)) * weights
