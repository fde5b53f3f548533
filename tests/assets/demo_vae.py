"""The demo model's VAE: an encoder that is set, not trained, and a decoder that learns its inverse.

A latent pixel holds the mean red, green and blue of its 8 x 8 picture pixels and one number for the
slope of brightness inside them. So the UNet's latents mean something and do not depend on how well
the decoder has learned.

Why the encoder can't be left to chance: its group norms have 32 groups, two channels each at this
width, and a norm over two channels removes the absolute level of a flat picture: its colour. What
is written here passes through them. Four channels carry one signal s as

    s,  A P - s,  -s,  A P + s          P: a fixed border pattern of mean 0 and deviation 1

Each pair is a group whose mean is 0 whatever s is and whose deviation is set by A P, so the norm
only divides by about A / sqrt(2). Reading out is exact because silu(x) - silu(-x) = x.
"""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from demo_training import MovingAverage, Progress, as_tensor, set_learning_rate, warm_cosine
from diffusers import AutoencoderKL
from drawing import draw, draw_anything, random_description
from PIL import Image
from torch import nn

SCALE = 0.18215
CHANNELS = 64
LATENT_CHANNELS = 4
LATENT_PX = 8
LATENT_DEVIATION = 0.0015
"""Deviation of the posterior in the UNet's units: small, since the encoder does not guess."""

PATTERN_STRENGTH = 3.0
READ_OUT = PATTERN_STRENGTH / 2**0.5
SIGNALS = CHANNELS // 4
SIGNS = torch.tensor([1.0, -1.0, -1.0, 1.0])

BATCH = 4
LEARNING_RATE = 1.2e-3
# What carries the picture from latent to pixel starts out right: a fifth of the learning rate.
CAREFUL = ("conv_in", "conv_out", "samplers", "quant_conv", "mid_block.resnets.0")


def build_vae(seed: int) -> Any:
    """An AutoencoderKL with f = 8 and random weights."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(CHANNELS,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=0,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=32,
        sample_size=64,
        scaling_factor=SCALE,
    )


@torch.no_grad()
def set_analytically(vae: Any, *, pictures: int, seed: int) -> None:
    """Write the encoder, and a decoder that begins with blurred but rightly coloured pictures.

    `pictures` drawn ones decide the scale of the latents, so that times SCALE they have mean 0 and
    deviation 1.
    """
    for part in (vae.encoder, vae.decoder):
        for module in part.modules():
            if type(module).__name__ == "ResnetBlock2D":
                _zero(module.conv2)
            elif type(module).__name__ == "Attention":
                _zero(module.to_out[0])
        _write_border_pattern(part.mid_block.resnets[0])
    _set_encoder(vae.encoder)
    _set_decoder(vae.decoder)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        _zero(conv)
        conv.weight.copy_(torch.eye(conv.out_channels)[:, :, None, None])
    rng = random.Random(seed)
    _whiten(vae, [draw(random_description(rng), rng) for _ in range(pictures)])


@torch.no_grad()
def encode(vae: Any, pictures: list[Image.Image], batch: int = 50) -> torch.Tensor:
    """(N, 4, 8, 8) latents in the UNet's units, without noise."""
    parts = [pictures[i : i + batch] for i in range(0, len(pictures), batch)]
    return torch.cat([vae.encode(as_tensor(part)).latent_dist.mean for part in parts]) * SCALE


def train_decoder(vae: Any, *, steps: int, seed: int) -> None:
    """Train the decoder on drawn pictures by L1 + 2 L2 + edges / 2; the VAE ends frozen."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae.requires_grad_(False)
    careful: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in vae.named_parameters():
        if name.startswith(("decoder.", "post_quant_conv.")):
            parameter.requires_grad_(True)
            (careful if any(part in name for part in CAREFUL) else others).append(parameter)
    groups = [
        {"params": others, "base_lr": LEARNING_RATE},
        {"params": careful, "base_lr": LEARNING_RATE / 5},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    average = MovingAverage(careful + others, decay=0.995)
    progress = Progress("decoder", steps)
    for step in range(steps):
        set_learning_rate(optimizer, warm_cosine(step, steps, warm_up=40, hold=0.45, floor=0.01))
        pictures = as_tensor([_decoder_picture(rng) for _ in range(BATCH)])
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.mean
        # A UNet's latents are never quite right; the decoder should not mind.
        latents += torch.randn_like(latents) * (0.05 / SCALE) * rng.random()
        decoded = vae.decode(latents).sample
        l1 = F.l1_loss(decoded, pictures)
        loss = l1 + 2 * F.mse_loss(decoded, pictures) + 0.5 * _edge_loss(decoded, pictures)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(careful + others, 1.0)
        optimizer.step()
        average.update()
        progress.report(step, loss=loss.item(), l1=l1.item())
    average.apply()
    vae.requires_grad_(False).eval()


def _decoder_picture(rng: random.Random) -> Image.Image:
    return draw_anything(rng) if rng.random() < 0.3 else draw(random_description(rng), rng)


def _edge_loss(decoded: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    horizontal = F.l1_loss(decoded.diff(dim=3), pictures.diff(dim=3))
    return horizontal + F.l1_loss(decoded.diff(dim=2), pictures.diff(dim=2))


def _zero(layer: Any) -> None:
    layer.weight.zero_()
    layer.bias.zero_()


def _write_border_pattern(block: Any) -> None:
    """Make a residual block add A P to every second channel, P as large as an 8 x 8 latent.

    Its first convolution gives the constants 1, -1 (a group that its norm leaves alone); the second
    sums a constant over 3 x 3, which zero padding makes smaller at the border: that is the pattern.
    """
    block.conv1.weight[:4] = 0
    block.conv1.bias[:4] = SIGNS[[0, 1, 0, 1]]
    constant = F.silu(torch.ones(1, 1, LATENT_PX, LATENT_PX))
    sums = F.conv2d(constant, torch.ones(1, 1, 3, 3), padding=1)
    gain = PATTERN_STRENGTH / sums.std()
    block.conv2.weight[1::2, 0] = gain
    block.conv2.bias[1::2] = -sums.mean() * gain


def _set_encoder(encoder: Any) -> None:
    signals = torch.zeros(SIGNALS, 3, 3, 3)
    for colour in range(3):
        signals[colour, colour, 1, 1] = 1.0
    signals[3, :, 1, 1] = 1 / 3
    _write_signals(encoder.conv_in, signals)

    # diffusers pads right and below before a stride of 2, so these four taps are the 2 x 2 mean.
    mean = torch.zeros(3, 3)
    mean[:2, :2] = 0.25
    for block in encoder.down_blocks[:3]:
        _depthwise(block.downsamplers[0].conv, mean, noise=0.0)
    slope = torch.zeros(3, 3)
    slope[0, 0], slope[1, 1] = 0.5, -0.5
    last = encoder.down_blocks[2].downsamplers[0].conv
    for channel in range(12, 16):
        last.weight[channel, channel] = slope

    _zero(encoder.conv_out)
    _read_out(encoder.conv_out, LATENT_CHANNELS)


def _set_decoder(decoder: Any) -> None:
    signals = torch.randn(SIGNALS, LATENT_CHANNELS, 3, 3) * 0.1
    signals[:LATENT_CHANNELS] = 0
    for latent in range(LATENT_CHANNELS):
        signals[latent, latent, 1, 1] = 1.0
    _write_signals(decoder.conv_in, signals)
    copy = torch.zeros(3, 3)
    copy[1, 1] = 1.0
    for block in decoder.up_blocks[:3]:
        _depthwise(block.upsamplers[0].conv, copy, noise=0.02)
    decoder.conv_out.weight.mul_(0.02)
    decoder.conv_out.bias.zero_()
    _read_out(decoder.conv_out, 3)


def _write_signals(conv: Any, kernels: torch.Tensor) -> None:
    """(SIGNALS, in, 3, 3) kernels into a (CHANNELS, in, 3, 3) convolution, each as s, -s, -s, s."""
    conv.weight.copy_((kernels[:, None] * SIGNS.view(1, 4, 1, 1, 1)).flatten(0, 1))
    conv.bias.zero_()


def _depthwise(conv: Any, kernel: torch.Tensor, *, noise: float) -> None:
    """Every channel onto itself by `kernel`, plus the layer's random weights times `noise`."""
    conv.weight.mul_(noise)
    conv.bias.zero_()
    channels = torch.arange(CHANNELS)
    conv.weight[channels, channels] += kernel


def _read_out(conv: Any, count: int) -> None:
    """Add the first `count` signals, as they leave norm and silu, to the first outputs."""
    for signal in range(count):
        conv.weight[signal, 4 * signal, 1, 1] += READ_OUT
        conv.weight[signal, 4 * signal + 2, 1, 1] -= READ_OUT


def _whiten(vae: Any, pictures: list[Image.Image]) -> None:
    """Shift and scale the latents, in the last layer before and the first one behind them."""
    raw = encode(vae, pictures) / SCALE
    mean, deviation = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
    gain = 1 / (SCALE * deviation)
    vae.quant_conv.weight[:LATENT_CHANNELS] *= gain[:, None, None, None]
    vae.quant_conv.bias[:LATENT_CHANNELS] = -mean * gain
    vae.quant_conv.bias[LATENT_CHANNELS:] = 2 * torch.tensor(LATENT_DEVIATION / SCALE).log()
    vae.post_quant_conv.weight /= gain[None, :, None, None]
    vae.post_quant_conv.bias.copy_(mean)
