"""Every train of a version and its LoRAs, as HTML."""

from __future__ import annotations

from html import escape

from lora_train.app.snapshot import LoraEntry, Snapshot, TrainSnapshot
from lora_train.ui.html import (
    apart,
    attributes_text,
    badge,
    counted,
    job_file_url,
    local_time,
    page_of,
    pager,
    paragraph,
    post_button,
    sentence,
    size_text,
    value,
    words,
)
from lora_train.ui.view_progress import state_html
from lora_train.ui.view_proof import proof_html

_CARDS_LENGTH = 50
"""LoRAs that are shown at once."""
_SETTING_WORDS = ("batch", "continues", "epochs")
"""Words before values in the summary of a train; `rank` is the same in every language."""


def results_html(snapshot: Snapshot, token: str, history: str = "", page: str = "") -> str:
    """The trains to choose from, and the LoRAs of the shown one as cards; `history` is what stands below its facts.

    `page`, from 1, is that of the cards.
    """
    if not snapshot.trains:
        return paragraph(words("Finished LoRAs appear here."), "train-tools-quiet")
    shown = snapshot.shown or snapshot.trains[0]
    rows = "".join(_train_row(train, is_shown=train.job == shown.job) for train in snapshot.trains)
    number = page_of(page, len(shown.loras), _CARDS_LENGTH)
    on_page = shown.loras[(number - 1) * _CARDS_LENGTH : number * _CARDS_LENGTH]
    cards = "".join(_card(shown, lora, token) for lora in on_page)
    turns = pager("cards", number, len(shown.loras), _CARDS_LENGTH, ("Newer LoRAs", "Older LoRAs"))
    below = f'<div class="train-tools-cards">{cards}</div>{turns}'
    if not cards:
        below = paragraph(words("No LoRA has been saved by this training yet."), "train-tools-quiet")
    return f'<ul class="train-tools-trains">{rows}</ul>{_train_facts(shown)}{history}{below}'


def _train_row(train: TrainSnapshot, *, is_shown: bool) -> str:
    pressed = "true" if is_shown else "false"
    attributes = attributes_text(
        {"data-param": "train", "data-value": train.job, "data-key": f"train {train.job}", "aria-pressed": pressed}
    )
    count = f"<span>{counted(len(train.loras), 'LoRA', 'LoRAs')}</span>"
    facts = f"{state_html(train)}{count}{local_time(train.created)}"
    return (
        f'<li><button type="button" class="train-tools-train"{attributes}>'
        f"{value(train.name, 'train-tools-strong')}{facts}</button></li>"
    )


def _train_facts(train: TrainSnapshot) -> str:
    """Base model and settings of the shown train, and what can be done with the whole of it."""
    body = {"job": train.job}
    buttons = ""
    lacks_previews = any(not lora.previews for lora in train.loras)
    if lacks_previews and train.status.state != "running" and not train.is_original:
        buttons = post_button("Draw previews", "jobs/previews", body, done="Drawing previews is in the queue.")
    if train.loras:
        buttons += post_button("Generate previews", "grids/train", body, done="Put into the queue.")
    if train.place is None and train.status.state != "running":
        buttons += post_button("Delete train", "jobs/delete", body)
    facts = [f"{words('Base model:')} {value(train.base_model)}"] if train.base_model else []
    facts += [value(train.family)] if train.family else []
    facts += [_setting(text) for text in train.summary.split(" · ") if text]
    return (
        f'<div class="train-tools-facts-row">{paragraph(apart(facts))}'
        f'<span class="train-tools-actions">{buttons}</span></div>'
    )


def _setting(text: str) -> str:
    name, _, number = text.partition(" ")
    return f"{words(name)} {value(number)}" if name in _SETTING_WORDS else value(text)


def _card(train: TrainSnapshot, lora: LoraEntry, token: str) -> str:
    title = lora.published or lora.stem
    badges = badge("recommended", "good") if lora.is_recommended else ""
    badges += badge("in models/Lora", "good") if lora.published else ""
    tone = " train-tools-best" if lora.is_recommended else ""
    problem = paragraph(sentence(lora.problem), "train-tools-notice") if lora.problem else ""
    made = apart([f"{words('Step')} {value(lora.step)}", f"{words('Epoch')} {value(lora.epoch)}"])
    file = apart([value(size_text(lora.size_bytes)), local_time(lora.made)])
    key = attributes_text({"data-key": f"card {lora.file}"})
    proving = proof_html(train, lora, token)
    heading = f'<h3 class="train-tools-value" title="{escape(title)}">{escape(title)}</h3>'
    return (
        f'<article class="train-tools-card{tone}"{key}>{_preview(train, lora, token)}'
        f'<div class="train-tools-card-text">{heading}{paragraph(made)}'
        f"{paragraph(file, 'train-tools-quiet')}<span>{badges}</span>{problem}{proving}</div>"
        f'<div class="train-tools-actions">{_lora_buttons(train, lora, token)}</div></article>'
    )


def _preview(train: TrainSnapshot, lora: LoraEntry, token: str) -> str:
    if not lora.previews:
        return f'<div class="train-tools-placeholder">{words("no preview")}</div>'
    url = job_file_url(train.job, lora.previews[0], token)
    grid = job_file_url(train.job, lora.previews[1 if len(lora.previews) > 2 else 0], token)
    link = attributes_text({"href": grid, "target": "_blank", "rel": "noopener", "data-key": f"preview {lora.file}"})
    image = attributes_text({"src": url, "alt": lora.previews[0].rpartition("/")[2]})
    return (
        f'<a class="train-tools-preview train-tools-value"{link}>'
        f'<img loading="lazy" width="256" height="192"{image}></a>'
    )


def _lora_buttons(train: TrainSnapshot, lora: LoraEntry, token: str) -> str:
    body = {"job": train.job, "lora": lora.file}
    if lora.published:
        publish = post_button("Un-publish", "loras/unpublish", body)
    else:
        publish = post_button("Publish", "loras/publish", body, done="Copied into the LoRA folder.")
    send = attributes_text({"data-send": lora.prompt, "data-key": f"send {lora.file}"})
    download = attributes_text(
        {
            "href": job_file_url(train.job, lora.file, token, download=True),
            "download": lora.file,
            "data-key": f"download {lora.file}",
        }
    )
    grid = post_button("Generate preview", "grids/lora", body, done="Put into the queue.")
    return (
        f'<button type="button" class="train-tools-button"{send}>Send to txt2img</button>{publish}'
        f'<a class="train-tools-button"{download}>Download</a>{grid}{post_button("Delete", "loras/delete", body)}'
    )
