"""Judges whether the demo model draws what a caption says: a small classifier of drawn pictures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from demo_diffusion import BETA_END, BETA_START, TIMESTEPS
from demo_training import Progress, as_tensor, say
from diffusers import DDIMScheduler, StableDiffusionPipeline
from drawing import (
    BACKGROUNDS,
    COLOURS,
    PICTURE_PX,
    SHAPES,
    Description,
    draw,
    plain_caption,
    random_description,
)
from PIL import Image
from torch import nn

CLASS_COUNTS = (len(COLOURS), len(SHAPES), len(BACKGROUNDS))
CLASS_NAMES = ("colour", "shape", "background")
BATCH = 64
GUIDANCE = 3.0
INFERENCE_STEPS = 25
PICTURES_PER_CALL = 24


class Judge(nn.Module):
    """(N, 3, 64, 64) pixels -1..1 -> colours (N, 8), shapes (N, 6), backgrounds (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 48, 64)
        blocks = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        ]
        head = (nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, sum(CLASS_COUNTS)))
        self.layers = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *head)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.layers(pictures).split(CLASS_COUNTS, dim=1)


def train_judge(*, pictures: int, epochs: int, seed: int) -> Judge:
    """Train on nine tenths of `pictures` drawn ones; how it does on the last tenth is printed."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    descriptions = [random_description(rng) for _ in range(pictures)]
    data = as_tensor([draw(description, rng) for description in descriptions])
    labels = _labels(descriptions)
    training = pictures * 9 // 10
    batches = training // BATCH
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    progress = Progress("judge", epochs * batches)
    epoch_orders = [torch.randperm(training)[: batches * BATCH] for _ in range(epochs)]
    for step, chosen in enumerate(torch.cat(epoch_orders).split(BATCH)):
        scores = judge(_roughen(data[chosen], rng))
        loss = sum(F.cross_entropy(score, labels[chosen, i]) for i, score in enumerate(scores))
        assert isinstance(loss, torch.Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.report(step, loss=loss.item())
    judge.eval()
    shares = _accuracy(judge, data[training:], labels[training:])
    say(f"the judge itself, on drawn pictures it has not seen: {percentages(shares)}")
    return judge


def judge_pictures(
    judge: Judge, pictures: Sequence[Image.Image], descriptions: Sequence[Description]
) -> dict[str, float]:
    """Share of the pictures whose colour, shape, background and all three are as described."""
    return _accuracy(judge, as_tensor(pictures), _labels(descriptions))


def percentages(shares: dict[str, float]) -> str:
    """ "colour 100.0%, shape 97.2%, ..." """
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


def evaluation_descriptions(count: int) -> list[Description]:
    """Every colour with every shape in turn; the background changes and is never the colour."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    descriptions: list[Description] = []
    for i in range(count):
        colour, shape = pairs[i % len(pairs)]
        backgrounds = [background for background in BACKGROUNDS if background != colour]
        background = backgrounds[(i + i // len(pairs)) % len(backgrounds)]
        descriptions.append(Description(colour, shape, "", background))
    return descriptions


@torch.no_grad()
def generate(parts: dict[str, Any], descriptions: Sequence[Description], *, seed: int) -> list[Image.Image]:
    """One 64 x 64 picture for each plain caption: DDIM, 25 steps, guidance 3.

    `parts` are unet, vae, text_encoder and tokenizer.
    """
    scheduler = DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline: Any = StableDiffusionPipeline(
        **parts,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    pictures: list[Image.Image] = []
    for first in range(0, len(descriptions), PICTURES_PER_CALL):
        captions = [plain_caption(d) for d in descriptions[first : first + PICTURES_PER_CALL]]
        pictures += pipeline(
            captions,
            num_inference_steps=INFERENCE_STEPS,
            guidance_scale=GUIDANCE,
            generator=generator,
            height=PICTURE_PX,
            width=PICTURE_PX,
        ).images
    return pictures


def save_sheet(pictures: Sequence[Image.Image], path: Path, *, columns: int = 12) -> None:
    """All pictures side by side in one PNG, to look at."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * PICTURE_PX, rows * PICTURE_PX))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * PICTURE_PX, i // columns * PICTURE_PX))
    sheet.save(path)


@torch.no_grad()
def _accuracy(judge: Judge, pictures: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    found = torch.stack([score.argmax(1) for score in judge(pictures)], dim=1)
    right = found == labels
    shares = {name: right[:, i].float().mean().item() for i, name in enumerate(CLASS_NAMES)}
    return {**shares, "all three": right.all(1).float().mean().item()}


def _labels(descriptions: Sequence[Description]) -> torch.Tensor:
    """(N, 3) class numbers of colour, shape and background."""
    colours, shapes, backgrounds = list(COLOURS), list(SHAPES), list(BACKGROUNDS)
    return torch.tensor(
        [(colours.index(d.colour), shapes.index(d.shape), backgrounds.index(d.background)) for d in descriptions]
    )


def _roughen(pictures: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Noise, blur and shifts: a VAE's pictures are softer than drawn ones and out of place."""
    pictures = pictures + torch.randn_like(pictures) * rng.random() * 0.12
    if rng.random() < 0.5:
        pictures = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return pictures.roll((rng.randint(-3, 3), rng.randint(-3, 3)), dims=(2, 3))
