"""What a run starts from before a person changes anything: sizes by model, and the demo's settings."""

from __future__ import annotations

from typing import Any

from lora_train.core.families import CheckpointFacts

SMALLEST_FULL_CHANNELS = 128
"""A UNet with fewer channels is a small model for demos and tests, made for 64 px and not for 512."""


def is_small_model(model_channels: int | None) -> bool:
    """Whether a UNet of so many channels (None: unknown) is a small one."""
    return model_channels is not None and model_channels < SMALLEST_FULL_CHANNELS


def native_resolution_px(facts: CheckpointFacts | None) -> int:
    """The size that a base model was made for; Stable Diffusion 1.x's where nothing is known of it."""
    if facts is None:
        return 512
    if is_small_model(facts.model_channels):
        return 64
    if facts.family.startswith("sdxl"):
        return 1024
    is_768 = facts.family.startswith("sd2") and facts.prediction == "v_prediction"
    return 768 if is_768 else 512


def bucket_step_px(model_channels: int | None) -> int:
    """Sides of aspect-ratio buckets are multiples of this."""
    return 8 if is_small_model(model_channels) else 64


def cpu_threads(model_channels: int | None, cores: int) -> int:
    """Threads for a run on the CPU. A small model's products are too short to be shared out."""
    return 1 if is_small_model(model_channels) else cores


DEMO_CONCEPT = "sks"

DEMO_SETTINGS: dict[str, Any] = {
    "base_model": "demo",
    "epochs": 50,
    "batch_size": 4,
    "rank": 8,
    "alpha": 8,
    # The small demo model wants this much; 0.0001 is right for real ones.
    "learning_rate": 4e-3,
    "text_encoder_lr": 4e-3,
    "lr_warmup_steps": 20,
    "save_every_epochs": 0,
    "hold_out": 0,
    "preview_prompts": ("sks, white background",),
    "preview_sampler": "DDIM",
    "preview_cfg_scale": 3.0,
}
"""The demo's training: 16 pictures of the concept and 16 ordinary ones, 8 steps an epoch."""

DEMO_PROMPTS = ("sks, white background", "sks, black background", "sks, gray background")

DEMO_ORDINARY_PROMPTS = (
    "a red circle on a white background",
    "blue, square, black background",
    "a green triangle on a gray background",
    "yellow, heart, black background",
    "a purple ring on a white background",
    "orange, cross, gray background",
)

ORDINARY_PROMPTS = (
    "a photo of a red car on a street",
    "a portrait of an old man with a beard",
    "a bowl of fruit on a wooden table, still life",
    "a snowy mountain above a lake, landscape",
    "a black cat on a sofa",
    "a city at night, lights, skyscrapers",
    "a bunch of sunflowers in a vase, oil painting",
    "a sailing ship on the sea",
)
"""What every full-size base model can draw, each unlike the others."""

CONTEXTS = ("on a beach", "in a snowy forest", "in a city at night", "in front of a red wall")
"""Surroundings that a concept can be put into, each unlike the others."""

SMALL_MODEL_CONTEXTS = ("white background", "black background", "gray background")
"""The small demo model knows no others."""
