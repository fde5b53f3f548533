"""The compare job: what a LoRA changed, in numbers and in one picture."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from lora_train.core.jobs import JobFolder
from lora_train.core.specs import CompareSpec
from lora_train.data.dataset import scan_dataset
from lora_train.data.images import fit_to_bucket, open_picture
from lora_train.data.sheets import make_grid, save_png
from lora_train.engine.features import FeatureReader
from lora_train.engine.likeness import Likeness, retention
from lora_train.engine.loading import BaseModel
from lora_train.engine.network_protocol import Network
from lora_train.engine.preview_job import load_with_lora
from lora_train.engine.reporting import Reporter
from lora_train.engine.sample import DrawSettings, draw, draw_settings, picture_seeds
from lora_train.engine.text import Prompts

_PICTURES_PER_KIND = 12
_GRID_COLUMNS = 6


def compare(spec: CompareSpec, job: JobFolder, report: Reporter) -> dict[str, object]:
    """Likeness to the concept and retention of ordinary prompts, with the LoRA at weight 0 and at 1.

    Likeness here is what the concept's prompts have more of it than ordinary prompts, drawn with the same LoRA: one
    that merely colours everything, or that learned from wrong captions, gains nothing by it.
    """
    settings = spec.settings
    model, network, prompts = load_with_lora(settings, Path(spec.lora), report)
    size_px = settings.resolution or model.native_resolution_px
    draw_with = draw_settings(settings, model, size_px)
    concept = [spec.prompts[index % len(spec.prompts)] for index in range(_PICTURES_PER_KIND)]
    ordinary = [spec.ordinary_prompts[index % len(spec.ordinary_prompts)] for index in range(_PICTURES_PER_KIND)]
    drawer = _Drawer(model, network, prompts, draw_with, settings.preview_seed)
    rows: list[list[Image.Image]] = []
    for texts, weight in ((concept, 0), (concept, 1), (ordinary, 0), (ordinary, 1)):
        report.phase("drawing before and after", len(rows), 4)
        rows.append(drawer.draw(texts, weight=weight))

    report.phase("measuring likeness")
    network.multiplier = 0
    reader = FeatureReader(model, prompts)
    pictures = _concept_pictures(Path(spec.pictures), size_px)
    before, after, ordinary_before, ordinary_after = map(reader.read, rows)
    likeness = Likeness(reader.read(pictures), ordinary_before)
    prompt_of = [spec.ordinary_prompts.index(prompt) for prompt in ordinary]
    path = job.path / "before-after.png"
    save_png(_grid(spec, [pictures, *rows]), path)
    return {
        "grid": str(path),
        "likeness_before": likeness.of(before) - likeness.of(ordinary_before),
        "likeness_after": likeness.of(after) - likeness.of(ordinary_after),
        "likeness_of_pictures": likeness.among_themselves() - likeness.of(ordinary_before),
        "retention": retention(ordinary_after, ordinary_before, prompt_of),
    }


def _grid(spec: CompareSpec, rows: list[list[Image.Image]]) -> Image.Image:
    """The concept's own pictures, and under them what was drawn: each with the LoRA at 0 and at 1."""
    return make_grid(
        [row[:_GRID_COLUMNS] for row in rows],
        row_labels=[
            "Your pictures",
            "Before: " + " / ".join(spec.prompts),
            "After",
            "Ordinary prompts, before",
            "Ordinary prompts, after",
        ],
        column_labels=[""] * min(_GRID_COLUMNS, len(rows[0])),
        title=Path(spec.lora).stem,
    )


class _Drawer:
    """Draws with one seed for each place in a row, whatever the weight."""

    def __init__(
        self,
        model: BaseModel,
        network: Network,
        prompts: Prompts,
        draw_with: DrawSettings,
        seed: int,
    ) -> None:
        self._model = model
        self._network = network
        self._prompts = prompts
        self._draw_with = draw_with
        self._seed = seed

    @torch.no_grad()
    def draw(self, prompts: list[str], *, weight: float) -> list[Image.Image]:
        self._network.multiplier = weight
        positive = self._prompts.encode_each(prompts)
        negative = self._prompts.encode_each([""])[0]
        seeds = picture_seeds(self._seed, len(prompts))
        return draw(self._model, positive, negative, seeds, self._draw_with)


def _concept_pictures(folder: Path, size_px: int) -> list[Image.Image]:
    """The concept's training pictures as squares of the drawn size."""
    dataset = scan_dataset(folder)
    paths = [folder / own.path for own in dataset.pictures if not own.is_regularisation]
    fitted = [fit_to_bucket(open_picture(path), (size_px, size_px)) for path in paths]
    return [Image.fromarray(own) for own in fitted]
