"""From the preview panel to a grid job: what the person left open is chosen, nothing is written or runs yet."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lora_train.app.planning import check_base_model, with_absolute_paths, with_threads
from lora_train.core import presets
from lora_train.core.config import TrainSettings
from lora_train.core.errors import ConfigError
from lora_train.core.files import relative_path
from lora_train.core.grid_settings import GridSettings
from lora_train.core.grids import ALL_GRIDS_FILE, grid_file
from lora_train.core.samplers import unknown_sampler
from lora_train.core.specs import GridSpec
from lora_train.core.workspace import Workspace

_SEEDS = 2**32


def plan_grid_job(
    workspace: Workspace,
    loras: Sequence[Path],
    grid: GridSettings,
    settings: TrainSettings,
    *,
    fallback_prompt: str,
) -> GridSpec:
    """The spec of a job in a folder of `workspace.jobs_dir`.

    A seed of -1 becomes a random one, the same for all LoRAs; a size of 0 the base model's own; an empty prompt
    `fallback_prompt`. Raises ConfigError with all that is wrong, ModelError for the base model or VAE.
    """
    facts = check_base_model(settings)
    own_px = presets.native_resolution_px(facts)
    prompt = grid.prompt.strip() or fallback_prompt
    problems = _wrong_files(loras)
    if not prompt:
        problems.append("prompt (Prompt): give one")
    if grid.drawn_by == "worker":
        problems += [problem for name in grid.samplers if (problem := unknown_sampler(name))]
    if problems:
        raise ConfigError(problems)
    ready = msgspec.structs.replace(
        grid,
        prompt=prompt,
        width_px=grid.width_px or own_px,
        height_px=grid.height_px or own_px,
        seeds=tuple(secrets.randbelow(_SEEDS) if seed == -1 else seed for seed in grid.seeds),
    )
    return GridSpec(
        loras=tuple(relative_path(lora.absolute(), workspace.jobs_dir / "job") for lora in loras),
        grid=ready,
        settings=with_threads(with_absolute_paths(settings), facts),
    )


def _wrong_files(loras: Sequence[Path]) -> list[str]:
    """Also two whose grids would have the same name, on Windows whatever their case."""
    if not loras:
        return ["loras: give at least one"]
    problems = [f"{lora} is not a LoRA file that exists" for lora in loras if not lora.is_file()]
    taken = {ALL_GRIDS_FILE}
    for lora in loras:
        name = grid_file(lora.stem).casefold()
        if name in taken:
            problems.append(f"{lora}: another grid has the name {grid_file(lora.stem)}; rename the LoRA file")
        taken.add(name)
    return problems
