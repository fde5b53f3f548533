"""Losses and weights against numbers worked out by hand, torch's own losses and diffusers' SNR."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lora_train.core.noise_settings import HuberSchedule
from lora_train.engine import diffusion, losses

TIMESTEPS = torch.tensor([0, 1, 250, 500, 999])


def _scheduler() -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def _errors(*values: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction for one sample a value that is off by it everywhere, and what was wanted."""
    wanted = torch.randn(len(values), 4, 2, 2, generator=torch.Generator().manual_seed(0))
    return wanted + torch.tensor(values).reshape(-1, 1, 1, 1), wanted


def test_loss_is_one_number_for_each_sample() -> None:
    prediction = torch.zeros(2, 4, 2, 2, dtype=torch.bfloat16)
    wanted = torch.stack([torch.full((4, 2, 2), 3.0), torch.full((4, 2, 2), 2.0)])
    errors = losses.squared_errors(prediction, wanted)
    assert errors.dtype == torch.float32
    assert losses.sample_losses(errors, torch.tensor([1.0, 0.5])).tolist() == [9.0, 2.0]


def test_robust_errors_by_hand() -> None:
    # 3, 4, 5: sqrt(3^2 + 4^2) - 4 = 1; 5, 12, 13: sqrt(12^2 + 5^2) - 5 = 8.
    prediction, wanted = _errors(3.0, 12.0)
    c = torch.tensor([4.0, 5.0])
    huber = losses.robust_errors(prediction, wanted, "huber", c)
    torch.testing.assert_close(huber.mean(dim=(1, 2, 3)), torch.tensor([2 * 4 * 1.0, 2 * 5 * 8.0]))
    smooth = losses.robust_errors(prediction, wanted, "smooth_l1", c)
    torch.testing.assert_close(smooth.mean(dim=(1, 2, 3)), torch.tensor([2 * 1.0, 2 * 8.0]))


def test_huber_is_mse_for_small_errors_and_l1_for_large_ones() -> None:
    c = torch.full((3,), 0.1)
    prediction, wanted = torch.tensor([1e-4, 1e-3, 1e-6]).reshape(3, 1, 1, 1), torch.zeros(3, 1, 1, 1)
    huber = losses.robust_errors(prediction, wanted, "huber", c)
    torch.testing.assert_close(huber, prediction.square(), rtol=1e-4, atol=0)
    far = torch.full((3, 1, 1, 1), 1000.0)
    torch.testing.assert_close(losses.robust_errors(far, wanted, "huber", c), 2 * 0.1 * far, rtol=1e-3, atol=0)
    torch.testing.assert_close(losses.robust_errors(far, wanted, "smooth_l1", c), 2 * far, rtol=1e-3, atol=0)


def test_robust_errors_lie_as_near_to_torch_as_they_should() -> None:
    """torch's huber loss of the same c is below and at most c^2 / 2 away, for every error; ours is twice it."""
    wanted = torch.linspace(-3, 3, 601).reshape(1, 1, 1, -1)
    zero = torch.zeros_like(wanted)
    for c in (0.05, 0.5, 2.0):
        ours = losses.robust_errors(zero, wanted, "huber", torch.tensor([c])) / 2
        theirs = torch.nn.functional.huber_loss(zero, wanted, reduction="none", delta=c)
        assert bool((ours <= theirs + 1e-6).all())
        assert float((theirs - ours).max()) <= c**2 / 2 + 1e-6


def test_gradient_of_no_error_is_zero() -> None:
    wanted = torch.ones(1, 4, 2, 2)
    prediction = wanted.clone().requires_grad_()
    losses.robust_errors(prediction, wanted, "smooth_l1", torch.tensor([1e-3])).sum().backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad, torch.zeros_like(wanted))


# SNR 1 and 1/9: sigma 1 and 3, so (1 + sigma)^2 is 4 and 16. 0.01 to the half and the whole is 0.1 and 0.01.
@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [0.01, 0.01, 0.01]),
        ("exponential", [0.1, 0.01**0.9, 1.0]),
        ("snr", [0.99 / 4 + 0.01, 0.99 / 16 + 0.01, 0.01]),
    ],
)
def test_huber_schedules_by_hand(schedule: HuberSchedule, wanted: list[float]) -> None:
    timesteps, alpha_bar = torch.tensor([500, 900, 0]), torch.tensor([0.5, 0.1, 0.0])
    torch.testing.assert_close(losses.huber_c(timesteps, alpha_bar, schedule, 0.01), torch.tensor(wanted))


def test_snr_schedule_falls_from_one_to_c() -> None:
    c = losses.huber_c(torch.arange(1000), diffusion.alphas_cumprod(), "snr", 0.1)
    assert c[0].item() == pytest.approx(1, abs=0.06)  # sigma is 0.029 there
    assert c[999].item() == pytest.approx(0.1, abs=0.004)  # and 14.6 there
    assert bool((c[1:] < c[:-1]).all())


def test_min_snr_by_hand() -> None:
    # SNR = alpha_bar / (1 - alpha_bar): 9, 4 and 0.25.
    alpha_bar = torch.tensor([0.9, 0.8, 0.2])
    epsilon = losses.min_snr_weight(alpha_bar, 5.0, "epsilon")
    torch.testing.assert_close(epsilon, torch.tensor([5 / 9, 1.0, 1.0]))
    velocity = losses.min_snr_weight(alpha_bar, 5.0, "v_prediction")
    torch.testing.assert_close(velocity, torch.tensor([5 / 10, 4 / 5, 0.25 / 1.25]))
    assert torch.equal(losses.min_snr_weight(alpha_bar, 0.0, "epsilon"), torch.ones(3))


def test_min_snr_uses_the_snr_of_diffusers() -> None:
    training_utils = pytest.importorskip("diffusers.training_utils")
    snr = training_utils.compute_snr(_scheduler(), TIMESTEPS)
    alpha_bar = diffusion.alphas_cumprod()[TIMESTEPS]
    weights = losses.min_snr_weight(alpha_bar, 5.0, "epsilon")
    torch.testing.assert_close(weights, snr.clamp(max=5.0) / snr, rtol=1e-4, atol=0)


def test_min_snr_is_finite_in_pure_noise() -> None:
    nothing = torch.tensor([0.0])
    assert losses.min_snr_weight(nothing, 5.0, "epsilon").tolist() == [1.0]
    assert losses.min_snr_weight(nothing, 5.0, "v_prediction").tolist() == [0.0]


def test_debiased_weights_by_hand() -> None:
    # SNR 9, 0.25 and 9999, which counts as 1000.
    alpha_bar = torch.tensor([0.9, 0.2, 0.9999])
    epsilon = losses.debiased_weight(alpha_bar, "epsilon")
    torch.testing.assert_close(epsilon, torch.tensor([1 / 3, 2.0, 1 / math.sqrt(1000)]))
    velocity = losses.debiased_weight(alpha_bar, "v_prediction")
    torch.testing.assert_close(velocity, torch.tensor([1 / 10, 1 / 1.25, 1 / 1001]))
    assert losses.debiased_weight(torch.tensor([0.0]), "v_prediction").tolist() == [1.0]


def test_debiased_v_counts_the_error_of_the_picture() -> None:
    """With v the picture is sqrt(a) x_t - sqrt(1 - a) v, so weighted errors of v are errors of the picture."""
    alpha_bar = diffusion.alphas_cumprod()[torch.tensor([100, 500, 999])]
    prediction, wanted = _errors(0.1, 0.2, 0.3)
    weighted = losses.sample_losses(
        losses.squared_errors(prediction, wanted), losses.debiased_weight(alpha_bar, "v_prediction")
    )
    of_picture = (1 - alpha_bar) * (prediction - wanted).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(weighted, of_picture)
