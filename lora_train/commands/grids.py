"""`lora-train grid`: finished LoRAs, drawn by comma lists of values into labelled grids."""

from __future__ import annotations

import argparse
from itertools import chain, count
from pathlib import Path
from typing import Any

from lora_train.commands.arguments import add_command, add_settings, app_of, fields_of, values_of
from lora_train.commands.console import Result, run_job
from lora_train.core.files import write_bytes
from lora_train.core.grid_settings import GridSettings
from lora_train.core.settings import SettingField, setting_fields

_FIELDS = (
    *("prompt", "negative_prompt", "weights", "samplers", "steps", "cfg_scales", "seeds"),
    *("width_px", "height_px", "batch_count", "batch_size"),
)


def add_commands(commands: Any) -> None:
    """Put the command of this file among the others."""
    grid = add_command(commands, "grid", _grid, "draw grids of pictures with finished LoRAs")
    grid.add_argument("loras", nargs="+", metavar="LORA", help="a .safetensors file")
    grid.add_argument("--out", metavar="DIR", help="also copy the finished grids here")
    for field in _fields():
        grid.add_argument(
            _flag(field),
            dest=f"grid_{field.name}",
            metavar="X",
            help=f"{field.label}: {field.limits} (default {field.default!r}). {field.help}".replace("%", "%%"),
        )
    add_settings(grid, fields_of("base_model", "vae", "clip_skip", "precision", "device"))


def _fields() -> list[SettingField]:
    return [field for field in setting_fields(GridSettings) if field.name in _FIELDS]


def _flag(field: SettingField) -> str:
    return f"--{field.name.removesuffix('_px').replace('_', '-')}"


def _grid(options: argparse.Namespace) -> Result:
    app = app_of(options)
    given = {name: value for name in _FIELDS if (value := getattr(options, f"grid_{name}")) is not None}
    if "samplers" in given:
        given["samplers"] = [name.strip() for name in given["samplers"].split(",") if name.strip()]
    job = app.plan_grid(loras=[Path(lora) for lora in options.loras], grid=given, values=values_of(options))
    print(job.path, flush=True)
    result = run_job(app, job)
    grids = sorted(job.path.glob("*-grid.png"))
    if options.out:
        grids = [_copy(path, Path(options.out)) for path in grids]
    result["grids"] = [str(path) for path in grids]
    if not options.json:
        for path in grids:
            print(path)
    return result


def _copy(grid: Path, folder: Path) -> Path:
    """A copy in the folder, under a name that nothing has there."""
    names = (f"{grid.stem}{suffix}.png" for suffix in chain([""], (f"-{number}" for number in count(2))))
    path = next(path for name in names if not (path := folder / name).exists())
    write_bytes(path, grid.read_bytes())
    return path
