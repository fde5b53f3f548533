"""Previews of finished LoRAs: what they would cost, and jobs that draw and drew some."""

from __future__ import annotations

import msgspec

from lora_train.app.grid_snapshot import GridAxis, GridForecast, GridJob, GridsPage, LoraGrid
from lora_train.core.grid_settings import GridSettings
from lora_train.core.jobs import JobStatus
from lora_train.ui import view

GRID = GridSettings(prompt="sks cat", width_px=512, height_px=768, seeds=(1, 2), weights=(0.0, 1.0))


def make_grid_job(status: JobStatus | None = None, **changes: object) -> GridJob:
    job = GridJob(
        job="jobs/20260101-000000-grid",
        created=1_700_000_000.0,
        status=status or JobStatus(state="finished"),
        grid=GRID,
        axes=[GridAxis("lora", ["a", "b"]), GridAxis("seed", ["1", "2"]), GridAxis("weight", ["0", "1"])],
        total=8,
        file="all-grid.png",
        drawn=8,
        loras=[
            LoraGrid(
                stem=stem,
                file=f"{stem}-grid.png",
                pictures=[f"pictures/{4 * number + own:05d}-0.png" for own in range(4)],
            )
            for number, stem in enumerate(("a", "b"))
        ],
    )
    return msgspec.structs.replace(job, **changes)


def make_many(count: int) -> GridJob:
    """A job that shows every picture."""
    pictures = [f"pictures/{number:05d}-0.png" for number in range(count)]
    return make_grid_job(
        grid=msgspec.structs.replace(GRID, include_sub_pictures=True),
        axes=[],
        loras=[LoraGrid(stem="a", file="a-grid.png", pictures=pictures)],
    )


def grid_states() -> dict[str, str]:
    waiting = JobStatus(state="waiting")
    parked = JobStatus(state="waiting", phase="waiting for the WebUI's picture")
    failed = JobStatus(state="failed", message="The card is full.", hint="Choose a smaller size.", notes=["A note."])
    half = {"drawn": 3, "loras": [LoraGrid(stem="a", pictures=["pictures/00000-0.png"])]}
    jobs = {
        "grids finished": make_grid_job(),
        "grids begin": make_grid_job(waiting, drawn=0, loras=[LoraGrid(stem="a")], place=0),
        "grids wait": make_grid_job(waiting, drawn=0, loras=[LoraGrid(stem="a")], place=2),
        "grids wait for a picture": make_grid_job(parked, place=0),
        "grids not begun": make_grid_job(waiting, drawn=0, loras=[LoraGrid(stem="a")]),
        "grids drawn": make_grid_job(JobStatus(state="running"), place=0, **half),
        "grids stopped": make_grid_job(JobStatus(state="stopped"), **half),
        "grids paused": make_grid_job(JobStatus(state="paused"), **half),
        "grids failed": make_grid_job(failed, **half),
        "grids with pictures": make_many(130),
        "grid of one picture": make_many(1),
    }
    forecasts = {
        "grids sum": GridForecast(loras=3, pictures=24, seconds=180.0),
        "grids sum of one": GridForecast(loras=1, pictures=1, seconds=1.0),
        "grids sum in hours": GridForecast(loras=30, pictures=2400, seconds=9000.0),
        "grids sum without time": GridForecast(loras=3, pictures=24),
        "grids impossible": GridForecast(problems=["There is no LoRA yet: train one first."]),
    }
    return {
        "no grids": view.grids_html(GridsPage(), ""),
        **{name: view.grids_html(GridsPage([job]), "token") for name, job in jobs.items()},
        "grids with middle pictures": view.grids_html(GridsPage([make_many(130)]), "token", f"2 {make_grid_job().job}"),
        "grids of a page": view.grids_html(GridsPage([make_many(1)], page=2, pages=3), "token"),
        **{name: view.grids_sum_html(forecast) for name, forecast in forecasts.items()},
    }
