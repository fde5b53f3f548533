"""The progress of the shown training and the queue, as HTML."""

from __future__ import annotations

from html import escape

from lora_train.app.snapshot import QueueEntry, Snapshot, TrainSnapshot
from lora_train.core.jobs import JobStatus
from lora_train.core.numbers import gigabytes_text
from lora_train.ui.chart import chart_html
from lora_train.ui.html import (
    attributes_text,
    duration_text,
    error_panel,
    job_file_url,
    local_time,
    paragraph,
    post_button,
    progress_bar,
    sentence,
    sentences,
    value,
    words,
)
from lora_train.ui.view_memory import memory_html

_SILENCE_S = 30.0
_STRIP_LENGTH = 24
_KINDS = {"preview": "previews", "regularisation": "regularisation pictures", "judge": "judge", "proof": "proof"}
"""Of jobs in the queue that are no trainings."""
_STATES = {
    "waiting": "Waiting",
    "running": "Running",
    "finished": "Finished",
    "stopped": "Stopped",
    "paused": "Paused",
    "failed": "Failed",
}
_PHASES = {
    "loading the base model": "Loading the base model",
    "reading the pictures": "Reading the pictures",
    "encoding the pictures": "Encoding the pictures",
    "encoding the captions": "Encoding the captions",
    "reading the masks": "Reading the masks",
    "trying whether it fits the device": "Trying whether it fits the device",
    "training": "Training",
    "validating": "Measuring the held-out pictures",
    "drawing previews": "Drawing previews",
    "waiting for the WebUI's picture": "Waiting for the WebUI's picture",
}


def progress_html(snapshot: Snapshot, smoothing: float, token: str = "") -> str:
    """State, numbers, chart, previews and log of the shown training, with the buttons that its state allows."""
    foreign = paragraph(sentence(snapshot.foreign), "train-tools-notice") if snapshot.foreign else ""
    train = snapshot.shown
    if train is None:
        return foreign + paragraph(words("No training yet. Begin Train starts one."), "train-tools-quiet")
    status = train.status
    parts = [
        foreign,
        _headline(train),
        _bar(status),
        _numbers(status),
        memory_html(train),
        _silence(status),
        _failure(status),
        sentences(dict.fromkeys(status.notes)),
        f'<div class="train-tools-actions">{_buttons(train)}</div>',
    ]
    if status.state != "waiting" or snapshot.curve:
        parts += [chart_html(snapshot.curve, smoothing, snapshot.validations), _strip(train, token)]
    if snapshot.log_tail:
        parts.append(_log(snapshot.log_tail))
    return "".join(parts)


def state_html(train: TrainSnapshot) -> str:
    """A coloured dot and the state in words."""
    state = train.status.state
    text = _STATES[state]
    if state == "waiting":
        text = {None: "Not started", 0: "Starting"}.get(train.place, text)
    return f'<span class="train-tools-state train-tools-{state}"><i aria-hidden="true"></i>{words(text)}</span>'


def _headline(train: TrainSnapshot) -> str:
    status = train.status
    more = ""
    if status.state == "waiting" and train.place:
        more = f" {words('Place in the queue:')} {value(train.place)}"
    elif status.state in ("running", "waiting") and status.phase:
        phase = words(_PHASES[status.phase]) if status.phase in _PHASES else value(status.phase)
        done = value(f"{status.phase_done} / {status.phase_total}") if status.phase_total else ""
        more = f" {phase} {done}"
    return f'<div class="train-tools-headline">{state_html(train)}{value(train.name, "train-tools-strong")}{more}</div>'


def _bar(status: JobStatus) -> str:
    if status.state == "running" and status.phase not in ("", "training"):
        return progress_bar(status.phase_done, status.phase_total)
    if status.total_steps or status.state == "running":
        return progress_bar(status.step, status.total_steps)
    return ""


def _numbers(status: JobStatus) -> str:
    cells: list[tuple[str, str]] = []
    if status.total_steps:
        cells.append(("Step", value(f"{status.step} / {status.total_steps}")))
    if status.epochs:
        cells.append(("Epoch", value(f"{status.epoch} / {status.epochs}")))
    if status.loss is not None:
        cells.append(("Loss", value(f"{status.loss:.4g}")))
    if status.validation_loss is not None:
        cells.append(("Held-out loss", value(f"{status.validation_loss:.4g}")))
    if status.lr is not None:
        cells.append(("Learning rate", value(f"{status.lr:.3g}")))
    if status.s_per_step is not None:
        cells.append(("Speed", value(f"{status.s_per_step:.3g} s/step")))
    if status.eta_s is not None and status.state == "running":
        cells.append(("Time left", value(duration_text(status.eta_s))))
        cells.append(("Ready at about", local_time(status.last_event_t + status.eta_s)))
    if status.peak_memory_mb:
        cells.append(("Peak memory", value(gigabytes_text(status.peak_memory_mb * 2**20))))
    if status.device:
        cells.append(("Device", value(status.device)))
    listed = "".join(f"<div><dt>{label}</dt><dd>{shown}</dd></div>" for label, shown in cells)
    return f'<dl class="train-tools-numbers">{listed}</dl>' if listed else ""


def _silence(status: JobStatus) -> str:
    if status.state != "running" or status.silent_s <= _SILENCE_S:
        return ""
    advice = words("It may be busy with something long. Stop now ends it; Resume then goes on from the last state.")
    return paragraph(
        f"{words('No sign of life for')} {value(duration_text(status.silent_s))} {advice}", "train-tools-notice"
    )


def _failure(status: JobStatus) -> str:
    if status.state != "failed":
        return ""
    return error_panel("The training failed.", status.message, status.hint)


def _buttons(train: TrainSnapshot) -> str:
    body = {"job": train.job}
    if train.status.state == "running":
        return (
            post_button("Stop and save", "jobs/stop", body, done="It stops after this step and saves the LoRA.")
            + post_button("Pause", "jobs/pause", body, done="It pauses after this step and frees the card.")
            + post_button(
                "Stop now",
                "jobs/kill",
                body,
                confirm="Stop at once? The steps since the last saved state are lost.",
                done="Stopped.",
            )
        )
    if train.status.state == "waiting" and train.place is not None:
        return post_button("Cancel", "queue/cancel", body, done="Taken out of the queue.")
    if train.status.state == "finished":
        return ""
    text = "Put into the queue" if train.status.state == "waiting" else "Resume"
    return post_button(text, "jobs/resume", body, done="Put into the queue.")


def _strip(train: TrainSnapshot, token: str) -> str:
    """A preview of every LoRA as they come, newest first."""
    pictures: list[str] = []
    for lora in [lora for lora in train.loras if lora.previews][:_STRIP_LENGTH]:
        path = lora.previews[0]
        url = job_file_url(train.job, path, token)
        caption = f"<figcaption>{words('Step')} {value(lora.step)}</figcaption>"
        link = attributes_text({"href": url, "target": "_blank", "rel": "noopener", "data-key": f"sample {path}"})
        image = attributes_text({"src": url, "alt": path.rpartition("/")[2]})
        key = attributes_text({"data-key": f"strip {path}"})
        pictures.append(
            f'<figure{key}><a class="train-tools-value"{link}><img loading="lazy" width="128" height="128"{image}></a>'
            f"{caption}</figure>"
        )
    if not pictures:
        return ""
    return f'<div class="train-tools-strip" tabindex="0" role="group" aria-label="Previews">{"".join(pictures)}</div>'


def _log(tail: str) -> str:
    summary = f"<summary>{words('Log')}</summary>"
    pre = f'<pre class="train-tools-log train-tools-value" tabindex="0">{escape(tail)}</pre>'
    return f'<details class="train-tools-details" data-key="log">{summary}{pre}</details>'


def queue_html(snapshot: Snapshot) -> str:
    """What runs and what waits, over all projects, with the buttons that change the order.

    Nothing where that is the shown training alone, of which the progress tells.
    """
    if all(snapshot.shown is not None and entry.job == snapshot.shown.job for entry in snapshot.queue):
        return ""
    waiting = [entry for entry in snapshot.queue if entry.state == "waiting"]
    rows = [_queue_row(entry, "") for entry in snapshot.queue if entry.state == "running"]
    for place, entry in enumerate(waiting, start=1):
        body = {"job": entry.job}
        moves = post_button("↑", "queue/move", {**body, "place": place - 1}, name="Move up") if place > 1 else ""
        if place < len(waiting):
            moves += post_button("↓", "queue/move", {**body, "place": place + 1}, name="Move down")
        moves += post_button("Cancel", "queue/cancel", body, done="Taken out of the queue.")
        rows.append(_queue_row(entry, moves))
    heading = f'<h3 class="train-tools-subheading">{words("Queue")}</h3>'
    return f'{heading}<ol class="train-tools-queue">{"".join(rows)}</ol>'


def _queue_row(entry: QueueEntry, buttons: str) -> str:
    if entry.state == "running":
        text = "Stop and save" if entry.kind == "train" else "Stop"
        buttons = post_button(text, "jobs/stop", {"job": entry.job}, done="It stops after this step.")
    state = (
        f'<span class="train-tools-state train-tools-{entry.state}"><i aria-hidden="true"></i>'
        f"{words(_STATES[entry.state])}</span>"
    )
    title = value(entry.title, "train-tools-strong")
    kind = words(_KINDS[entry.kind]) if entry.kind in _KINDS else ""
    key = attributes_text({"data-key": f"queue {entry.job}"})
    return f'<li{key}>{state}{title}{kind}<span class="train-tools-actions">{buttons}</span></li>'
