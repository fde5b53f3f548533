"""The places of a preview grid: which pictures a job of lists draws, what their files are called, what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import PurePosixPath
from typing import Literal

import msgspec

from lora_train.core.samplers import sampler_calls
from lora_train.core.specs import GridSpec

AxisName = Literal["lora", "sampler", "steps", "cfg", "seed", "weight"]
AXES: tuple[AxisName, ...] = ("lora", "sampler", "steps", "cfg", "seed", "weight")
"""From the slowest to the fastest: pictures come in this order."""


_SHEET_ORDER: tuple[AxisName, ...] = ("weight", "lora", "seed", "cfg", "steps", "sampler")
"""Of a sheet: along the columns, down the rows, then blocks."""
_WORDS: dict[str, str] = {"steps": "Steps ", "cfg": "CFG ", "seed": "Seed ", "weight": "Weight "}
"""What a label says before its value, where that alone would not be understood."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One place of a grid: `batch_count` x `batch_size` pictures, with the seeds `seed`, `seed` + 1 ..."""

    index: int
    """Counted over the whole job."""
    lora: str
    """Stem of the file."""
    path: str
    """The file, relative to the job's folder."""
    sampler: str
    steps: int
    cfg: float
    seed: int
    weight: float
    files: tuple[str, ...]
    """Its pictures, relative to the job's folder. One that is there is drawn."""


def cells(spec: GridSpec) -> Iterator[Cell]:
    """Every place, the LoRAs one after the other, weights next to each other."""
    grid = spec.grid
    places = product(spec.loras, grid.samplers, grid.steps, grid.cfg_scales, grid.seeds, grid.weights)
    pictures = grid.batch_count * grid.batch_size
    for index, (lora, sampler, steps, cfg, seed, weight) in enumerate(places):
        files = tuple(f"pictures/{index:05d}-{number}.png" for number in range(pictures))
        stem = PurePosixPath(lora).name.removesuffix(".safetensors")
        yield Cell(
            index=index,
            lora=stem,
            path=lora,
            sampler=sampler,
            steps=steps,
            cfg=cfg,
            seed=seed,
            weight=weight,
            files=files,
        )


def axes(spec: GridSpec) -> dict[AxisName, tuple[str, ...]]:
    """The lists with more than one value, as labels, in the order of `AXES`."""
    grid = spec.grid
    stems = tuple(PurePosixPath(lora).name.removesuffix(".safetensors") for lora in spec.loras)
    lists: dict[AxisName, tuple[str, ...]] = {
        "lora": stems,
        "sampler": grid.samplers,
        "steps": tuple(map(str, grid.steps)),
        "cfg": tuple(f"{cfg:g}" for cfg in grid.cfg_scales),
        "seed": tuple(map(str, grid.seeds)),
        "weight": tuple(f"{weight:g}" for weight in grid.weights),
    }
    return {name: labels for name, labels in lists.items() if len(labels) > 1}


class Table:
    """The cells of a sheet: of one LoRA, or of all."""

    def __init__(self, spec: GridSpec, stem: str = "") -> None:
        """Of the LoRA `stem`, or of all LoRAs."""
        own = [cell for cell in cells(spec) if not stem or cell.lora == stem]
        found = {name: labels for name, labels in axes(spec).items() if name != "lora" or not stem}
        self._names = [name for name in _SHEET_ORDER if name in found]
        self.labels = [[f"{_WORDS.get(name, '')}{label}" for label in found[name]] for name in self._names]
        """Of each list, columns first."""
        places = product(*(range(len(labels)) for labels in found.values()))
        self._cells = {
            tuple(dict(zip(found, place, strict=True))[name] for name in self._names): cell
            for place, cell in zip(places, own, strict=True)
        }

    def cell(self, indices: tuple[int, ...]) -> Cell:
        """The one at these places of the lists."""
        return self._cells[indices]


def grid_file(stem: str) -> str:
    """The finished grid of one LoRA, relative to the job's folder."""
    return f"{stem}-grid.png"


ALL_GRIDS_FILE = "all-grid.png"
"""The grid over all LoRAs of a job that has several, relative to the job's folder."""
DRAWING_PREVIEWS = "drawing previews"
"""The phase of such a job in which pictures come, one `done` for each."""


def work_steps(spec: GridSpec) -> int:
    """Looks of the UNet that all pictures take, the measure of what they cost: some samplers look twice in a step."""
    grid = spec.grid
    calls = sum(sampler_calls(sampler, steps) for sampler, steps in product(grid.samplers, grid.steps))
    others = len(spec.loras) * len(grid.cfg_scales) * len(grid.seeds) * len(grid.weights)
    return calls * others * grid.batch_count * grid.batch_size


def picture_count(spec: GridSpec) -> int:
    """All pictures of the job."""
    grid = spec.grid
    lists = (spec.loras, grid.samplers, grid.steps, grid.cfg_scales, grid.seeds, grid.weights)
    count = grid.batch_count * grid.batch_size
    for values in lists:
        count *= len(values)
    return count
