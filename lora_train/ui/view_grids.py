"""Previews of finished LoRAs: what they would cost, and the grids that are drawn and were drawn, as HTML."""

from __future__ import annotations

from lora_train.app.grid_snapshot import GridForecast, GridJob, GridsPage
from lora_train.core.grids import AxisName
from lora_train.core.jobs import JobStatus
from lora_train.ui.html import (
    apart,
    attributes_text,
    counted,
    error_panel,
    grid_picture_url,
    local_time,
    page_wanted,
    pager,
    paragraph,
    post_button,
    progress_bar,
    rounded_time,
    sentences,
    value,
    words,
)

PAGE_LENGTH = 60
"""Single pictures that are shown at once."""
_AXES: dict[AxisName, str] = {
    "lora": "LoRA",
    "sampler": "Sampling method",
    "steps": "Sampling steps",
    "cfg": "CFG scale",
    "seed": "Seed",
    "weight": "Lora multiplier",
}
_STATES = {
    "waiting": "Waiting in the queue",
    "running": "Drawing previews",
    "finished": "Finished",
    "stopped": "Stopped",
    "paused": "Paused",
    "failed": "Failed",
}


def grids_sum_html(forecast: GridForecast) -> str:
    """`24 pictures, about 3 minutes on this machine`, or every reason why nothing can be drawn."""
    if forecast.problems:
        return paragraph(words("Previews cannot be drawn yet:")) + sentences(forecast.problems, "train-tools-warning")
    each = f"{value(', ')}{value(forecast.pictures // forecast.loras)} {words('each')}" if forecast.loras > 1 else ""
    loras = f"{value('(')}{counted(forecast.loras, 'LoRA', 'LoRAs')}{each}{value(')')}"
    pictures = counted(forecast.pictures, "picture", "pictures")
    time = f"{value('; ')}{words('the time is known after the first preview')}"
    if forecast.seconds is not None:
        number, unit = rounded_time(forecast.seconds)
        time = f"{value(', ')}{words('about')} {value(number)} {words(unit)} {words('on this machine')}"
    return paragraph(f'<span class="train-tools-total">{pictures}</span> {loras}{time}', "train-tools-sum")


def grids_html(page: GridsPage, token: str, pictures: str = "") -> str:
    """The jobs of a page with their grids. `pictures` says of which job other single pictures than the first are shown:
    the number of their page and the job's id, with a blank between.
    """
    if not page.jobs and page.pages == 1:
        return paragraph(words("Grids of pictures appear here."), "train-tools-quiet")
    number, _, job = pictures.partition(" ")
    chosen = page_wanted(number)
    jobs = "".join(_job(entry, token, chosen if entry.job == job else 1) for entry in page.jobs)
    return jobs + pager("grids", page.page, page.pages, 1, ("Newer previews", "Earlier previews"))


def _job(job: GridJob, token: str, page: int) -> str:
    key = attributes_text({"data-key": f"grids {job.job}"})
    over_all = [_grid(job, words("all LoRAs"), job.file, token)] if job.file else []
    grids = "".join([*over_all, *(_grid(job, value(own.stem), own.file, token) for own in job.loras if own.file)])
    shown = f'<div class="train-tools-grids">{grids}</div>' if grids else ""
    return (
        f'<section class="train-tools-box"{key}>{_headline(job)}{_facts(job)}{_bar(job.status, job)}'
        f"{_failure(job.status)}{sentences(dict.fromkeys(job.status.notes))}"
        f'<div class="train-tools-actions">{_buttons(job)}</div>{shown}{_single_pictures(job, token, page)}</section>'
    )


def _headline(job: GridJob) -> str:
    state = job.status.state
    text = {None: "Not started", 0: "Starting"}.get(job.place, _STATES[state]) if state == "waiting" else _STATES[state]
    phase = words("Waiting for the WebUI's picture") if job.status.phase == "waiting for the WebUI's picture" else ""
    done = value(f"{job.drawn} / {job.total}")
    return (
        f'<div class="train-tools-headline"><span class="train-tools-state train-tools-{state}">'
        f'<i aria-hidden="true"></i>{words(text)}</span>{done}{phase}'
        f'<span class="train-tools-quiet">{local_time(job.created)}</span></div>'
    )


def _facts(job: GridJob) -> str:
    """The prompt, the size, and the axes with their values."""
    grid = job.grid
    told = [value(f"{grid.width_px} × {grid.height_px}")]
    shown = {axis.name for axis in job.axes}
    if "lora" not in shown:
        told.insert(0, value(", ".join(lora.stem for lora in job.loras), "train-tools-strong"))
    alone: dict[AxisName, str] = {
        "sampler": grid.samplers[0],
        "steps": str(grid.steps[0]),
        "cfg": f"{grid.cfg_scales[0]:g}",
        "seed": str(grid.seeds[0]),
        "weight": f"{grid.weights[0]:g}",
    }
    told += [f"{words(_AXES[name])} {value(text)}" for name, text in alone.items() if name not in shown]
    axes = [
        paragraph(f"{words(_AXES[axis.name])} {value(', '.join(axis.labels), 'train-tools-strong')}")
        for axis in job.axes
    ]
    prompt = paragraph(value(grid.prompt), "train-tools-caption")
    return f"{prompt}{paragraph(apart(told), 'train-tools-quiet')}{''.join(axes)}"


def _bar(status: JobStatus, job: GridJob) -> str:
    if status.state == "running":
        return progress_bar(job.drawn, job.total)
    return progress_bar(job.drawn, job.total) if status.state != "finished" and job.drawn else ""


def _failure(status: JobStatus) -> str:
    return (
        error_panel("The previews could not be drawn.", status.message, status.hint) if status.state == "failed" else ""
    )


def _buttons(job: GridJob) -> str:
    body = {"job": job.job}
    compare = ""
    if job.drawn:
        opens = attributes_text({"data-grid": job.job, "data-key": f"compare {job.job}"})
        compare = f'<button type="button" class="train-tools-button"{opens}>Compare pictures</button>'
    if job.status.state == "running" or (job.status.state == "waiting" and job.place is not None):
        stop = post_button("Stop", "grids/stop", body, done="It stops; pictures that are drawn stay.")
        return compare + stop
    resume = ""
    if job.status.state != "finished":
        resume = post_button("Go on", "grids/resume", body, done="Put into the queue.")
    return compare + resume + post_button("Delete", "grids/delete", body)


def _grid(job: GridJob, title: str, file: str, token: str) -> str:
    """A finished grid; a click shows it at its full size."""
    url = grid_picture_url(job.job, file, token)
    small = grid_picture_url(job.job, file, token, size="thumb")
    link = attributes_text({"href": url, "target": "_blank", "rel": "noopener", "data-key": f"{job.job} {file}"})
    image = attributes_text({"src": small, "alt": file})
    key = attributes_text({"data-key": f"grid {job.job} {file}"})
    return (
        f'<figure{key}><a class="train-tools-preview train-tools-value"{link}><img loading="lazy"{image}></a>'
        f"<figcaption>{title}</figcaption></figure>"
    )


def _single_pictures(job: GridJob, token: str, page: int) -> str:
    """The pictures of a page, each of which opens the comparison where it stands; nothing unless they are wanted."""
    files = [file for lora in job.loras for file in lora.pictures]
    if not job.grid.include_sub_pictures or not files:
        return ""
    pages = -(-len(files) // PAGE_LENGTH)
    page = min(max(page, 1), pages)
    shown = files[(page - 1) * PAGE_LENGTH : page * PAGE_LENGTH]
    tiles = "".join(_tile(job, file, token) for file in shown)
    turns = [("‹", page - 1, "Previous pictures"), ("›", page + 1, "Next pictures")]
    buttons = "".join(_turn(job, *turn) for turn in turns if 1 <= turn[1] <= pages)
    place = value(f"{page} / {pages}") if pages > 1 else ""
    return f'<div class="train-tools-small">{tiles}</div><div class="train-tools-actions">{buttons}{place}</div>'


def _tile(job: GridJob, file: str, token: str) -> str:
    opens = attributes_text({"data-grid": job.job, "data-file": file, "data-key": f"{job.job} {file}"})
    image = attributes_text({"src": grid_picture_url(job.job, file, token, size="thumb"), "alt": file})
    return (
        f'<button type="button" class="train-tools-thumbnail train-tools-value"{opens}>'
        f'<img loading="lazy"{image}></button>'
    )


def _turn(job: GridJob, sign: str, page: int, name: str) -> str:
    attributes = attributes_text(
        {
            "data-param": "pictures",
            "data-value": f"{page} {job.job}",
            "data-key": f"{name} {job.job}",
            "aria-label": name,
            "title": name,
        }
    )
    return f'<button type="button" class="train-tools-button"{attributes}>{sign}</button>'
