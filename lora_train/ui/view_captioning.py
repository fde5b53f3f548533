"""What writes captions, as HTML: the one question, downloads, and captions that are being written."""

from __future__ import annotations

from lora_train.app.snapshot import CaptionerEntry, CaptioningSnapshot, Selection
from lora_train.core.jobs import JobStatus
from lora_train.ui.html import (
    apart,
    error_panel,
    paragraph,
    post_button,
    progress_bar,
    sentence,
    sentences,
    size_text,
    value,
    words,
)

_UPDATE = "train_tools_dataset_update"
"""The button that is pressed for who answered the question, where nothing has to be fetched first."""


def captioning_html(captioning: CaptioningSnapshot, selection: Selection, *, is_needed: bool) -> str:
    """Nothing where all is quiet. `is_needed`: pictures without captions wait for *Update Dataset*."""
    job = captioning.job
    parts = [_offer(entry) if entry.download is None else _download(entry) for entry in captioning.captioners]
    if job is not None and job.state in ("waiting", "running"):
        parts.append(_writing(job, selection))
    elif job is not None and job.state == "failed":
        parts.append(error_panel("The captions could not be written.", job.message, job.hint))
    elif captioning.must_ask and is_needed:
        parts.append(_question(captioning))
    parts.append(sentences(captioning.problems, "train-tools-warning"))
    if captioning.uses and is_needed:
        parts.append(paragraph(f"{words('Captions will be written by:')} {apart(map(words, captioning.uses))}"))
    return "".join(parts)


def _writing(job: JobStatus, selection: Selection) -> str:
    done = value(f"{job.phase_done} / {job.phase_total}") if job.phase_total else ""
    stop = post_button(
        "Stop",
        "captions/stop",
        {"project": selection.project, "version": selection.version},
        done="It stops; captions that are written stay.",
    )
    bar = progress_bar(job.phase_done, job.phase_total)
    headline = paragraph(f"{words('Writing captions')} {done}")
    return f'<div class="train-tools-box">{headline}{bar}<div class="train-tools-actions">{stop}</div></div>'


def _download(entry: CaptionerEntry) -> str:
    status = entry.download
    if status is None or status.state == "finished":
        return ""
    if status.state in ("waiting", "running"):
        done = value(f"{size_text(status.phase_done)} / {size_text(status.phase_total)}") if status.phase_total else ""
        stop = post_button("Stop", "jobs/stop", {"job": entry.download_job}, done="The download stops.")
        headline = paragraph(f"{words('Downloading')} {value(entry.label)} {done}")
        bar = progress_bar(status.phase_done, status.phase_total)
        return f'<div class="train-tools-box">{headline}{bar}<div class="train-tools-actions">{stop}</div></div>'
    again = post_button("Download again", "captioners/download", _body(entry), done="The download begins.")
    if status.state == "failed":
        why = error_panel("The download failed.", status.message, status.hint)
        return f'{why}<div class="train-tools-actions">{again}</div>'
    stopped = paragraph(f"{words('The download was stopped:')} {value(entry.label)}", "train-tools-quiet")
    return f'{stopped}<div class="train-tools-actions">{again}</div>'


def _offer(entry: CaptionerEntry) -> str:
    """Of a model that is wanted and not here, where it was not begun before."""
    if not entry.is_wanted:
        return ""
    if entry.problem:
        command = value(entry.command, "train-tools-command")
        return f'<div class="train-tools-box">{paragraph(sentence(entry.problem))}{paragraph(command)}</div>'
    size = f" {value(f'{entry.download_mb} MB')}" if entry.download_mb else ""
    headline = paragraph(f"{value(entry.label)}{size} {words('to download')}")
    button = post_button("Download", "captioners/download", _body(entry), done="The download begins.")
    return f'<div class="train-tools-box">{headline}<div class="train-tools-actions">{button}</div></div>'


def _body(entry: CaptionerEntry) -> dict[str, str]:
    """What the download of a model is asked for with."""
    return {"model": entry.name, "kind": entry.choice}


def _question(captioning: CaptioningSnapshot) -> str:
    """Asked once: what is to describe pictures that come without a caption."""
    choices: list[str] = []
    answered: set[str] = set()
    for entry in captioning.captioners:
        if entry.choice in answered:
            continue
        answered.add(entry.choice)
        choices.append(_choice(entry))
    none = post_button(
        "No captions", "captioners/answer", {"choice": "none"}, done="Pictures are called by their name.", then=_UPDATE
    )
    quiet = words("Pictures are then called by the trigger word, or the project's name.")
    choices.append(f'<li>{none} <span class="train-tools-quiet">{quiet}</span></li>')
    question = paragraph(words("What is to describe pictures that have no caption?"), "train-tools-strong")
    later = paragraph(words("This is asked once; the ticks under Captioning change it."), "train-tools-quiet")
    return (
        f'<div class="train-tools-box">{question}<ul class="train-tools-choices">{"".join(choices)}</ul>{later}</div>'
    )


def _choice(entry: CaptionerEntry) -> str:
    fetched = entry.download_mb > 0
    button = post_button(
        entry.label,
        "captioners/answer",
        {"choice": entry.choice},
        done="The download begins." if fetched else "It will write the captions.",
        then="" if fetched else _UPDATE,
    )
    size = f" {value(f'{entry.download_mb} MB')} {words('to download')}" if fetched else ""
    lines = [sentence(entry.good_for) + size]
    if entry.problem:
        lines.append(sentence(entry.problem))
    if entry.command:
        lines.append(value(entry.command, "train-tools-command"))
    return f'<li>{button} <span class="train-tools-quiet">{"<br>".join(lines)}</span></li>'
