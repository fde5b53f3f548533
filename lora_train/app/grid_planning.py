"""From the preview panel's settings to a job that draws: what is left to be chosen is chosen here, once."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lora_train.app.planning import check_base_model, with_absolute_paths, with_threads
from lora_train.core import presets
from lora_train.core.config import TrainSettings
from lora_train.core.grid_settings import GridSettings
from lora_train.core.specs import GridSpec
from lora_train.core.workspace import Workspace

_MOST_RANDOM = 2_400_000_000
"""Random seeds stay below it, as in the original extension."""


def plan_grid_job(
    workspace: Workspace, loras: Sequence[Path], grid: GridSettings, settings: TrainSettings, *, fallback_prompt: str
) -> GridSpec:
    """A job that can be drawn: without seeds of -1, sizes of 0 or an empty prompt.

    Raises ConfigError or ModelError where the base model can't be used.
    """
    settings = with_absolute_paths(settings)
    facts = check_base_model(settings)
    side_px = presets.native_resolution_px(facts)
    below = workspace.jobs_dir / "job"
    return GridSpec(
        loras=tuple(Path(os.path.relpath(lora, below)).as_posix() for lora in loras),
        grid=msgspec.structs.replace(
            grid,
            prompt=grid.prompt.strip() or fallback_prompt,
            width_px=grid.width_px or side_px,
            height_px=grid.height_px or side_px,
            seeds=tuple(random.randrange(_MOST_RANDOM) if seed < 0 else seed for seed in grid.seeds),
        ),
        settings=with_threads(settings, facts),
    )
