"""Preview pictures of a run at a save: prompts x weights, single pictures and a labelled grid in `samples/`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from lora_train.core.assets import resolve_base_model
from lora_train.core.config import TrainSettings
from lora_train.core.infotext import DrawnFrom, Parameters, infotext, lora_tag
from lora_train.data.prompts import without_tags
from lora_train.data.sheets import make_grid, save_png
from lora_train.engine.loading import BaseModel
from lora_train.engine.network_protocol import Network
from lora_train.engine.sample import DrawSettings, draw
from lora_train.engine.text import Embeddings, Prompts


class PreviewTexts:
    """Embeddings of the preview prompts: encoded anew each time, or once ahead when the encoder is let go."""

    def __init__(self, prompts: Prompts, settings: TrainSettings) -> None:
        self._prompts: Prompts | None = prompts
        self._settings = settings
        self._encoded: tuple[list[Embeddings], Embeddings] | None = None

    def encode_ahead(self) -> None:
        """Keep the embeddings and let the text encoder go."""
        self._encoded = self.encode()
        self._prompts = None

    @torch.no_grad()
    def encode(self) -> tuple[list[Embeddings], Embeddings]:
        """Of every prompt, and of the negative one."""
        if self._encoded is not None:
            return self._encoded
        assert self._prompts is not None, "neither the embeddings nor the text encoder were kept"
        positive = [self._prompts.encode_prompt(prompt) for prompt in self._settings.preview_prompts]
        negative = self._prompts.encode_prompt(self._settings.preview_negative_prompt, is_negative=True)
        self._prompts.rest()
        return positive, negative


def draw_previews(
    model: BaseModel,
    network: Network,
    texts: PreviewTexts,
    settings: TrainSettings,
    draw_with: DrawSettings,
    progress: Callable[[int, int], None],
) -> list[list[Image.Image]]:
    """A row of pictures for every prompt, one for each weight; all with the same seed."""
    columns: list[list[Image.Image]] = []
    kept = network.multiplier
    seeds = [settings.preview_seed] * len(settings.preview_prompts)
    try:
        for done, weight in enumerate(settings.preview_weights):
            progress(done, len(settings.preview_weights))
            network.multiplier = weight
            positive, negative = texts.encode()
            columns.append(draw(model, positive, negative, seeds, draw_with))
    finally:
        network.multiplier = kept
    return [list(row) for row in zip(*columns, strict=True)]


def save_previews(
    folder: Path,
    stem: str,
    rows: Sequence[Sequence[Image.Image]],
    settings: TrainSettings,
    draw_with: DrawSettings,
    told: Callable[[Path, str, float | None], None],
) -> Path:
    """Write every picture and the grid; `told` hears of each with its prompt and weight. Returns the grid's path."""
    for prompt_index, (prompt, row) in enumerate(zip(settings.preview_prompts, rows, strict=True)):
        for weight, picture in zip(settings.preview_weights, row, strict=True):
            path = folder / f"{stem}-p{prompt_index + 1}-w{weight:g}.png"
            tagged = f"{lora_tag(stem, weight)} {without_tags(prompt).strip()}"
            save_png(picture, path, parameters_text(tagged, settings, draw_with))
            told(path, prompt, weight)
    grid = make_grid(
        rows,
        row_labels=settings.preview_prompts,
        column_labels=[f"{weight:g}" for weight in settings.preview_weights],
        title=stem,
    )
    path = grid_path(folder, stem)
    save_png(grid, path)
    told(path, "", None)
    return path


def grid_path(folder: Path, stem: str) -> Path:
    return folder / f"{stem}-grid.png"


def parameters_text(prompt: str, settings: TrainSettings, draw_with: DrawSettings) -> str:
    """Generation parameters in the form that WebUIs write into PNGs and read back."""
    return infotext(
        Parameters(
            prompt=prompt,
            negative_prompt=settings.preview_negative_prompt,
            sampler=draw_with.sampler,
            steps=draw_with.steps,
            cfg_scale=draw_with.cfg_scale,
            seed=settings.preview_seed,
            size_px=(draw_with.width_px, draw_with.height_px),
            clip_skip=draw_with.clip_skip,
            files=DrawnFrom(
                model=resolve_base_model(settings.base_model).stem,
                vae=Path(settings.vae).name,
            ),
        )
    )
