"""The mathematics against diffusers' DDPM scheduler and against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lora_train.engine import diffusion

TIMESTEPS = torch.tensor([0, 1, 250, 500, 999])


def _scheduler(prediction: str = "epsilon") -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
    )


def _draw(seed: int) -> torch.Tensor:
    return torch.randn(5, 4, 8, 6, generator=torch.Generator().manual_seed(seed))


def test_schedule_is_that_of_the_scheduler() -> None:
    ours = diffusion.alphas_cumprod()
    torch.testing.assert_close(ours, _scheduler().alphas_cumprod, rtol=1e-6, atol=0)
    assert ours.shape == (1000,)
    # The first is 1 - beta_start; the last is known from Stable Diffusion's own schedule.
    assert ours[0].item() == pytest.approx(1 - 0.00085)
    assert ours[999].item() == pytest.approx(0.00466, abs=1e-5)


def test_zero_terminal_snr_against_diffusers() -> None:
    """It rescales betas, one by one from the products; so the products agree up to their rounding."""
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    ours = diffusion.alphas_cumprod(zero_terminal_snr=True)
    betas = rescale_zero_terminal_snr(_scheduler().betas)
    torch.testing.assert_close(ours, torch.cumprod(1 - betas, 0), rtol=1e-4, atol=1e-7)
    assert ours[-1] == 0
    assert ours[0].item() == pytest.approx(1 - 0.00085), "the beginning stays"
    assert bool((ours.diff() < 0).all())


def test_zero_terminal_snr_by_hand() -> None:
    """Roots 0.9, 0.5 and 0.1 become 0.9, (0.4 / 0.8) * 0.9 = 0.45 and 0."""
    rescaled = diffusion.rescaled_to_zero_snr(torch.tensor([0.81, 0.25, 0.01]))
    torch.testing.assert_close(rescaled, torch.tensor([0.81, 0.2025, 0.0]))


def test_pure_noise_is_noise_and_its_velocity_the_picture() -> None:
    latents, noise = _draw(1), _draw(2)
    alpha_bar = diffusion.alphas_cumprod(zero_terminal_snr=True)[torch.full((5,), 999)]
    assert torch.equal(diffusion.add_noise(latents, noise, alpha_bar), noise)
    assert torch.equal(diffusion.target(latents, noise, alpha_bar, "v_prediction"), -latents)


def test_noise_is_added_as_by_the_scheduler() -> None:
    latents, noise = _draw(1), _draw(2)
    alpha_bar = diffusion.alphas_cumprod()[TIMESTEPS]
    wanted = _scheduler().add_noise(latents, noise, TIMESTEPS)
    torch.testing.assert_close(diffusion.add_noise(latents, noise, alpha_bar), wanted)


def test_targets() -> None:
    latents, noise = _draw(1), _draw(2)
    alpha_bar = diffusion.alphas_cumprod()[TIMESTEPS]
    assert diffusion.target(latents, noise, alpha_bar, "epsilon") is noise
    velocity = _scheduler("v_prediction").get_velocity(latents, noise, TIMESTEPS)
    torch.testing.assert_close(diffusion.target(latents, noise, alpha_bar, "v_prediction"), velocity)


def test_noise_offset_shifts_whole_channels() -> None:
    noise, offset = _draw(3), torch.arange(20.0).reshape(5, 4, 1, 1)
    moved = diffusion.offset_noise(noise, offset, 0.1)
    torch.testing.assert_close(moved - noise, (0.1 * offset).expand_as(noise), rtol=1e-4, atol=1e-6)


def test_pyramid_noise_by_hand() -> None:
    # 2x4 noise of ones; a layer as fine as it, and one of 1x1 that is the same everywhere.
    noise = torch.ones(1, 2, 4)
    fine = torch.arange(8.0).reshape(1, 2, 4)
    coarse = torch.full((1, 1, 1), 10.0)
    mixed = diffusion.pyramid_noise(noise, [fine, coarse], 0.5)
    total = 1 + fine + 0.5 * 10
    # The standard deviation of 0 ... 7 is sqrt(6), with 7 in the denominator of the variance.
    torch.testing.assert_close(mixed, total / 6**0.5)
    assert torch.equal(noise, torch.ones(1, 2, 4)), "what was drawn is left as it is"


def test_pyramid_noise_is_enlarged_bilinearly() -> None:
    # 0 and 8 enlarged four times: half-pixel centres at 1/8, 3/8 ... of the way, clamped at both ends.
    layer = torch.tensor([0.0, 8.0]).reshape(1, 1, 2)
    noise = torch.zeros(1, 1, 8)
    wanted = torch.tensor([0, 0, 1, 3, 5, 7, 8, 8]).float().reshape(1, 1, 8)
    torch.testing.assert_close(diffusion.pyramid_noise(noise, [layer], 0.3), wanted / wanted.std())


def test_logit_normal_timesteps_by_hand() -> None:
    # sigmoid(0) = 1/2; sigmoid(ln 3) = 3/4; sigmoid(-ln 3) = 1/4.
    ln3 = math.log(3)
    normal = torch.tensor([0.0, 1.0, -1.0, 400.0, -400.0])
    drawn = diffusion.logit_normal_timesteps(normal, 0.0, ln3, 0, 998)
    assert drawn.tolist() == [499, 748, 249, 997, 0]
    assert diffusion.logit_normal_timesteps(normal, ln3 + 1e-3, 1e-9, 200, 600).tolist() == [500] * 5
    assert diffusion.logit_normal_timesteps(normal, 0.0, ln3, 7, 8).tolist() == [7] * 5


def test_logit_normal_timesteps_have_the_distribution_of_the_paper() -> None:
    """The share below a timestep is that of the normal distribution below its logit, from torch's own functions."""
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    mean, std = -0.5, 0.8
    drawn = diffusion.logit_normal_timesteps(normal, mean, std, 0, 1000)
    for timestep in (100, 300, 500, 800):
        wanted = torch.distributions.Normal(mean, std).cdf(torch.logit(torch.tensor(timestep / 1000)))
        # Four standard errors of a share near 1/2: 4 * 0.5 / sqrt(200 000) = 0.0045.
        assert (drawn < timestep).double().mean().item() == pytest.approx(wanted.item(), abs=0.0045)
