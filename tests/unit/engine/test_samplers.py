"""Samplers against what k-diffusion and Automatic1111 compute for a small function in place of a model."""

from __future__ import annotations

import math

import pytest
import torch

from lora_train.core.samplers import SAMPLERS, Sampler, sampler_calls
from lora_train.engine import diffusion
from lora_train.engine.samplers import NoiseLevels, initial_noise, sample

# What k-diffusion's own samplers (the revision of Automatic1111 1.10.1) made of `toy` in 4 steps, the first four
# numbers; the levels are those that Automatic1111 chooses by itself. DDIM is Automatic1111's own.
GENUINE: dict[Sampler, list[float]] = {
    "Euler": [-0.08167651295661926, 0.33290567994117737, -0.4991443455219269, 0.07629720866680145],
    "Euler a": [-0.146861270070076, 0.38392382860183716, -0.45770370960235596, -0.41407307982444763],
    "Heun": [-0.2213405966758728, 0.4384624660015106, 0.14824485778808594, 0.20824593305587769],
    "LMS": [-0.08494368195533752, 0.3411996364593506, -0.49691158533096313, 0.07935769855976105],
    "DPM2": [-0.09687944501638412, 0.3628613352775574, -0.4900743365287781, 0.09056150168180466],
    "DPM2 a": [-0.2866080701351166, 0.5509144067764282, -0.4047483205795288, -0.3100261092185974],
    "DPM++ 2M": [-0.09513456374406815, 0.361243337392807, -0.47547584772109985, 0.08891719579696655],
    "DPM++ 2M Karras": [-0.09513456374406815, 0.361243337392807, -0.47547584772109985, 0.08891719579696655],
    "DPM++ 2S a": [-0.03445609658956528, 0.3999425172805786, -0.42922407388687134, -0.3640303313732147],
    "DDIM": [-0.02645428106188774, 0.148026704788208, -0.5320291519165039, 0.024658802896738052],
}
UNIFORM = [14.61465, 2.91831, 0.93236, 0.02917, 0.0]
KARRAS = [14.61465, 3.16861, 0.44692, 0.02917, 0.0]
KARRAS_WITHOUT_PENULTIMATE = [14.61465, 4.79654, 1.27411, 0.24795, 0.0]
LEVELS: dict[Sampler, list[float]] = {
    **dict.fromkeys(("Euler", "Euler a", "Heun", "LMS"), UNIFORM),
    **dict.fromkeys(("DPM++ 2M", "DPM++ 2M Karras", "DPM++ 2S a"), KARRAS),
    **dict.fromkeys(("DPM2", "DPM2 a"), KARRAS_WITHOUT_PENULTIMATE),
}


def toy(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The denoiser that k-diffusion was given."""
    return torch.tanh(x / (1 + sigma)) * 0.8 + 0.1 * torch.sin(3 * x / (1 + sigma**2))


def toy_ddim(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The clean latents of the noise prediction that Automatic1111's DDIM was given: tanh(z (0.5 + t / 1000))."""
    timestep = NoiseLevels().timestep(sigma)
    return x - sigma * torch.tanh(x / math.hypot(sigma, 1) * (0.5 + timestep / 1000))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_to_the_genuine_ones(sampler: Sampler) -> None:
    generator = torch.Generator().manual_seed(3)

    def noise() -> torch.Tensor:
        return torch.randn(1, 4, 2, 2, generator=generator)

    levels = NoiseLevels().steps(sampler, 4)
    denoised = toy_ddim if sampler == "DDIM" else toy
    latents = sample(sampler, denoised, initial_noise(noise(), sampler, levels[0]), levels, noise)
    assert latents.flatten()[:4].tolist() == pytest.approx(GENUINE[sampler], abs=3e-6)


@pytest.mark.parametrize("sampler", sorted(LEVELS))
def test_levels_are_those_of_the_host(sampler: Sampler) -> None:
    assert NoiseLevels().steps(sampler, 4) == pytest.approx(LEVELS[sampler], abs=1e-5)


@pytest.mark.parametrize(("steps", "count"), [(20, 20), (24, 25), (28, 29), (150, 167), (1, 2)])
def test_ddims_timesteps_are_those_of_the_host(steps: int, count: int) -> None:
    """Every 1000 // steps from 1 on, however many that are. A single step is one here; the host takes none."""
    levels = NoiseLevels()
    found = levels.steps("DDIM", steps)
    assert len(found) == count
    assert levels.timestep(found[-1]) == pytest.approx(1)
    assert levels.timestep(found[-2]) == pytest.approx(1 + 1000 // max(steps, 2))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_looks_of_the_model(sampler: Sampler) -> None:
    """What a picture costs is told before: at most a look less than is told, for DDIM one more or less."""
    levels, calls = NoiseLevels().steps(sampler, 12), 0

    def counted(x: torch.Tensor, sigma: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return toy(x, sigma)

    sample(sampler, counted, torch.zeros(1, 4, 1, 1), levels, lambda: torch.zeros(1, 4, 1, 1))
    assert abs(calls - sampler_calls(sampler, 12)) <= 1


def test_levels_and_timesteps() -> None:
    levels = NoiseLevels()
    shares = diffusion.alphas_cumprod().double()
    assert levels.at([0, 999]) == pytest.approx(((1 - shares) / shares).sqrt()[[0, -1]].tolist())
    for timestep in (0, 0.5, 17.25, 998.9, 999):
        assert levels.timestep(levels.at([timestep])[0]) == pytest.approx(timestep, abs=1e-6)
    assert levels.timestep(100.0) == 999
    assert levels.timestep(1e-9) == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_zero_terminal_snr_begins_at_pure_noise(sampler: Sampler) -> None:
    """Lin et al. 2023, section 3.3: the first timestep is the last of the schedule, the others follow evenly."""
    levels = NoiseLevels(zero_terminal_snr=True)
    found = [levels.timestep(sigma) for sigma in levels.steps(sampler, 20)[:-1]]
    assert found == pytest.approx([1000 - 50 * index - 1 for index in range(20)])
    assert levels.steps(sampler, 20)[0] > 4000


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_a_model_that_knows_the_picture_is_followed(sampler: Sampler, zero_terminal_snr: bool) -> None:
    """From pure noise each sampler comes to the picture. DDIM ends at its last timestep, whose noise is left."""
    generator = torch.Generator().manual_seed(1)
    picture = torch.randn(1, 4, 8, 8, generator=generator)
    levels = NoiseLevels(zero_terminal_snr=zero_terminal_snr).steps(sampler, 20)

    def noise() -> torch.Tensor:
        return torch.randn(1, 4, 8, 8, generator=generator)

    first = initial_noise(noise(), sampler, levels[0])
    latents = sample(sampler, lambda x, sigma: picture, first, levels, noise)
    torch.testing.assert_close(latents, picture, rtol=0, atol=0.15 if sampler == "DDIM" else 1e-3)
