"""What stands in a preview's PNG."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from lora_train.core.config import TrainSettings
from lora_train.engine.previews import parameters_text
from lora_train.engine.sample import DrawSettings


def test_parameters_as_webuis_write_them() -> None:
    settings = TrainSettings(preview_negative_prompt="blurry", preview_seed=7, clip_skip=2)
    drawing = DrawSettings(width_px=512, height_px=768, sampler="Euler a", steps=24, cfg_scale=7.0, clip_skip=2)
    assert parameters_text("<lora:cat-v1:0.7> cat", settings, drawing) == (
        "<lora:cat-v1:0.7> cat\n"
        "Negative prompt: blurry\n"
        "Steps: 24, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 7, Size: 512x768, "
        "Clip skip: 2, RNG: CPU"
    )
    without = TrainSettings(preview_seed=7)
    assert "Negative" not in parameters_text("cat", without, drawing)
