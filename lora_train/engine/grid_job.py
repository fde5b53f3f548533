"""The grid job: finished LoRAs, drawn by lists of values into single pictures and labelled grids.

A picture that is there is drawn: a job that was stopped goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import cast

import torch
from PIL import Image

from lora_train.core.assets import resolve_base_model
from lora_train.core.conditioning import conditioning_of
from lora_train.core.errors import ConfigError, DeviceMemoryError, ModelError
from lora_train.core.events import Note
from lora_train.core.grids import DRAWING_PREVIEWS, Cell, cells, picture_count
from lora_train.core.infotext import DrawnFrom, Parameters, infotext, lora_tag
from lora_train.core.jobs import JobFolder
from lora_train.core.samplers import Sampler, unknown_sampler
from lora_train.core.specs import GridSpec
from lora_train.core.tensorfiles import file_sha256, read_tensor_file
from lora_train.data.grid_work import Drawn, GridWork
from lora_train.data.prompts import unread_syntax
from lora_train.engine.devices import is_out_of_memory
from lora_train.engine.loading import BaseModel
from lora_train.engine.network_protocol import Network
from lora_train.engine.preview_job import attach_lora, load_for_drawing
from lora_train.engine.reporting import Reporter
from lora_train.engine.sample import DrawSettings, decode, denoise
from lora_train.engine.text import Embeddings, Prompts


def draw_grid(spec: GridSpec, job: JobFolder, report: Reporter) -> dict[str, object]:
    """Draw what is missing of the job's pictures and grids (names in `core.grids`), LoRA by LoRA.

    A LoRA that can't be used, or not at some weight, is told in a note, and the others are drawn. Raises ConfigError
    for a sampler that is not ours, ModelError for the base model, its VAE, or where nothing at all can be drawn,
    DeviceMemoryError, RequestedEnd between two looks of the UNet.
    """
    problems = [problem for name in spec.grid.samplers if (problem := unknown_sampler(name))]
    if problems:
        raise ConfigError(problems)
    try:
        return _GridJob(spec, job, report).draw()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"The device has too little memory for {spec.grid.batch_size} pictures of {spec.grid.width_px}x"
            f"{spec.grid.height_px} pixels at once.",
            "Lower the batch size of the previews (the batch count makes up for it), or their width and height.",
        ) from error


class _GridJob:
    """What is drawn so far (see `data.grid_work`), and with what."""

    def __init__(self, spec: GridSpec, job: JobFolder, report: Reporter) -> None:
        self.spec, self.job, self.report = spec, job, report
        self.work = GridWork(spec, job, report.events)

    def draw(self) -> dict[str, object]:
        self._warn_of_syntax()
        with ThreadPoolExecutor(1) as hasher:
            files = _Files(self.spec, hasher)
            model, prompts = load_for_drawing(self.spec.settings, self.report)
            _ = model.unet, model.vae  # what is wrong with them is told before any LoRA
            for path, own in groupby(cells(self.spec), key=lambda cell: cell.path):
                self._draw_lora(path, list(own), model, prompts, files)
        return self.work.end()

    def _draw_lora(self, path: str, own: list[Cell], model: BaseModel, prompts: Prompts, files: _Files) -> None:
        self.work.begin_lora(own)
        try:
            lora = _Lora(self.job.path / path, model, prompts, self.spec)
        except ModelError as error:
            self.work.note(error)
            return
        try:
            drawn_from = files.behind(lora.path)
            for cell in own:
                self._draw_cell(cell, lora, drawn_from)
        finally:
            lora.network.detach()
        self.work.end_lora(own[0].lora)

    def _draw_cell(self, cell: Cell, lora: _Lora, drawn_from: DrawnFrom) -> None:
        missing = self.work.missing(cell)
        size = self.spec.grid.batch_size
        for start in range(0, len(missing), size):
            self.report.phase(DRAWING_PREVIEWS, self.work.done, picture_count(self.spec))
            self._draw_batch(cell, missing[start : start + size], lora, drawn_from)

    def _draw_batch(self, cell: Cell, numbers: Sequence[int], lora: _Lora, drawn_from: DrawnFrom) -> None:
        began = time.monotonic()
        seeds = [cell.seed + number for number in numbers]
        self.work.done += len(numbers)
        try:
            pictures = lora.pictures(cell, seeds, self.report)
        except ModelError as error:
            self.work.note(error)
            return
        texts = [self._infotext(cell, seed, lora.clip_skip, drawn_from) for seed in seeds]
        self.work.keep(cell, map(Drawn, numbers, pictures, texts))
        self.work.took(time.monotonic() - began)

    def _infotext(self, cell: Cell, seed: int, clip_skip: int | None, drawn_from: DrawnFrom) -> str:
        grid = self.spec.grid
        return infotext(
            Parameters(
                prompt=f"{lora_tag(cell.lora, cell.weight)} {self.work.prompt}",
                negative_prompt=grid.negative_prompt,
                sampler=cast("Sampler", cell.sampler),
                steps=cell.steps,
                cfg_scale=cell.cfg,
                seed=seed,
                size_px=(grid.width_px, grid.height_px),
                clip_skip=clip_skip,
                files=drawn_from,
            )
        )

    def _warn_of_syntax(self) -> None:
        grid = self.spec.grid
        for prompt in (grid.prompt, grid.negative_prompt):
            if found := unread_syntax(prompt):
                message = f"{found} is drawn as plain words here: only the WebUI's own samplers change a prompt midway."
                self.report.events.write(Note("warning", message))


class _Files:
    """What pictures tell of the files behind them. Checkpoints are hashed while the first pictures are drawn."""

    def __init__(self, spec: GridSpec, hasher: Executor) -> None:
        self._model = resolve_base_model(spec.settings.base_model)
        self._vae = Path(spec.settings.vae) if spec.settings.vae else None
        self._hashes = {
            path: hasher.submit(file_sha256, path) for path in (self._model, self._vae) if path and path.is_file()
        }

    def behind(self, lora: Path) -> DrawnFrom:
        """Of pictures with this LoRA."""
        vae, model_hash = self._vae, self._hashes.get(self._model)
        return DrawnFrom(
            model=self._model.stem,
            model_sha256=model_hash.result() if model_hash else "",
            vae=vae.name if vae else "",
            vae_sha256=self._hashes[vae].result() if vae else "",
            lora=lora.stem,
            lora_hash=read_tensor_file(lora).metadata.get("sshs_model_hash", ""),
        )


class _Lora:
    """A LoRA on the base model, and the prompts as its text encoder understands them at each weight."""

    def __init__(self, path: Path, model: BaseModel, prompts: Prompts, spec: GridSpec) -> None:
        if not path.is_file():
            raise ModelError(f"{path.resolve()} does not exist.", "It was moved or deleted since.")
        self.path = path
        self.clip_skip = spec.settings.clip_skip if conditioning_of(model.family).clip_skip_matters else None
        self._model, self._prompts, self._grid = model, prompts, spec.grid
        self._texts: dict[float, tuple[Embeddings, Embeddings]] = {}
        try:
            self.network: Network = attach_lora(model, path)
        except OSError as error:
            raise ModelError(f"{path.resolve()} can't be read: {error}.") from None

    def pictures(self, cell: Cell, seeds: Sequence[int], report: Reporter) -> list[Image.Image]:
        self.network.multiplier = cell.weight
        positive, negative = self._encoded(cell.weight)
        draw_with = DrawSettings(
            width_px=self._grid.width_px,
            height_px=self._grid.height_px,
            sampler=cast("Sampler", cell.sampler),
            steps=cell.steps,
            cfg_scale=cell.cfg,
            clip_skip=self.clip_skip,
        )
        texts = positive.expand(len(seeds))
        latents = denoise(self._model, texts, negative, seeds, draw_with, report.end_if_asked)
        if not bool(torch.isfinite(latents).all()):
            raise ModelError(
                f"{self.path.resolve()} draws numbers that are not finite at weight {cell.weight:g}.",
                "Choose a smaller weight, or fp32 as mixed precision.",
            )
        return decode(self._model, latents)

    @torch.no_grad()
    def _encoded(self, weight: float) -> tuple[Embeddings, Embeddings]:
        if weight not in self._texts:
            positive = self._prompts.encode_prompt(self._grid.prompt)
            negative = self._prompts.encode_prompt(self._grid.negative_prompt, is_negative=True)
            self._texts[weight] = positive, negative
        return self._texts[weight]
