"""Samplers: from noise to latents in steps between noise levels, as k-diffusion and hence the hosts take them.

Legend: x (B, 4, h, w) latents + sigma noise, not scaled down; sigma noise level; n steps. A denoiser tells the clean
latents that it sees in x at sigma. All are deterministic but those with "a" in their name, which add fresh noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import Polynomial

from lora_train.core.samplers import Sampler, sampler_facts
from lora_train.engine.diffusion import TIMESTEPS, alphas_cumprod

Denoiser = Callable[[torch.Tensor, float], torch.Tensor]
"""(x, sigma) -> clean latents."""
Noise = Callable[[], torch.Tensor]
"""Fresh noise of the spread 1, like x."""
_Solve = Callable[[Denoiser, torch.Tensor, Sequence[float], Noise], torch.Tensor]

_KARRAS_RHO = 7.0
_LEAST_SHARE = 4.8973451890853435e-08
"""Of the signal at the last timestep, where zero terminal SNR would make the noise level infinite (the hosts')."""
_LMS_ORDER = 4


class NoiseLevels:
    """The noise level of every timestep: sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t) (Karras et al. 2022)."""

    def __init__(self, *, zero_terminal_snr: bool = False) -> None:
        shares = alphas_cumprod(zero_terminal_snr=zero_terminal_snr).double().clamp(min=_LEAST_SHARE)
        self.zero_terminal_snr = zero_terminal_snr
        self._logs = ((1 - shares) / shares).sqrt().log().numpy()

    def at(self, timesteps: Sequence[float]) -> list[float]:
        """Between two timesteps the logarithm is linear."""
        return [math.exp(log) for log in np.interp(timesteps, range(TIMESTEPS), self._logs)]

    def timestep(self, sigma: float) -> float:
        """The inverse of `at`; beyond the ends it is the end."""
        return float(np.interp(math.log(sigma), self._logs, range(TIMESTEPS)))

    def steps(self, sampler: Sampler, n: int) -> list[float]:
        """The levels that a sampler goes through: one more than steps.

        With zero terminal SNR the steps begin at pure noise, timestep 999, and follow evenly (trailing spacing, Lin et
        al. 2023, section 3.3) whatever the sampler's own schedule is.
        """
        if self.zero_terminal_snr:
            end = self.at([0]) if sampler == "DDIM" else [0.0]
            return [*self.at(self._trailing_timesteps(n)), *end]
        if sampler == "DDIM":
            return self.at(self._ddim_timesteps(n))
        if sampler_facts(sampler).schedule == "Karras":
            count = n + 1 if sampler in _WITHOUT_PENULTIMATE else n
            return [*self._karras(count)[:n], 0.0]
        return [*self.at(np.linspace(TIMESTEPS - 1, 0, n).tolist()), 0.0]

    def _ddim_timesteps(self, n: int) -> list[float]:
        """As the hosts space them: evenly from 1 on, so there may be one more or less than n + 1."""
        return [
            min(timestep + 1.0, TIMESTEPS - 1) for timestep in reversed(range(0, TIMESTEPS, TIMESTEPS // max(n, 2)))
        ]

    def _trailing_timesteps(self, n: int) -> list[float]:
        return [round(TIMESTEPS - index * TIMESTEPS / n) - 1.0 for index in range(n)]

    def _karras(self, n: int) -> list[float]:
        """Karras et al. 2022, equation 5, with rho = 7."""
        lowest, highest = (math.exp(log / _KARRAS_RHO) for log in (self._logs[0], self._logs[-1]))
        return [(highest + share * (lowest - highest)) ** _KARRAS_RHO for share in np.linspace(0, 1, n).tolist()]


def initial_noise(noise: torch.Tensor, sampler: Sampler, sigma: float) -> torch.Tensor:
    """x of the first step. DDIM takes the noise for the whole of its scaled-down latents, as in the hosts."""
    return noise * (math.hypot(sigma, 1) if sampler == "DDIM" else sigma)


def sample(
    sampler: Sampler, denoised: Denoiser, x: torch.Tensor, levels: Sequence[float], noise: Noise
) -> torch.Tensor:
    """Latents from x at the first of the noise levels: clean, or for DDIM as noisy as the last level says."""
    return _SOLVERS[sampler](denoised, x, levels, noise) / math.hypot(levels[-1], 1)


def _euler(denoised: Denoiser, x: torch.Tensor, levels: Sequence[float], noise: Noise) -> torch.Tensor:  # noqa: ARG001
    """Karras et al. 2022, algorithm 1 without its correction. DDIM (Song et al. 2021, eq. 12) is the same step."""
    for sigma, following in pairwise(levels):
        x = x + (following - sigma) * _slope(x, denoised(x, sigma), sigma)
    return x


def _heun(denoised: Denoiser, x: torch.Tensor, levels: Sequence[float], noise: Noise) -> torch.Tensor:  # noqa: ARG001
    """Karras et al. 2022, algorithm 1."""
    for sigma, following in pairwise(levels):
        slope = _slope(x, denoised(x, sigma), sigma)
        if following:
            tried = x + (following - sigma) * slope
            slope = (slope + _slope(tried, denoised(tried, following), following)) / 2
        x = x + (following - sigma) * slope
    return x


def _dpm_2(denoised: Denoiser, x: torch.Tensor, levels: Sequence[float], noise: Noise) -> torch.Tensor:  # noqa: ARG001
    """DPM-Solver-2 (Lu et al. 2022, algorithm 1): the slope in the middle, by the logarithm, of a step."""
    for sigma, following in pairwise(levels):
        x = _middle_step(denoised, x, sigma, following)
    return x


def _lms(denoised: Denoiser, x: torch.Tensor, levels: Sequence[float], noise: Noise) -> torch.Tensor:  # noqa: ARG001
    """Linear multistep: the integral of the polynomial through the last slopes, up to four."""
    slopes: list[torch.Tensor] = []
    for index, sigma in enumerate(levels[:-1]):
        slopes = [_slope(x, denoised(x, sigma), sigma), *slopes][:_LMS_ORDER]
        known = [levels[index - back] for back in range(len(slopes))]
        for slope, share in zip(slopes, _lms_shares(known, levels[index + 1]), strict=True):
            x = x + share * slope
    return x


def _lms_shares(known: Sequence[float], following: float) -> list[float]:
    """For each known level, the integral of its Lagrange polynomial from the newest (the first) to the following."""
    shares: list[float] = []
    for own in known:
        polynomial = Polynomial([1.0])
        for other in known:
            if other != own:
                polynomial *= Polynomial([-other, 1.0]) / (own - other)
        integral = polynomial.integ()
        shares.append(float(integral(following) - integral(known[0])))
    return shares


def _dpmpp_2m(denoised: Denoiser, x: torch.Tensor, levels: Sequence[float], noise: Noise) -> torch.Tensor:  # noqa: ARG001
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2); the first and the last step are of the first order."""
    before: _Seen | None = None
    for sigma, following in pairwise(levels):
        clean = denoised(x, sigma)
        wanted = clean
        if before is not None and following:
            share = math.log(sigma / following) / math.log(before.sigma / sigma) / 2
            wanted = (1 + share) * clean - share * before.clean
        before = _Seen(sigma, clean)
        x = _toward(x, wanted, sigma, following)
    return x


class _Seen(NamedTuple):
    sigma: float
    clean: torch.Tensor


def _euler_ancestral(denoised: Denoiser, x: torch.Tensor, levels: Sequence[float], noise: Noise) -> torch.Tensor:
    for sigma, following in pairwise(levels):
        down, up = _ancestral(sigma, following)
        x = x + (down - sigma) * _slope(x, denoised(x, sigma), sigma)
        if following:
            x = x + up * noise()
    return x


def _dpm_2_ancestral(denoised: Denoiser, x: torch.Tensor, levels: Sequence[float], noise: Noise) -> torch.Tensor:
    for sigma, following in pairwise(levels):
        down, up = _ancestral(sigma, following)
        x = _middle_step(denoised, x, sigma, down)
        if following:
            x = x + up * noise()
    return x


def _dpmpp_2s_ancestral(denoised: Denoiser, x: torch.Tensor, levels: Sequence[float], noise: Noise) -> torch.Tensor:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1) with the middle by the logarithm."""
    for sigma, following in pairwise(levels):
        down, up = _ancestral(sigma, following)
        clean = denoised(x, sigma)
        if down:
            middle = math.sqrt(sigma * down)
            clean = denoised(_toward(x, clean, sigma, middle), middle)
        x = _toward(x, clean, sigma, down)
        if following:
            x = x + up * noise()
    return x


def _slope(x: torch.Tensor, clean: torch.Tensor, sigma: float) -> torch.Tensor:
    """dx / dsigma (Karras et al. 2022, equation 3)."""
    return (x - clean) / sigma


def _toward(x: torch.Tensor, clean: torch.Tensor, sigma: float, following: float) -> torch.Tensor:
    """x at the following level if the clean latents stay what they are."""
    share = following / sigma
    return share * x + (1 - share) * clean


def _middle_step(denoised: Denoiser, x: torch.Tensor, sigma: float, following: float) -> torch.Tensor:
    slope = _slope(x, denoised(x, sigma), sigma)
    if following:
        middle = math.sqrt(sigma * following)
        tried = x + (middle - sigma) * slope
        slope = _slope(tried, denoised(tried, middle), middle)
    return x + (following - sigma) * slope


def _ancestral(sigma: float, following: float) -> tuple[float, float]:
    """The level to step down to, and the noise to add for the following one: a step of DDPM (Ho et al. 2020)."""
    up = min(following, following * math.sqrt(sigma**2 - following**2) / sigma)
    return math.sqrt(following**2 - up**2), up


_WITHOUT_PENULTIMATE: set[Sampler] = {"DPM2", "DPM2 a"}
"""The hosts leave the last level but one out for these: their second look would be at a level without any noise."""
_SOLVERS: dict[Sampler, _Solve] = {
    "DDIM": _euler,
    "Euler": _euler,
    "Euler a": _euler_ancestral,
    "DPM++ 2M": _dpmpp_2m,
    "DPM++ 2M Karras": _dpmpp_2m,
    "DPM++ 2S a": _dpmpp_2s_ancestral,
    "DPM2": _dpm_2,
    "DPM2 a": _dpm_2_ancestral,
    "Heun": _heun,
    "LMS": _lms,
}
