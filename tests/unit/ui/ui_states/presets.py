"""The preset of a version, and a person's own."""

from __future__ import annotations

from lora_train.app.snapshot import PresetEntry, PresetRow, PresetState, Selection
from lora_train.core.purposes import PURPOSES
from lora_train.ui import view

SELECTION = Selection("猫-1", "v1")
ROWS = [
    PresetRow("learning_rate", "Learning rate", 2e-4, 1e-4, "Between the two."),
    PresetRow("flip", "Flip", True, False, "More views."),
    PresetRow("preview_prompts", "Preview prompts", (), ("a", "b"), ""),
]


def preset_states() -> dict[str, str]:
    used = PresetState(name="style", about="How pictures are drawn.", family="SDXL", changed=ROWS)
    own = PresetState(name="自作 <1>", family="SDXL", is_gone=True, saved_for="Stable Diffusion 1.x")
    same = PresetState(name="style", family="SDXL", other_family="Stable Diffusion 1.x")
    other = PresetState(name="自作", family="SDXL", other_family="Stable Diffusion 1.x", offered=ROWS[:1])
    entries = [
        PresetEntry("style", "How pictures are drawn."),
        PresetEntry("自作 <1>&2", is_own=True),
        PresetEntry("broken", is_own=True, problem="This file is no preset."),
    ]
    return {
        "no preset": view.preset_html(PresetState(family="SDXL"), SELECTION),
        "preset in use": view.preset_html(used, SELECTION),
        "preset that is gone": view.preset_html(own, SELECTION),
        "preset with the same for another model": view.preset_html(same, SELECTION),
        "preset with others for another model": view.preset_html(other, SELECTION),
        **{
            f"proposed {name}": view.preset_html(PresetState(proposed=name, proposed_about="It is."), SELECTION)
            for name in PURPOSES
        },
        "no own presets": view.own_presets_html(entries[:1], "T"),
        "own presets": view.own_presets_html(entries, "T"),
    }
