"""The history of a training as HTML: its row of buttons, and how it differs from another."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lora_train.app.history_snapshot import Comparison, HistoryNote
from lora_train.core.history_differences import PictureDifference, SettingDifference
from lora_train.ui.html import attributes_text, download_link, paragraph, post_button, sentence, value, words
from lora_train.ui.view_presets import AGAIN

_MOST_ROWS = 200
_KINDS = {
    "added": "Added",
    "removed": "Removed",
    "changed": "Changed",
    "mask": "Another mask",
    "caption": "Caption",
    "repeats": "Repeats",
    "held out": "Held out",
}


def history_row(job: str, note: HistoryNote, compared: str, token: str) -> str:
    """What can be done with a training beside its LoRAs; `compared` is the job it is compared with."""
    if note.is_original:
        return ""
    body = {"job": job}
    parts = [post_button("Use these settings", "history/use", body, done="The settings are taken over.", then=AGAIN)]
    if note.can_undo:
        parts.append(
            post_button("Undo settings", "history/undo", body, done="The settings are as they were.", then=AGAIN)
        )
    if note.is_noted and note.versions:
        parts.append(
            post_button("Repeat anyway", "history/repeat", {**body, "anyway": True}, done="Put into the queue.")
        )
    elif note.is_noted:
        parts.append(post_button("Repeat exactly", "history/repeat", body, done="Put into the queue."))
    parts.append(_choice(job, note, compared))
    parts += [
        download_link("Report", "jobs/report", {"job": job}, token),
        download_link("Curves (CSV)", "jobs/curves.csv", {"job": job}, token),
        download_link("Curves (JSON)", "jobs/curves.json", {"job": job}, token),
    ]
    told = ""
    if note.is_noted and note.versions:
        changes = ", ".join(f"{row.label} {row.before} → {row.after}" for row in note.versions)
        lead = words("A repetition would be nearly the same, not exactly: other versions compute now.")
        told = paragraph(f"{lead} {value(changes)}", "train-tools-quiet")
    return f'<div class="train-tools-actions train-tools-history">{"".join(parts)}</div>{told}'


def comparison_html(comparison: Comparison) -> str:
    """How the other training differs from the shown one, as tables."""
    head = f"{words('Compared:')} {value(comparison.before)} {value('→')} {value(comparison.after)}"
    parts = [paragraph(head)]
    parts += [paragraph(sentence(text), "train-tools-quiet") for text in comparison.unknown]
    if comparison.is_same and not comparison.unknown:
        parts.append(paragraph(words("Nothing differs: the same pictures, captions, settings and versions.")))
    parts.append(_table("Settings", [*comparison.settings, *comparison.base, *comparison.versions]))
    parts.append(_pictures(comparison.pictures))
    return f'<div class="train-tools-box train-tools-comparison">{"".join(parts)}</div>'


def _choice(job: str, note: HistoryNote, compared: str) -> str:
    if not note.others:
        return ""
    options = f'<option value="">{words("Compare with…")}</option>' + "".join(
        f'<option class="train-tools-value" value="{escape(other)}"{" selected" if other == compared else ""}>'
        f"{escape(name)}</option>"
        for other, name in note.others
    )
    about = attributes_text({"data-param": "compare", "data-key": f"compare {job}", "aria-label": "Compare with…"})
    return f"<select{about}>{options}</select>"


def _table(title: str, rows: Sequence[SettingDifference]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<tr><th>{sentence(row.label)}</th><td>{_change(row.before, row.after)}</td></tr>" for row in rows)
    return f'<table class="train-tools-table"><caption>{words(title)}</caption>{cells}</table>'


def _pictures(rows: Sequence[PictureDifference]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f"<tr><th>{value(row.path)}</th><td>{words(_KINDS[row.kind])}</td>"
        f"<td>{_change(row.before, row.after)}</td></tr>"
        for row in rows[:_MOST_ROWS]
    )
    more = len(rows) - _MOST_ROWS
    rest = paragraph(f"{value(more)} {words('more')}", "train-tools-quiet") if more > 0 else ""
    return f'<table class="train-tools-table"><caption>{words("Pictures")}</caption>{cells}</table>{rest}'


def _change(before: str, after: str) -> str:
    return f"{value(before or '–')} {value('→')} {value(after or '–')}" if before or after else ""
