"""What a job that draws grids has in its folder, and whose it is."""

from __future__ import annotations

import os
import re
from math import prod
from pathlib import Path, PurePosixPath

from lora_train.app.grid_snapshot import GridAxis
from lora_train.core.grids import axes
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import GridSpec
from lora_train.core.workspace import Version

_FOLDER = "pictures"
_PICTURE = re.compile(r"(\d{5})-\d+\.png")
"""Number of the cell, number of the picture in it (see `core.grids`)."""


def stem_of(lora: str) -> str:
    """The name of a job's LoRA in prompts and labels."""
    return PurePosixPath(lora).name.removesuffix(".safetensors")


def loras_of(version: Version, spec: GridSpec) -> dict[str, Path]:
    """Where each LoRA of a version's job is now, or was: known by train and file, as the version may be renamed."""
    told = {lora: PurePosixPath(lora) for lora in spec.loras}
    return {lora: version.trains_dir / path.parent.name / path.name for lora, path in told.items()}


def axes_of(spec: GridSpec) -> list[GridAxis]:
    return [GridAxis(name, [*labels]) for name, labels in axes(spec).items()]


def place_of(spec: GridSpec, index: int) -> list[int]:
    """Where the cell of this index stands on each axis."""
    place: list[int] = []
    for length in reversed(_lengths(spec)):
        index, own = divmod(index, length)
        if length > 1:
            place.insert(0, own)
    return place


def is_picture_file(file: str) -> bool:
    """Whether a name relative to a job's folder is that of a single picture."""
    folder, _, name = file.partition("/")
    return folder == _FOLDER and _PICTURE.fullmatch(name) is not None


def picture_names(folder: JobFolder) -> list[str]:
    """Names of the single pictures that are there, in the order of drawing."""
    try:
        with os.scandir(folder.path / _FOLDER) as entries:
            names = [entry.name for entry in entries if _PICTURE.fullmatch(entry.name)]
    except FileNotFoundError:
        return []
    return sorted(names, key=lambda name: (name[:5], len(name), name))


def pictures_by_lora(folder: JobFolder, spec: GridSpec) -> dict[str, list[str]]:
    """The pictures of each LoRA that are there, relative to the job's folder."""
    found: dict[str, list[str]] = {lora: [] for lora in spec.loras}
    places = prod(_lengths(spec)[1:])
    for name in picture_names(folder):
        number = int(name[:5]) // places
        if number < len(spec.loras):
            found[spec.loras[number]].append(f"{_FOLDER}/{name}")
    return found


def _lengths(spec: GridSpec) -> list[int]:
    """Of all lists, in the order of `core.grids.AXES`."""
    grid = spec.grid
    return [*map(len, (spec.loras, grid.samplers, grid.steps, grid.cfg_scales, grid.seeds, grid.weights))]
