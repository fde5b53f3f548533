"""The demo model's UNet (SD 1.x's topology, 64 channels everywhere) and its training on latents."""

from __future__ import annotations

import random
from typing import Any

import torch
from demo_text_encoder import embedding_apart, token_ids
from demo_training import MovingAverage, Progress, set_learning_rate, warm_cosine
from demo_vae import encode
from diffusers import UNet2DConditionModel
from drawing import draw, random_caption, random_description
from torch import nn

TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
BATCH = 40
LEARNING_RATE = 1e-3
TEXT_RATE = 0.1
"""Share of the learning rate for the text encoder, which the warm-up has taught already."""

EMPTY_CAPTION_SHARE = 0.1
SNR_LIMIT = 5.0
LATE_FROM, LATE_SHARE = 600, 0.5
"""Half of the timesteps are drawn from 600 on: there shape and background are decided."""


def build_unet(seed: int, *, context_width: int) -> Any:
    """A UNet2DConditionModel with random weights."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(64, 64, 64, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=context_width,
        attention_head_dim=4,
        norm_num_groups=32,
    )


def train_jointly(
    unet: Any, text_encoder: Any, tokenizer: Any, vae: Any, *, pictures: int, steps: int, seed: int
) -> None:
    """Train UNet and text encoder to predict noise; both end in eval mode with averaged weights.

    The loss is weighted by min(SNR, 5) / SNR (min-SNR, Hang et al. 2023, arXiv 2303.09556).
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    descriptions = [random_description(rng) for _ in range(pictures)]
    latents = encode(vae, [draw(description, rng) for description in descriptions])
    signal = alphas_cumprod()
    snr = signal / (1 - signal)
    # On a CPU channels_last is 10 to 15 % faster.
    unet.to(memory_format=torch.channels_last).train()
    text_encoder.train()
    optimizer, averaged = _optimizer(unet, text_encoder)
    average = MovingAverage(averaged, decay=0.997)
    progress = Progress("UNet", steps)
    for step in range(steps):
        set_learning_rate(optimizer, warm_cosine(step, steps, warm_up=100, hold=0.3, floor=0.02))
        chosen = [rng.randrange(pictures) for _ in range(BATCH)]
        captions = ["" if rng.random() < EMPTY_CAPTION_SHARE else random_caption(descriptions[i], rng) for i in chosen]
        hidden = text_encoder(token_ids(tokenizer, captions)).last_hidden_state
        timesteps = draw_timesteps(BATCH)
        clean = latents[chosen].contiguous(memory_format=torch.channels_last)
        noise = torch.randn_like(clean)
        share = signal[timesteps].view(-1, 1, 1, 1)
        noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
        predicted = unet(noisy, timesteps, hidden).sample
        errors = (predicted - noise).square().mean((1, 2, 3))
        loss = (errors * snr[timesteps].clamp(max=SNR_LIMIT) / snr[timesteps]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(averaged, 1.0)
        optimizer.step()
        average.update()
        progress.report(step, loss=loss.item(), unweighted=errors.mean().item())
    average.apply()
    unet.to(memory_format=torch.contiguous_format).eval()
    text_encoder.eval()


def alphas_cumprod() -> torch.Tensor:
    """(1000,) share of the signal's variance at every timestep; SD 1.x's "scaled linear" betas."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS).square()
    return (1 - betas).cumprod(0)


def draw_timesteps(count: int) -> torch.Tensor:
    """(count,) timesteps, stratified; LATE_SHARE of them from LATE_FROM on, the others anywhere."""
    place = (torch.randperm(count) + torch.rand(count)) / count
    anywhere = place / (1 - LATE_SHARE) * TIMESTEPS
    late = LATE_FROM + (place - 1 + LATE_SHARE) / LATE_SHARE * (TIMESTEPS - LATE_FROM)
    return torch.where(place < 1 - LATE_SHARE, anywhere, late).long().clamp(0, TIMESTEPS - 1)


def _optimizer(unet: Any, text_encoder: Any) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """AdamW, and the parameters to average and clip: all but the sparse token embedding."""
    embedding, text = embedding_apart(text_encoder)
    text_rate = LEARNING_RATE * TEXT_RATE
    groups = [
        {"params": list(unet.parameters()), "base_lr": LEARNING_RATE},
        {"params": text, "base_lr": text_rate},
        {"params": embedding, "base_lr": 3 * text_rate, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    return optimizer, [*unet.parameters(), *text]
