"""Regularisation pictures by class, what they do to the number of steps, and a drawing of some, as HTML."""

from __future__ import annotations

from lora_train.app.snapshot import RegularisationClass, RegularisationForecast, RegularisationSnapshot, Selection
from lora_train.ui.html import (
    apart,
    counted,
    duration_text,
    error_panel,
    paragraph,
    post_button,
    progress_bar,
    sentences,
    value,
    words,
)


def regularisation_html(snapshot: RegularisationSnapshot, selection: Selection) -> str:
    """The classes with what can be done with them, and the job that draws some."""
    rows = "".join(_row(entry, selection) for entry in snapshot.classes)
    listed = f'<ul class="train-tools-queue">{rows}</ul>'
    if not rows:
        listed = paragraph(words("There are no regularisation pictures."), "train-tools-quiet")
    return f"{_drawing(snapshot)}{listed}"


def _row(entry: RegularisationClass, selection: Selection) -> str:
    body = {"project": selection.project, "version": selection.version, "folder": entry.folder}
    remove = post_button("Remove", "regularisation/remove", body)
    name = value(entry.name, "train-tools-strong") if entry.name else words("without a class")
    facts = f"{counted(entry.count, 'picture', 'pictures')} {value('×')} {counted(entry.repeats, 'repeat', 'repeats')}"
    return f'<li>{name}<span>{facts}</span><div class="train-tools-actions">{remove}</div></li>'


def _drawing(snapshot: RegularisationSnapshot) -> str:
    status = snapshot.status
    if status is None:
        return ""
    if not snapshot.is_drawing:
        if status.state == "failed":
            return error_panel("The pictures could not be drawn.", status.message, status.hint)
        return sentences(status.notes)
    is_waiting = status.state != "running"
    headline = words("Waiting in the queue") if is_waiting else words("Drawing regularisation pictures")
    done = value(f"{status.phase_done} / {status.phase_total}") if status.phase_total else ""
    bar = progress_bar(status.phase_done, status.phase_total)
    route = "queue/cancel" if is_waiting else "jobs/stop"
    stop = post_button("Stop", route, {"job": snapshot.job}, done="It stops; pictures that are drawn stay.")
    return (
        f'<div class="train-tools-box">{paragraph(f"{headline} {done}")}{bar}'
        f'<div class="train-tools-actions">{stop}</div></div>'
    )


def effect_html(forecast: RegularisationForecast) -> str:
    """What the regularisation pictures that are there do to the steps; or, with a count, what so many more would do."""
    if forecast.count and forecast.problems:
        return sentences(forecast.problems, "train-tools-warning")
    if not forecast.total_steps:  # the sum of the training tells why
        return ""
    parts = [f"{words('without any')} {_steps(forecast.total_steps_without)}"]
    if forecast.count:
        parts = [] if forecast.pictures else parts  # told already with those that are there
        parts.append(f"{words('with so many more')} {_steps(forecast.total_steps_with)}")
    elif forecast.pictures:
        used = f"{words('of them an epoch shows')} {value(forecast.used_per_epoch)}"
        parts.append(f"{words('with these')} {_steps(forecast.total_steps)} ({used})")
    if forecast.seconds:
        parts.append(f"{words('drawing them takes about')} {value(duration_text(forecast.seconds))}")
    return paragraph(apart(parts), "train-tools-sum")


def _steps(count: int) -> str:
    return counted(count, "step", "steps")
