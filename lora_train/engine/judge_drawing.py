"""What the judge looks at: pictures of the concept and of ordinary prompts, with the same seeds for every LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from PIL import Image

from lora_train.core.jobs import JobFolder
from lora_train.core.judgement import JUDGING, SAMPLES_FOLDER
from lora_train.core.seeds import derive_seed
from lora_train.core.specs import JudgeSpec
from lora_train.data.sheets import save_png
from lora_train.engine.loading import BaseModel
from lora_train.engine.previews import parameters_text
from lora_train.engine.reporting import Reporter
from lora_train.engine.sample import DrawSettings, decode, denoise, pictures_together
from lora_train.engine.text import Embeddings, Prompts

_LEAST_SPREAD = 1.5
"""Standard deviation of a picture's values, 0 to 255: below it is one plain colour."""


class Drawing(NamedTuple):
    """What one LoRA draws at one weight."""

    concept: list[Image.Image]
    ordinary: list[Image.Image]
    broken: float
    """Share of both that are one plain colour or had no finite numbers."""
    files: tuple[str, ...]
    """Of `concept`, relative to the training's folder."""


class JudgeDrawer:
    """Draws for one judgement, counts pictures, and keeps those of the concept in the training's samples."""

    def __init__(
        self,
        spec: JudgeSpec,
        texts: Sequence[str],
        model: BaseModel,
        prompts: Prompts,
        draw_with: DrawSettings,
        train: JobFolder,
        report: Reporter,
        total: int,
    ) -> None:
        self._spec = spec
        self._texts = texts
        self._model = model
        self._prompts = prompts
        self._draw_with = draw_with
        self._train = train
        self._report = report
        self._done = 0
        self._total = total
        self.concept_of = [index % len(texts) for index in range(spec.pictures)]
        """The number of each picture's prompt among `texts`."""
        self.ordinary_of = [index % len(spec.ordinary_prompts) for index in range(spec.pictures)]

    def skip(self, rows: int) -> None:
        """Count so many rows as drawn: they were by an earlier start."""
        self._done += rows * 2 * self._spec.pictures

    def draw(self, lora: str, weight: float) -> Drawing:
        """With what is in force now. `lora` is empty for the base model. Raises RequestedEnd between pictures."""
        concept, bad = self._draw([self._texts[number] for number in self.concept_of], "concept")
        ordinary, also_bad = self._draw(
            [self._spec.ordinary_prompts[number] for number in self.ordinary_of], "ordinary"
        )
        files = self._save(concept, Path(lora).stem, weight)
        return Drawing(concept, ordinary, (bad + also_bad) / (2 * self._spec.pictures), files)

    def _seed(self, what: str, index: int) -> int:
        """32 bits, as WebUIs take them."""
        return derive_seed(self._spec.settings.preview_seed, "judge", what, index) % 2**32

    @torch.no_grad()
    def _draw(self, texts: Sequence[str], what: str) -> tuple[list[Image.Image], int]:
        """A picture for each text, and how many of them are broken."""
        negative = self._prompts.encode_each([self._spec.settings.preview_negative_prompt])[0]
        encoded = self._prompts.encode_each(texts)
        drawn: dict[int, Image.Image] = {}
        broken = 0
        for indices in _together(encoded, pictures_together(self._draw_with)):
            self._report.phase(JUDGING, self._done, self._total)
            text = Embeddings.join([encoded[index] for index in indices])
            seeds = [self._seed(what, index) for index in indices]
            latents = denoise(self._model, text, negative, seeds, self._draw_with)
            finite = torch.isfinite(latents).flatten(1).all(1).tolist()
            pictures = decode(self._model, latents.nan_to_num(0.0, 0.0, 0.0))
            broken += sum(not fine or _is_plain(own) for fine, own in zip(finite, pictures, strict=True))
            drawn.update(zip(indices, pictures, strict=True))
            self._done += len(indices)
        return [drawn[index] for index in range(len(texts))], broken

    def _save(self, pictures: Sequence[Image.Image], stem: str, weight: float) -> tuple[str, ...]:
        folder = self._train.path / SAMPLES_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        names: list[str] = []
        for index, (picture, number) in enumerate(zip(pictures, self.concept_of, strict=True)):
            prompt = self._texts[number]
            settings = msgspec.structs.replace(self._spec.settings, preview_seed=self._seed("concept", index))
            tagged = f"<lora:{stem}:{weight:g}> {prompt}" if stem else prompt
            name = f"{stem}-w{weight:g}-{index + 1}.png" if stem else f"base-model-{index + 1}.png"
            save_png(picture, folder / name, parameters_text(tagged, settings, self._draw_with))
            names.append(f"{SAMPLES_FOLDER}/{name}")
        return tuple(names)


def _together(texts: Sequence[Embeddings], most: int) -> Iterator[list[int]]:
    """Numbers of texts that are drawn at the same time: they are equally long, and `most` at most."""
    by_length: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        by_length.setdefault(text.hidden.shape[1], []).append(index)
    for indices in by_length.values():
        yield from (indices[start : start + most] for start in range(0, len(indices), most))


def _is_plain(picture: Image.Image) -> bool:
    return float(np.asarray(picture).std()) < _LEAST_SPREAD
