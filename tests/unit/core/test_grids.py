"""The places of grids: their order, names, axes, and where they stand on a sheet."""

from __future__ import annotations

from typing import Any

from lora_train.core.config import TrainSettings
from lora_train.core.grid_settings import GridSettings
from lora_train.core.grids import Table, axes, cells, picture_count, work_steps
from lora_train.core.specs import GridSpec


def spec_of(*loras: str, **grid: Any) -> GridSpec:
    return GridSpec(loras=loras, grid=GridSettings(**{"weights": (1.0,), **grid}), settings=TrainSettings())


def test_order_and_names() -> None:
    spec = spec_of("../a/x.safetensors", "../b/y.1.safetensors", seeds=(7, 8), weights=(0.5, 1), batch_count=2)
    told = [(cell.index, cell.lora, cell.seed, cell.weight) for cell in cells(spec)]
    assert told == [
        (0, "x", 7, 0.5),
        (1, "x", 7, 1),
        (2, "x", 8, 0.5),
        (3, "x", 8, 1),
        (4, "y.1", 7, 0.5),
        (5, "y.1", 7, 1),
        (6, "y.1", 8, 0.5),
        (7, "y.1", 8, 1),
    ]
    files = [file for cell in cells(spec) for file in cell.files]
    assert files[:3] == ["pictures/00000-0.png", "pictures/00000-1.png", "pictures/00001-0.png"]
    assert len(set(files)) == len(files) == picture_count(spec) == 16


def test_a_sheet_of_one_lora() -> None:
    """Columns are weights, rows the next fastest list; single values are no lists."""
    spec = spec_of("x.safetensors", "y.safetensors", samplers=("Euler", "Heun"), cfg_scales=(3, 7.5), weights=(0.5, 1))
    table = Table(spec, "y")
    assert table.labels == [["Weight 0.5", "Weight 1"], ["CFG 3", "CFG 7.5"], ["Euler", "Heun"]]
    cell = table.cell((0, 1, 1))
    assert (cell.lora, cell.weight, cell.cfg, cell.sampler) == ("y", 0.5, 7.5, "Heun")


def test_a_sheet_of_all_loras() -> None:
    """They stand below each other, in rows of weights."""
    spec = spec_of("x.safetensors", "y.safetensors", steps=(4, 8), weights=(0.5, 1))
    table = Table(spec)
    assert table.labels == [["Weight 0.5", "Weight 1"], ["x", "y"], ["Steps 4", "Steps 8"]]
    for weight in range(2):
        for lora in range(2):
            for steps in range(2):
                cell = table.cell((weight, lora, steps))
                assert (cell.weight, cell.lora, cell.steps) == ((0.5, 1)[weight], "xy"[lora], (4, 8)[steps])


def test_a_sheet_of_one_cell() -> None:
    spec = spec_of("x.safetensors")
    assert axes(spec) == {}
    table = Table(spec, "x")
    assert table.labels == []
    assert table.cell(()).files == ("pictures/00000-0.png",)


def test_the_same_value_twice_is_drawn_twice() -> None:
    table = Table(spec_of("x.safetensors", weights=(1, 1)), "x")
    assert [table.cell((index,)).index for index in range(2)] == [0, 1]


def test_work() -> None:
    """Heun looks twice in a step; the host's other samplers count once."""
    spec = spec_of("x.safetensors", samplers=("Euler", "Heun", "Restart"), steps=(10, 20), batch_size=3, weights=(0, 1))
    assert work_steps(spec) == (30 + 60 + 30) * 3 * 2
