"""What LoRAs are made for, and the families of base models that presets tell apart."""

from __future__ import annotations

from typing import Literal, get_args

PURPOSES = ("character", "style", "concept", "pose", "outfit", "object")
"""The presets of the package, by name."""

PresetFamily = Literal["sd1", "sd2", "sdxl", "small"]
"""A family of base models, of which inpainting models are a part; "small" is the model of the demo."""

PRESET_FAMILIES: tuple[PresetFamily, ...] = get_args(PresetFamily)

MOST_PRESET_BYTES = 1_000_000
"""Of a preset's file."""
