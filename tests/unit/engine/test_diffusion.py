"""The mathematics against diffusers' DDPM scheduler and against numbers worked out by hand."""

from __future__ import annotations

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


@pytest.mark.parametrize(("prediction", "limit"), [("epsilon", 1.0), ("v_prediction", 0.0)])
def test_min_snr_is_finite_for_pure_noise(prediction: str, limit: float) -> None:
    weights = diffusion.min_snr_weight(torch.tensor([0.5, 1e-30, 0.0]), 5.0, prediction)
    assert weights.tolist() == pytest.approx([1.0 if prediction == "epsilon" else 0.5, limit, limit])


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


def test_min_snr_by_hand() -> None:
    # SNR = alpha_bar / (1 - alpha_bar): 9, 4 and 0.25.
    alpha_bar = torch.tensor([0.9, 0.8, 0.2])
    epsilon = diffusion.min_snr_weight(alpha_bar, 5.0, "epsilon")
    torch.testing.assert_close(epsilon, torch.tensor([5 / 9, 1.0, 1.0]))
    velocity = diffusion.min_snr_weight(alpha_bar, 5.0, "v_prediction")
    torch.testing.assert_close(velocity, torch.tensor([5 / 10, 4 / 5, 0.25 / 1.25]))
    assert torch.equal(diffusion.min_snr_weight(alpha_bar, 0.0, "epsilon"), torch.ones(3))


def test_min_snr_uses_the_snr_of_diffusers() -> None:
    training_utils = pytest.importorskip("diffusers.training_utils")
    snr = training_utils.compute_snr(_scheduler(), TIMESTEPS)
    alpha_bar = diffusion.alphas_cumprod()[TIMESTEPS]
    weights = diffusion.min_snr_weight(alpha_bar, 5.0, "epsilon")
    torch.testing.assert_close(weights, snr.clamp(max=5.0) / snr, rtol=1e-4, atol=0)


def test_noise_offset_shifts_whole_channels() -> None:
    noise, offset = _draw(3), torch.arange(20.0).reshape(5, 4, 1, 1)
    moved = diffusion.offset_noise(noise, offset, 0.1)
    torch.testing.assert_close(moved - noise, (0.1 * offset).expand_as(noise), rtol=1e-4, atol=1e-6)


def test_weighted_error_is_one_number_for_each_sample() -> None:
    prediction = torch.zeros(2, 4, 2, 2, dtype=torch.bfloat16)
    wanted = torch.stack([torch.full((4, 2, 2), 3.0), torch.full((4, 2, 2), 2.0)])
    losses = diffusion.weighted_mse(prediction, wanted, torch.tensor([1.0, 0.5]))
    assert losses.tolist() == [9.0, 2.0]
    assert losses.dtype == torch.float32
