"""What the page and the API are told of previews: grids of pictures of finished LoRAs."""

from __future__ import annotations

import msgspec

from lora_train.core.grid_settings import GridSettings
from lora_train.core.grids import AxisName
from lora_train.core.jobs import JobStatus


class GridForecast(msgspec.Struct, kw_only=True):
    """What *Generate all checkpoint preview* would do now."""

    loras: int = 0
    pictures: int = 0
    seconds: float | None = None
    """Expected length; None before anything was drawn with this base model on this machine."""
    problems: list[str] = []
    """Why nothing can be drawn; empty when it can."""


class GridAxis(msgspec.Struct, frozen=True):
    """A list with more than one value."""

    name: AxisName
    labels: list[str]


class LoraGrid(msgspec.Struct, frozen=True, kw_only=True):
    """What a job has drawn with one LoRA. Files are relative to the job's folder."""

    stem: str
    file: str = ""
    """The grid; empty as long as it is not finished."""
    pictures: list[str] = []
    """Those that are there, in the order of drawing."""


class GridJob(msgspec.Struct, kw_only=True):
    """A job that draws, or drew, previews."""

    job: str
    created: float
    status: JobStatus
    place: int | None = None
    """Place in the queue, 0 is the running one; None: not in it."""
    grid: GridSettings
    """What is drawn: seeds, sizes and prompt as they were chosen."""
    axes: list[GridAxis]
    """From the slowest to the fastest."""
    total: int
    """Pictures of the whole job."""
    drawn: int
    """Those that are there."""
    file: str = ""
    """The grid over all LoRAs; empty where there is none, or only one LoRA."""
    loras: list[LoraGrid]
    """Of the LoRAs that still exist."""


class GridsSnapshot(msgspec.Struct):
    """The previews of a version, newest first."""

    jobs: list[GridJob] = []


class GridsPage(GridsSnapshot):
    """Some of them."""

    page: int = 1
    pages: int = 1


class GridCell(msgspec.Struct, frozen=True):
    """A place of a job's table."""

    place: list[int]
    """Number of its value on each axis, counted from 0."""
    files: list[str]
    """Its pictures, relative to the job's folder; those that are there."""


class GridTable(msgspec.Struct, kw_only=True):
    """The places of a job, in the order of drawing: the last axis is the fastest."""

    job: str
    axes: list[GridAxis]
    cells: list[GridCell]
    """Of the LoRAs that still exist."""
    width_px: int
    height_px: int
