"""What is drawn for each view: on the CPU, from (seed, epoch, position, purpose) alone.

Legend: B batch. What is in a batch beside a view, and on which device it is trained, changes nothing of its draws.
"""

from __future__ import annotations

import torch

from lora_train.core.seeds import derive_seed
from lora_train.data.epochs import Batch, View
from lora_train.engine import diffusion
from lora_train.engine.run import Run


def normal(run: Run, batch: Batch, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
    """(B, *shape) standard normal numbers."""
    return torch.stack([torch.randn(shape, generator=_generator(run, view, purpose)) for view in batch.views])


def uniform(run: Run, batch: Batch, purpose: str, count: int) -> torch.Tensor:
    """(B, count) uniform numbers of [0, 1)."""
    return torch.stack([torch.rand(count, generator=_generator(run, view, purpose)) for view in batch.views])


def noise(run: Run, batch: Batch, shape: tuple[int, int, int]) -> torch.Tensor:
    """(B, *shape) the noise that is added to the latents, with the offset and the coarser noise of the settings."""
    settings = run.settings
    drawn = normal(run, batch, "noise", shape)
    if settings.noise_offset:
        offset = normal(run, batch, "noise offset", (shape[0], 1, 1))
        drawn = diffusion.offset_noise(drawn, offset, settings.noise_offset)
    if settings.multires_noise_iterations:
        rows = zip(drawn, batch.views, strict=True)
        discount = settings.multires_noise_discount
        drawn = torch.stack([diffusion.pyramid_noise(row, _layers(run, view, shape), discount) for row, view in rows])
    return drawn


def timesteps(run: Run, batch: Batch) -> torch.Tensor:
    """(B,) from the lowest timestep of the settings to below the highest."""
    settings = run.settings
    low, high = settings.min_timestep, settings.max_timestep
    generators = [_generator(run, view, "timestep") for view in batch.views]
    if settings.timestep_sampling == "uniform":
        return torch.stack([torch.randint(low, high, (), generator=generator) for generator in generators])
    drawn = torch.stack([torch.randn((), generator=generator) for generator in generators])
    return diffusion.logit_normal_timesteps(drawn, settings.logit_mean, settings.logit_std, low, high)


def _layers(run: Run, view: View, shape: tuple[int, int, int]) -> list[torch.Tensor]:
    """Normal numbers (channels, h_i, w_i): the i-th grid is r^i times coarser, each r anew between 2 and 4.

    The first is as fine as the noise itself, and the last one pixel wide or high at the most (kohya's sd-scripts).
    """
    generator = _generator(run, view, "multires noise")
    channels, height, width = shape
    layers: list[torch.Tensor] = []
    for index in range(run.settings.multires_noise_iterations):
        ratio = (2 + 2 * float(torch.rand((), generator=generator, dtype=torch.float64))) ** index
        size = max(1, int(height / ratio)), max(1, int(width / ratio))
        layers.append(torch.randn((channels, *size), generator=generator))
        if 1 in size:
            break
    return layers


def _generator(run: Run, view: View, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(run.settings.seed, view.epoch, view.position, purpose))
