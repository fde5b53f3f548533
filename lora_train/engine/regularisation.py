"""Draws regularisation pictures: what the base model alone makes of a class, so that training doesn't change it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from lora_train.core.config import TrainSettings
from lora_train.core.errors import ModelError
from lora_train.core.events import Note, Phase
from lora_train.core.files import write_text
from lora_train.core.jobs import JobFolder
from lora_train.core.seeds import derive_seed
from lora_train.core.specs import DRAWING_REGULARISATION, RegularisationSpec
from lora_train.data.regularisation import file_stem, free_numbers, remember_number
from lora_train.data.sheets import save_png
from lora_train.engine.loading import BaseModel
from lora_train.engine.preview_job import load_for_drawing
from lora_train.engine.previews import parameters_text
from lora_train.engine.reporting import Reporter
from lora_train.engine.sample import DrawSettings, decode, denoise, draw_settings, pictures_together
from lora_train.engine.text import Prompts

_LONG_S = 600.0
"""A job that takes longer says so after its first pictures."""


class _Class:
    """What all pictures of a job have in common."""

    def __init__(self, spec: RegularisationSpec, model: BaseModel, prompts: Prompts) -> None:
        self.prompt = spec.prompt
        self.settings = msgspec.structs.replace(spec.settings, preview_negative_prompt=spec.negative_prompt)
        self.draw_with = draw_settings(self.settings, model, model.native_resolution_px)
        with torch.no_grad():
            self.positive, self.negative = prompts.encode_each([spec.prompt, spec.negative_prompt])


def draw_regularisation(spec: RegularisationSpec, job: JobFolder, report: Reporter) -> dict[str, object]:
    """Draw `spec.count` pictures into the class folder, beside those that it has, each with the prompt as its caption.

    A picture depends on the settings, the prompt and its own number. Raises RequestedEnd when the person asked to
    stop, ModelError for a model whose numbers overflow; what was drawn before stays.
    """
    folder = (job.path / spec.folder).resolve()
    model, prompts = load_for_drawing(spec.settings, report)
    drawn = _Class(spec, model, prompts)
    report.events.write(*prompts.cut_notes())
    del prompts
    model.drop_text_encoders()
    numbers = free_numbers(folder, spec.count)
    together = pictures_together(drawn.draw_with)
    for done in range(0, spec.count, together):
        report.phase(DRAWING_REGULARISATION, done, spec.count)
        began = time.monotonic()
        _draw(drawn, model, folder, numbers[done : done + together])
        if done == 0:
            _tell_if_long(report, time.monotonic() - began, together, spec.count)
    report.events.write(Phase(DRAWING_REGULARISATION, spec.count, spec.count))
    return {"drawn": spec.count}


def _draw(drawn: _Class, model: BaseModel, folder: Path, numbers: Sequence[int]) -> None:
    """Draw the pictures of these numbers together, and keep them."""
    seeds = [picture_seed(drawn.settings.preview_seed, number) for number in numbers]
    positive = drawn.positive.expand(len(numbers))
    latents = denoise(model, positive, drawn.negative, seeds, drawn.draw_with)
    if not bool(torch.isfinite(latents).all()):
        raise ModelError(
            f"{model.path.name} draws numbers that are not finite.",
            "Choose fp32 as mixed precision, or another base model.",
        )
    for number, seed, picture in zip(numbers, seeds, decode(model, latents), strict=True):
        path = folder / f"{file_stem(number)}.png"
        save_png(picture, path, _parameters(drawn.prompt, seed, drawn.settings, drawn.draw_with))
        write_text(path.with_suffix(".txt"), drawn.prompt)
    remember_number(folder, numbers[-1])


def picture_seed(seed: int, number: int) -> int:
    """Of one picture: 32 bits, as WebUIs take them."""
    return derive_seed(seed, "regularisation", number) % 2**32


def _parameters(prompt: str, seed: int, settings: TrainSettings, draw_with: DrawSettings) -> str:
    return parameters_text(prompt, msgspec.structs.replace(settings, preview_seed=seed), draw_with)


def _tell_if_long(report: Reporter, seconds: float, together: int, count: int) -> None:
    per_picture_s = seconds / min(together, count)
    if per_picture_s * count > _LONG_S:
        minutes = round(per_picture_s * count / 60)
        message = f"{per_picture_s:.0f} s a picture here, about {minutes} minutes in all; Stop keeps what is drawn."
        report.events.write(Note("info", message))
