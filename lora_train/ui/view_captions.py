"""The caption editor as HTML: tags with their frequencies, captions as chips, and what an edit would change."""

from __future__ import annotations

from collections.abc import Sequence

from lora_train.app.captions import CaptionChange, CaptionRow, CaptionsSnapshot
from lora_train.app.snapshot import PictureEntry, Selection
from lora_train.ui.html import (
    apart,
    attributes_text,
    badge,
    counted,
    paragraph,
    sentences,
    value,
    words,
)
from lora_train.ui.view_dataset import picture_button

_MOST_ROWS = 200
_MOST_TAGS = 80
_MOST_CHANGES = 50


def captions_html(captions: CaptionsSnapshot, selection: Selection, token: str) -> str:
    """The captions that the filter shows. A click on a tag puts it into the filter, or takes it out."""
    if not captions.total:
        return paragraph(words("Captions appear here after Update Dataset."), "train-tools-quiet")
    rows = "".join(_row(row, captions, selection, token) for row in captions.rows[:_MOST_ROWS])
    hidden = len(captions.rows) - _MOST_ROWS
    more = paragraph(f"{value(hidden)} {words('more are not listed: narrow the filter.')}") if hidden > 0 else ""
    return (
        f"{_counts(captions)}{sentences(captions.problems, 'train-tools-warning')}{_tags(captions)}"
        f'<ul class="train-tools-captions">{rows}</ul>{more}'
    )


def changes_html(changes: Sequence[CaptionChange]) -> str:
    """What an edit would make of captions; nothing is written yet."""
    if not changes:
        return paragraph(words("No caption would change."), "train-tools-quiet")
    rows = "".join(
        f"<li>{value(change.file, 'train-tools-quiet')}"
        f'<del class="train-tools-value">{value(change.before)}</del>'
        f'<ins class="train-tools-value">{value(change.after)}</ins></li>'
        for change in changes[:_MOST_CHANGES]
    )
    hidden = len(changes) - _MOST_CHANGES
    more = f"{value('+')}{value(hidden)}" if hidden > 0 else ""
    headline = f"{counted(len(changes), 'caption would change', 'captions would change')} {more}"
    return f'{paragraph(headline)}<ul class="train-tools-changes" tabindex="0">{rows}</ul>'


def _counts(captions: CaptionsSnapshot) -> str:
    shown = f"{value(f'{len(captions.rows)} / {captions.total}')} {words('shown')}"
    parts = [shown, counted(len(captions.tags), "tag", "tags")]
    for step, text in ((captions.undo, "Undo takes back:"), (captions.redo, "Redo does again:")):
        if step is not None:
            parts.append(f"{words(text)} {words(step.what)} {value(step.detail)} {value(f'({step.pictures})')}")
    return paragraph(apart(parts), "train-tools-counts")


def _tags(captions: CaptionsSnapshot) -> str:
    """The most frequent tags; those of most pictures stand out."""
    common = set(captions.common)
    chips = "".join(
        f"<li>{_tag(count.tag, str(count.pictures), 'train-tools-common' if count.tag in common else '', 'all')}</li>"
        for count in captions.tags[:_MOST_TAGS]
    )
    hidden = len(captions.tags) - _MOST_TAGS
    more = f"<li>{value(f'+{hidden}')}</li>" if hidden > 0 else ""
    return (
        f'<details class="train-tools-details" data-key="tags"><summary>{words("Tags by frequency")}</summary>'
        f'<ul class="train-tools-chips">{chips}{more}</ul></details>'
    )


def _tag(tag: str, count: str, css_class: str, where: str) -> str:
    number = value(count, "train-tools-quiet") if count else ""
    attributes = attributes_text({"data-tag": tag, "data-key": f"tag {where} {tag}"})
    return (
        f'<button type="button" class="train-tools-chip train-tools-tag {css_class}"{attributes}>'
        f"{value(tag)} {number}</button>"
    )


def _row(row: CaptionRow, captions: CaptionsSnapshot, selection: Selection, token: str) -> str:
    entry = PictureEntry(row.file, 0, 0, row.caption, is_regularisation=row.is_regularisation, stamp=row.stamp)
    choose = attributes_text({"data-choose": row.file, "data-key": f"choose {row.file}", "aria-label": row.file})
    tags = "".join(_tag(tag, "", "", f"{row.file} {number}") for number, tag in enumerate(row.tags))
    caption = tags or words("no caption")
    return (
        f"<li{attributes_text({'data-key': f'row {row.file}'})}>"
        f'<input type="checkbox" class="train-tools-value"{choose}>'
        f"{picture_button(entry, selection, token, f'caption {row.file}')}"
        f'<div class="train-tools-chips">{caption}{_facts(row, captions)}</div></li>'
    )


def _facts(row: CaptionRow, captions: CaptionsSnapshot) -> str:
    """Tokens of the text that is trained, and whether some are cut off."""
    kind = badge("regularisation") if row.is_regularisation else ""
    if row.tokens is None:
        return kind
    told = f"{value(f'{row.tokens} / {captions.max_tokens}')} {words('tokens')}"
    cut = badge("too long", "notice") if row.cut_tokens else ""
    return f'{kind}<span class="train-tools-quiet train-tools-tokens">{told}</span>{cut}'
